"""What the server says about an agent: its credentials, and the meaning of its modes."""

from __future__ import annotations

import logging
from typing import TypeVar

import httpx2
import msgspec

from sandbox_agent.client.health import HealthCheck
from sandbox_agent.client.http import Http, describe, quote_segment
from sandbox_agent.engine.handshake import credentials_hint
from sandbox_agent.engine.permissions import AgentModes, PermissionMode
from sandbox_agent.errors import AcpRpcError, SandboxAgentError
from sandbox_agent.wire.api import AuthMethodInfo
from sandbox_agent.wire.jsonrpc import members

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

T = TypeVar("T")


class KnownModes:
    """What the modes of a server's agents mean. It is fetched before a permission mode is used."""

    def __init__(self, http: Http, health: HealthCheck) -> None:
        self._http = http
        self._health = health
        self._modes: dict[str, AgentModes] = {}

    def get(self, agent: str) -> AgentModes | None:
        """Return what was loaded for an agent, or None: then what this SDK knows of it counts."""
        return self._modes.get(agent)

    async def load(self, agent: str) -> None:
        """Fetch what the agent's modes mean, unless it is known; older servers do not say."""
        if agent not in self._modes:
            await self._health.wait_ready()
            names = await _fetch(self._http, agent, "permissionModes", dict[PermissionMode, tuple[str, ...]])
            if names is not None:
                # The server lists no others of an agent that never asks.
                self._modes[agent] = AgentModes(names, never_asks=set(names) == {"allow"})


async def auth_methods(http: Http, agent: str) -> list[AuthMethodInfo] | None:
    """Fetch the ways to give an agent its credentials; None if the server does not say."""
    return await _fetch(http, agent, "authMethods", list[AuthMethodInfo])


async def _fetch(http: Http, agent: str, member: str, kind: type[T]) -> T | None:
    try:
        value: object = members(await http.json("GET", f"/v1/agents/{quote_segment(agent)}")).get(member)
        return None if value is None else msgspec.convert(value, kind)
    except (SandboxAgentError, httpx2.TransportError, msgspec.ValidationError) as error:
        logger.info("%s of %s is not known: %s", member, agent, describe(error))
        return None


async def add_credentials_hint(http: Http, agent: str, error: AcpRpcError) -> None:
    """Name the variables that hold the agent's credentials, in an error that says that it has none."""
    if error.code == AcpRpcError.AUTH_REQUIRED:
        hint = credentials_hint(await _fetch(http, agent, "credentialVariables", list[list[str]]) or ())
        if hint:
            error.add_hint(hint)
