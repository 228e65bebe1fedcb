"""The list of agents (``GET /v1/agents``): what the catalogue knows of them, and what they report."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import anyio

from sandbox_agent.agents.catalogue import known_agents
from sandbox_agent.agents.info import agent_info, usable_auth_methods
from sandbox_agent.agents.launch import agent_ids
from sandbox_agent.engine.config_options import find_category, options_of
from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.engine.handshake import auth_method, initialize_params, offered_methods
from sandbox_agent.errors import SandboxAgentError, agent_reason
from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.agents.connection import AgentConnection
from sandbox_agent.wire.api import AgentInfo, ServerStatusInfo
from sandbox_agent.wire.jsonrpc import dumps, elements, loads, members, read_head
from sandbox_agent.wire.objects import ConfigOption
from sandbox_agent.wire.sessions import (
    AgentModeInfo,
    AgentModelInfo,
    AgentModelsResponse,
    AgentModesResponse,
)

# An agent that takes longer to report its options is listed with an error instead.
PROBE_SECONDS = 20.0


class AgentRegistry:
    """Lists the agents; reads the options of an installed one from it, once."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._options: dict[str, list[dict[str, Any]]] = {}
        self._versions: dict[str, str] = {}
        self._locks: dict[str, anyio.Lock] = {}

    async def list(self, *, config: bool, no_cache: bool) -> list[AgentInfo]:
        """Return all agents; see get()."""
        ids = agent_ids()
        found: dict[str, AgentInfo] = {}

        async def get(agent: str) -> None:
            found[agent] = await self.get(agent, config=config, no_cache=no_cache)

        async with anyio.create_task_group() as tasks:
            for agent in ids:
                tasks.start_soon(get, agent)
        return [found[agent] for agent in ids]

    async def get(self, agent: str, *, config: bool, no_cache: bool) -> AgentInfo:
        """Return one agent.

        With ``config``, config options are added: the agent's own if it is installed, else the catalogue's.
        With ``no_cache``, the agent reports them again.

        Raises:
            UnsupportedAgentError: there is no agent of that id.
        """
        info = agent_info(agent, self._bridge.environment.variables(agent))
        if config and info.installed:
            try:
                own = await self._read_options(agent, no_cache=no_cache)
                info.config_options = [ConfigOption(option) for option in own]
            except SandboxAgentError as error:
                info.config_error = str(error)
        if info.installed and info.version is None:
            info.version = self._versions.get(agent)
        if config and not info.config_options:
            known = known_agents().get(agent)
            info.config_options = [ConfigOption(each) for each in known.config_options] if known else []
        info.server_status = self._status(agent)
        return info

    def forget(self, agent: str) -> None:
        """Forget the agent's options and version: another one may be installed."""
        self._options.pop(agent, None)
        self._versions.pop(agent, None)

    def _status(self, agent: str) -> ServerStatusInfo | None:
        running = [each.uptime_ms for each in self._bridge.live() if each.agent == agent]
        if not running:
            return None
        return ServerStatusInfo(status="running", uptime_ms=max(running))

    async def _read_options(self, agent: str, *, no_cache: bool) -> list[dict[str, Any]]:
        async with self._locks.setdefault(agent, anyio.Lock()):
            if no_cache or agent not in self._options:
                offered = None if no_cache else self._offered(agent)
                self._options[agent] = await self._probe(agent) if offered is None else offered
            return self._options[agent]

    def _offered(self, agent: str) -> list[dict[str, Any]] | None:
        """Return the options that a running agent reported with a session; None if it has opened none."""
        for connection in self._bridge.live():
            if connection.agent == agent and connection.opened is not None:
                result = members(loads(connection.opened).get("result"))
                if result:
                    return options_of(result) or []
        return None

    async def _probe(self, agent: str) -> list[dict[str, Any]]:
        """Start the agent in an empty folder, open a session, and return its options."""
        user = self._bridge.environment.user
        with tempfile.TemporaryDirectory(prefix="sandbox-agent-") as folder:
            if user is not None:
                os.chown(folder, user.uid, user.gid)
            async with self._bridge.private(agent) as connection:
                try:
                    with anyio.fail_after(PROBE_SECONDS):
                        params = initialize_params("sandbox-agent", answers_questions=True)
                        answer = await _request(connection, 1, "initialize", params)
                        initialized = members(loads(answer or b"{}").get("result"))
                        version: object = members(initialized.get("agentInfo")).get("version")
                        if isinstance(version, str) and version:
                            self._versions[agent] = version
                        offered = offered_methods(initialized)
                        method = auth_method(
                            offered, usable_auth_methods(agent, self._bridge.environment.variables(agent))
                        )
                        if method is not None:
                            await _request(connection, 2, "authenticate", {"methodId": method})
                        answer = await _request(
                            connection, 3, "session/new", {"cwd": folder, "mcpServers": list[Any]()}
                        )
                except TimeoutError:
                    raise SandboxAgentError(
                        f"{agent} did not open a session in {PROBE_SECONDS:g} s"
                    ) from None
        return _options(agent, loads(answer or b"{}"))


def _options(agent: str, document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the options in a response to session/new, which may hold anything."""
    error: object = document.get("error")
    if error is not None:
        reason = agent_reason(str(members(error).get("message") or error), members(error).get("data"))
        raise SandboxAgentError(f"{agent} refused to open a session: {reason}")
    return options_of(members(document.get("result"))) or []


async def _request(
    connection: AgentConnection, request_id: int, method: str, params: dict[str, Any]
) -> bytes | None:
    request = dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
    return await connection.send(UNNAMED, read_head(request), request)


def modes_of(options: Sequence[dict[str, Any]]) -> AgentModesResponse:
    """Return the modes that an agent's options offer, in the form that clients of 0.1 read."""
    return AgentModesResponse(
        modes=[
            AgentModeInfo(
                id=str(choice["value"]),
                name=str(choice.get("name") or choice["value"]),
                description=str(choice.get("description") or ""),
            )
            for choice in _choices(find_category(options, "mode"))
        ]
    )


def models_of(options: Sequence[dict[str, Any]]) -> AgentModelsResponse:
    """Return the models that an agent's options offer. Its thought levels are the variants of each model."""
    model = find_category(options, "model")
    level = find_category(options, "thought_level")
    variants = [str(choice["value"]) for choice in _choices(level)] or None
    return AgentModelsResponse(
        models=[
            AgentModelInfo(
                id=str(choice["value"]),
                name=str(choice["name"]) if choice.get("name") else None,
                variants=variants,
                default_variant=_current(level) if variants else None,
            )
            for choice in _choices(model)
        ],
        default_model=_current(model),
    )


def _choices(option: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the choices of a select option, those in groups included."""
    found: list[dict[str, Any]] = []
    for entry in elements(members(option).get("options")):
        choice = members(entry)
        found += [members(each) for each in elements(choice.get("options"))] or [choice]
    return [choice for choice in found if isinstance(choice.get("value"), str)]


def _current(option: dict[str, Any] | None) -> str | None:
    value: object = members(option).get("currentValue")
    return value if isinstance(value, str) else None
