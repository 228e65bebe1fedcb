"""The AgentInfo objects of ``/v1/agents``. Credentials are looked for; their values are never stored."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from sandbox_agent.agents.catalogue import Agent, CredentialFile, known_agents
from sandbox_agent.agents.credentials import is_expired_login
from sandbox_agent.agents.install.installed import read_launcher
from sandbox_agent.agents.launch import Launch, resolve
from sandbox_agent.agents.mock.agent import VERSION as MOCK_VERSION
from sandbox_agent.engine.permissions import PERMISSION_MODES
from sandbox_agent.errors import AgentNotInstalledError
from sandbox_agent.wire.api import AgentCapabilities, AgentInfo, AuthMethodInfo
from sandbox_agent.wire.jsonrpc import members

# An agent that only has a launcher speaks ACP; nothing else is known about it.
_LAUNCHER_ONLY = AgentCapabilities(
    permissions=True, tool_calls=True, tool_results=True, text_messages=True, streaming_deltas=True
)
# Most credential files are small, but a user's ~/.claude.json can be several megabytes.
_MAX_BYTES = 32 * 1024 * 1024


def agent_info(agent_id: str, variables: Mapping[str, str] | None = None) -> AgentInfo:
    """Return what is known about an agent without starting it.

    Args:
        agent_id: Its id.
        variables: The environment in which it would run. Default: that of this process.

    Raises:
        UnsupportedAgentError: No agent has this id.
    """
    try:
        launch = resolve(agent_id)
    except AgentNotInstalledError:
        launch = None
    agent = known_agents().get(agent_id)
    package = None if agent is None else agent.package
    return AgentInfo(
        id=agent_id,
        installed=launch is not None,
        credentials_available=credentials_available(agent_id, variables),
        capabilities=_LAUNCHER_ONLY if agent is None else agent.capabilities,
        version=None if launch is None else installed_version(launch),
        path=None if launch is None or launch.path is None else str(launch.path),
        package=None if package is None else package.name,
        pinned_version=None if package is None else package.version,
        auth_methods=auth_methods(agent_id, variables) or None,
        credential_variables=[list(names) for names in credential_variables(agent_id)] or None,
        permission_modes=_permission_modes(agent),
    )


def _permission_modes(agent: Agent | None) -> dict[str, list[str]] | None:
    """Return the agent's modes by permission mode; one that never asks has no others than "allow"."""
    modes = None if agent is None else agent.modes
    if modes is None:
        return None
    if modes.never_asks:
        return {"allow": list(modes.names.get("allow", ()))}
    return {name: list(modes.names.get(name, ())) for name in PERMISSION_MODES}


def auth_methods(agent_id: str, variables: Mapping[str, str] | None = None) -> list[AuthMethodInfo]:
    """Return the authentication methods that need no user, and whether their credentials are there.

    Args:
        agent_id: Its id.
        variables: The environment in which it runs. Default: that of this process.
    """
    agent = known_agents().get(agent_id)
    variables = _environment(agent_id, variables)
    return [
        AuthMethodInfo(
            method=each.id,
            variables=list(each.env),
            satisfied=any(variables.get(name) for name in each.env),
            required=each.required,
        )
        for each in (agent.auth if agent is not None else ())
    ]


def _environment(agent_id: str, variables: Mapping[str, str] | None) -> Mapping[str, str]:
    """Return the given variables, else those that the agent has if this process starts it."""
    if variables is not None:
        return variables
    agent = known_agents().get(agent_id)
    return os.environ if agent is None else {**agent.defaults, **os.environ}


def usable_auth_methods(agent_id: str, variables: Mapping[str, str]) -> list[str] | None:
    """Return the methods to authenticate with; None for an agent of which none are known."""
    methods = auth_methods(agent_id, variables)
    return [each.method for each in methods if each.required and each.satisfied] if methods else None


def credential_variables(agent_id: str) -> tuple[tuple[str, ...], ...]:
    """Return the sets of variables, with all of which the agent starts; empty if none are known."""
    agent = known_agents().get(agent_id)
    return () if agent is None else agent.credential_variables


def installed_version(launch: Launch) -> str | None:
    """Return the version that the agent reported when it was installed, or that of its package; else None."""
    if launch.source == "builtin":
        return MOCK_VERSION
    installation = None if launch.path is None else read_launcher(launch.path)
    if installation is not None:
        return installation.reported or installation.version
    package = None if launch.path is None else _npm_package(launch.path)
    if package is None:
        return None
    try:
        manifest: Any = json.loads((package / "package.json").read_bytes())
    except (OSError, ValueError):
        return None
    version = cast("dict[str, Any]", manifest).get("version") if isinstance(manifest, dict) else None
    return version if isinstance(version, str) else None


def _npm_package(path: Path) -> Path | None:
    """Return the folder of a file's npm package: node_modules/name or node_modules/@scope/name."""
    inside: Path | None = None
    for folder in path.resolve().parents:
        if folder.name == "node_modules":
            return inside
        if not folder.name.startswith("@"):
            inside = folder
    return None


def credentials_available(agent_id: str, variables: Mapping[str, str] | None = None) -> bool:
    """Return whether its environment or home folder contains credentials for the agent.

    True for agents that are not in the catalogue, or whose credential locations are not known. False if more
    variables are needed than are there: the agent would not start.
    """
    agent = known_agents().get(agent_id)
    if agent is None or not (agent.credential_env or agent.credential_files):
        return True
    variables = _environment(agent_id, variables)
    if any(all(_is_set(each, variables) for each in names) for names in agent.credential_variables):
        return True
    try:
        home = Path(variables.get("HOME") or Path.home())
    except RuntimeError:  # no HOME and no entry in the user database
        return False
    return any(_holds_credentials(home, file) for file in agent.credential_files)


def _is_set(wanted: str, variables: Mapping[str, str]) -> bool:
    name, _, value = wanted.partition("=")
    return variables.get(name) == value if value else bool(variables.get(name))


def _holds_credentials(home: Path, file: CredentialFile) -> bool:
    path = home / file.path
    try:
        size = path.stat().st_size
        if not file.members:
            return size > 0
        content: Any = json.loads(path.read_bytes()) if size <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return False
    stored = members(content)
    anything = [name for name, value in stored.items() if isinstance(value, dict)]
    names = anything if file.members == ("*",) else file.members
    return any(stored.get(name) and not is_expired_login(stored[name]) for name in names)
