"""The plain HTTP calls of a client: health, agents, connections."""

from __future__ import annotations

from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from sandbox_agent.client.health import HealthCheck
from sandbox_agent.client.http import HELPER_READ_TIMEOUT, Http, quote_segment
from sandbox_agent.client.server_sessions.calls import SessionCalls, decode, is_of_network, query
from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.wire.api import (
    AcpServerInfo,
    AcpServerListResponse,
    AgentId,
    AgentInfo,
    AgentListResponse,
    HealthResponse,
)

T = TypeVar("T")


def build_inspector_url(base_url: str, token: str | None = None) -> str:
    """Return the URL of a server's web inspector.

    Args:
        base_url: the server's URL.
        token: added to the URL if given, so that the page is signed in.
    """
    url = f"{base_url.rstrip('/')}/ui/"
    return f"{url}?token={quote(token, safe='')}" if token else url


class ServerApi:
    """A client's calls that are not about sessions; every call waits until the server is healthy."""

    _http: Http
    _health: HealthCheck

    async def _get(self, path: str, kind: type[T], **params: str | None) -> T:
        answer = await SessionCalls(self._http, self._health).send(
            "GET", path, params=params, repeats=is_of_network, read_timeout=HELPER_READ_TIMEOUT
        )
        return decode(answer, kind, f"GET {path}")

    async def get_health(self) -> HealthResponse:
        """Return the server's health document, without waiting for a healthy server."""
        return _convert(await self._health.probe(), HealthResponse, "/v1/health")

    async def list_agents(self, *, config: bool = False, no_cache: bool = False) -> list[AgentInfo]:
        """Return the agents that the server knows.

        Args:
            config: include their config options.
            no_cache: query the agents again instead of using the server's cache.
        """
        answer = await self._get("/v1/agents", AgentListResponse, **query(config=config, no_cache=no_cache))
        return answer.agents

    async def get_agent(self, agent: AgentId, *, config: bool = False, no_cache: bool = False) -> AgentInfo:
        """Return one agent.

        Raises:
            UnsupportedAgentError: the server does not know the agent.
        """
        path = f"/v1/agents/{quote_segment(agent)}"
        return await self._get(path, AgentInfo, **query(config=config, no_cache=no_cache))

    async def install_agent(
        self, agent: AgentId, *, reinstall: bool = False, **options: Any
    ) -> dict[str, Any]:
        """Install an agent on the server and return what was installed.

        Args:
            agent: the agent's id.
            reinstall: install the agent even if it is installed already.
            **options: other members of the request body (``agentVersion``, ``agentProcessVersion``).

        Raises:
            InstallFailedError: the installation failed.
        """
        await self._health.wait_ready()
        body = {**({"reinstall": True} if reinstall else {}), **options}
        return await self._http.json("POST", f"/v1/agents/{quote_segment(agent)}/install", body=body)

    async def list_acp_servers(self, *, usage: bool = False) -> list[AcpServerInfo]:
        """Return the server's live connections.

        Args:
            usage: include the memory and processor time of each agent's processes.
        """
        return (await self._get("/v1/acp", AcpServerListResponse, **query(usage=usage))).servers


def _convert(value: object, kind: type[T], path: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise SandboxAgentError(
            f"GET {path}: unexpected response ({error}): is that a sandbox-agent server?"
        ) from error
