"""How to start an agent: with its launcher in the data folder, or with its adapter on ``PATH``.

The folder has the layout of the published server's: both find the same agents.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import platformdirs

from sandbox_agent.agents.catalogue import Agent, known_agents
from sandbox_agent.errors import AgentNotInstalledError, UnsupportedAgentError

_SUFFIX = "-acp"
# An id becomes part of a file name: no separators, no leading dot, no long names.
_AGENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Launch:
    """How to start an agent.

    Attributes:
        argv: The command line. Its first item is an absolute path.
        source: "launcher" (found in the data folder), "path" (found on ``PATH``) or "builtin".
        path: The file that was found, or None for a built-in agent.
        env: Variables to add to the child's environment.
        cwd: The working directory of the process, or None for the server's.
    """

    argv: list[str]
    source: Literal["launcher", "path", "builtin"]
    path: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    cwd: Path | None = None


def agent_ids() -> list[str]:
    """Return the ids of all agents: those of the catalogue, then those that only have a launcher."""
    known = known_agents()
    return [*known, *(agent_id for agent_id in launcher_ids() if agent_id not in known)]


def resolve(agent_id: str) -> Launch:
    """Return how to start the agent. The disk and ``PATH`` are searched on every call.

    Raises:
        UnsupportedAgentError: No agent has this id.
        AgentNotInstalledError: The agent is not installed on this machine.
    """
    agent = known_agents().get(agent_id)
    if agent is None and not is_agent_id(agent_id):
        raise _unsupported(agent_id)
    if agent is not None and agent.command:
        return _find_own(agent)
    launcher = launcher_path(agent_id)
    if _is_file(launcher) and not (agent_id == "mock" and _is_published_mock(launcher)):
        if not os.access(launcher, os.X_OK):
            raise AgentNotInstalledError(
                f"agent not installed: {agent_id}: its launcher isn't executable, run chmod +x on it",
                agent=agent_id,
            )
        return Launch([str(launcher)], "launcher", launcher)
    if agent is None:
        raise _unsupported(agent_id)
    if agent.id == "mock":
        # -P: modules in the working directory must not shadow ours.
        return Launch([sys.executable, "-P", "-m", "sandbox_agent.agents.mock"], "builtin")
    found = _find_native(agent) or _find_on_path(agent)
    if found is None:
        raise AgentNotInstalledError(_how_to_install(agent), agent=agent_id)
    return found


def _is_published_mock(launcher: Path) -> bool:
    """Return whether the published server's ``install-agent mock`` wrote this launcher."""
    try:
        with launcher.open("rb") as file:
            return b"mock-agent-process" in file.read(1024)
    except OSError:
        return False


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # in a folder that this process may not enter
        return False


def _unsupported(agent_id: str) -> UnsupportedAgentError:
    known = ", ".join(agent_ids())
    return UnsupportedAgentError(f"unsupported agent: {agent_id}; known here: {known}", agent=agent_id)


def _find_own(agent: Agent) -> Launch:
    program, *arguments = agent.command
    found = shutil.which(program)
    if found is None:
        # Responses do not reveal the server's paths.
        name = Path(program).name
        raise AgentNotInstalledError(
            f"agent not installed: {agent.id}: its command `{name}` is neither on PATH nor an executable "
            "file: install it, or change the agent's command",
            agent=agent.id,
        )
    path = Path(found).absolute()
    return Launch([str(path), *arguments], "path", path)


def _find_native(agent: Agent) -> Launch | None:
    if agent.native_args is None:
        return None
    native = native_path(agent.id)
    if not (_is_file(native) and os.access(native, os.X_OK)):
        return None
    return Launch([str(native), *agent.native_args], "launcher", native)


def _find_on_path(agent: Agent) -> Launch | None:
    for command, *arguments in agent.adapters:
        found = shutil.which(command)
        if found is not None:
            path = Path(found).absolute()
            return Launch([str(path), *arguments], "path", path)
    return None


def _how_to_install(agent: Agent) -> str:
    # Responses do not reveal the server's paths: the folder is named relative to its documented root.
    commands = " or ".join(f"`{' '.join(adapter)}`" for adapter in agent.adapters)
    ways = [f"run `sandbox-agent agents install {agent.id}`"] if agent.package is not None else []
    ways += [f"put {commands} on PATH"] if commands else []
    launcher = f"$XDG_DATA_HOME/sandbox-agent/bin/agent_processes/{agent.id}{_SUFFIX}"
    return f"agent not installed: {agent.id}: {', or '.join([*ways, f'put a launcher at {launcher}'])}"


def is_agent_id(agent_id: str) -> bool:
    """Return whether the string is a valid agent id."""
    return _AGENT_ID.fullmatch(agent_id) is not None


def data_dir() -> Path:
    """Return ``$XDG_DATA_HOME/sandbox-agent``, or the platform's default. Read on each call."""
    home = os.environ.get("XDG_DATA_HOME", "")
    if Path(home).is_absolute():
        return Path(home) / "sandbox-agent"
    return platformdirs.user_data_path("sandbox-agent", appauthor=False)


def bin_dir() -> Path:
    """Return the folder of the agents' own binaries."""
    return data_dir() / "bin"


def native_path(name: str) -> Path:
    """Return the path of an agent's own binary, which may not exist."""
    return bin_dir() / name


def launcher_path(agent_id: str) -> Path:
    """Return the path of an agent's launcher, an executable that speaks ACP. It may not exist."""
    return bin_dir() / "agent_processes" / f"{agent_id}{_SUFFIX}"


def has_launcher(agent_id: str) -> bool:
    """Return whether there is a launcher of an agent."""
    return _is_file(launcher_path(agent_id))


def launcher_ids() -> list[str]:
    """Return the sorted ids of all launchers in the data folder."""
    folder = bin_dir() / "agent_processes"
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    except OSError:
        return []
    ids = [name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)]
    return sorted(agent_id for agent_id in ids if is_agent_id(agent_id))
