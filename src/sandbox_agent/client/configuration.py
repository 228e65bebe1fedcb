"""The MCP servers and skills that are configured for folders of the sandbox: ``sdk.config``."""

from __future__ import annotations

import os
from collections.abc import Sequence

import httpx2
import msgspec

from sandbox_agent.client.files import RemotePath
from sandbox_agent.client.health import HealthCheck
from sandbox_agent.client.http import HELPER_READ_TIMEOUT, Http
from sandbox_agent.client.server_sessions.calls import SessionCalls, decode, is_of_network
from sandbox_agent.errors import NotFoundError, SandboxAgentError, ServerSessionNotFoundError
from sandbox_agent.wire.configuration import McpServerConfig, SkillsConfig, SkillSource, parse_mcp_server

_MCP = ("mcp", "mcpName")
_SKILLS = ("skills", "skillName")


class FolderConfig:
    """Configures MCP servers and skills for the sessions in a folder; see ``SandboxAgent.config``.

    Sessions get what is configured for their working directory when they are opened. A folder is an absolute
    path in the sandbox, or one below the home of the server's user. Every method waits until the server is
    healthy, is repeated while the network fails, and raises:

    * ``InvalidRequestError``: a value is invalid, or the folder's file is damaged.
    * ``PermissionDeniedError``: the server's user may not do that, or ``--fs-root`` excludes the folder.
    * ``ConnectionLostError``: the server can't be reached.
    """

    def __init__(self, http: Http, health: HealthCheck) -> None:
        self._calls = SessionCalls(http, health)

    async def get_mcp(self, directory: RemotePath, name: str) -> McpServerConfig:
        """Return an MCP server of a folder.

        Raises:
            NotFoundError: the folder has no MCP server of that name.
        """
        answer = await self._send("GET", _MCP, directory, name)
        try:
            return parse_mcp_server(answer.content)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise SandboxAgentError(
                f"GET /v1/config/mcp: unexpected response ({error}): is that a sandbox-agent server?"
            ) from error

    async def set_mcp(self, directory: RemotePath, name: str, server: McpServerConfig) -> None:
        """Configure an MCP server for the sessions in a folder, which is made if necessary.

        Args:
            directory: the folder.
            name: the server's name. One that the client passes to a session under this name takes its place.
            server: how it is started or reached.
        """
        await self._send("PUT", _MCP, directory, name, server)

    async def delete_mcp(self, directory: RemotePath, name: str) -> None:
        """Remove an MCP server from a folder's configuration. If it is not there, this has no effect."""
        await self._send("DELETE", _MCP, directory, name)

    async def get_skills(self, directory: RemotePath, name: str) -> Sequence[SkillSource]:
        """Return the sources of skills of a folder.

        Raises:
            NotFoundError: the folder has no skills of that name.
        """
        answer = await self._send("GET", _SKILLS, directory, name)
        return decode(answer, SkillsConfig, "GET /v1/config/skills").sources

    async def set_skills(self, directory: RemotePath, name: str, sources: Sequence[SkillSource]) -> None:
        """Configure skills for the sessions in a folder, which is made if necessary.

        Args:
            directory: the folder.
            name: a name for these sources; the skills have names of their own.
            sources: where the skills come from.
        """
        await self._send("PUT", _SKILLS, directory, name, SkillsConfig(sources=list(sources)))

    async def delete_skills(self, directory: RemotePath, name: str) -> None:
        """Remove skills from a folder's configuration. If they are not there, this has no effect."""
        await self._send("DELETE", _SKILLS, directory, name)

    async def _send(
        self,
        method: str,
        kind: tuple[str, str],
        directory: RemotePath,
        name: str,
        body: msgspec.Struct | None = None,
    ) -> httpx2.Response:
        try:
            return await self._calls.send(
                method,
                f"/v1/config/{kind[0]}",
                params={"directory": os.fspath(directory), kind[1]: name},
                body=body,
                repeats=is_of_network,
                read_timeout=HELPER_READ_TIMEOUT,
            )
        except ServerSessionNotFoundError as error:  # the published server's word for it
            raise NotFoundError(
                f"not found: no {kind[0]} with the name {name!r} configured for {os.fspath(directory)}"
            ) from error
