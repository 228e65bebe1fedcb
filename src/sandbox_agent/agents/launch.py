"""How an agent is started: its launcher in the layout, else its adapter on PATH."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sandbox_agent.agents.catalogue import CATALOGUE, Agent
from sandbox_agent.agents.layout import is_agent_id, launcher_ids, launcher_path, native_path
from sandbox_agent.errors import AgentNotInstalledError, UnsupportedAgentError

__all__ = ["Launch", "agent_ids", "resolve"]


@dataclass(frozen=True)
class Launch:
    """How to start an agent.

    Attributes:
        argv: the command line; its first item is an absolute path.
        source: "launcher" (found in the layout), "path" (on PATH), or "builtin".
        path: the file that was found; None for a builtin.
        env: variables to add to the child's environment.
        cwd: the folder to start it in, or None for the server's.
    """

    argv: list[str]
    source: Literal["launcher", "path", "builtin"]
    path: Path | None = None
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    cwd: Path | None = None


def agent_ids() -> list[str]:
    """Return the ids of all agents: the catalogue's, then those that only have a launcher here."""
    return [*CATALOGUE, *(agent_id for agent_id in launcher_ids() if agent_id not in CATALOGUE)]


def resolve(agent_id: str) -> Launch:
    """Return how to start the agent; looks at the disk and at PATH anew each time.

    Raises:
        UnsupportedAgentError: there is no agent of that id.
        AgentNotInstalledError: there is, but it isn't installed here.
    """
    agent = CATALOGUE.get(agent_id)
    if agent is None and not is_agent_id(agent_id):
        raise _unsupported(agent_id)
    launcher = launcher_path(agent_id)
    if launcher.is_file() and not (agent_id == "mock" and _is_peers_mock(launcher)):
        if not os.access(launcher, os.X_OK):
            raise AgentNotInstalledError(
                f"agent not installed: {agent_id}: its launcher isn't executable, run chmod +x on it",
                agent=agent_id,
            )
        return Launch([str(launcher)], "launcher", launcher)
    if agent is None:
        raise _unsupported(agent_id)
    if agent.id == "mock":
        # -P: a module of the folder that it is started in must not stand in for one of ours.
        return Launch([sys.executable, "-P", "-m", "sandbox_agent.agents.mock"], "builtin")
    found = _native(agent) or _on_path(agent)
    if found is None:
        raise AgentNotInstalledError(_how_to_install(agent), agent=agent_id)
    return found


def _is_peers_mock(launcher: Path) -> bool:
    """Return whether it is what the peer's ``install-agent mock`` writes: it runs a command of the peer's."""
    try:
        with launcher.open("rb") as file:
            return b"mock-agent-process" in file.read(1024)
    except OSError:
        return False


def _unsupported(agent_id: str) -> UnsupportedAgentError:
    known = ", ".join(agent_ids())
    return UnsupportedAgentError(f"unsupported agent: {agent_id}; known here: {known}", agent=agent_id)


def _native(agent: Agent) -> Launch | None:
    if agent.native_args is None:
        return None
    native = native_path(agent.id)
    if not (native.is_file() and os.access(native, os.X_OK)):
        return None
    return Launch([str(native), *agent.native_args], "launcher", native)


def _on_path(agent: Agent) -> Launch | None:
    for command, *arguments in agent.adapters:
        found = shutil.which(command)
        if found is not None:
            path = Path(found).absolute()
            return Launch([str(path), *arguments], "path", path)
    return None


def _how_to_install(agent: Agent) -> str:
    # The server's own paths stay out of answers; the layout is documented relative to its root.
    commands = " or ".join(f"`{' '.join(adapter)}`" for adapter in agent.adapters)
    return (
        f"agent not installed: {agent.id}: put {commands} on PATH, or a launcher at "
        f"$XDG_DATA_HOME/sandbox-agent/bin/agent_processes/{agent.id}-acp"
    )
