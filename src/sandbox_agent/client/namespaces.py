"""What the server offers, by topic: its sessions, files, processes and configuration."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from sandbox_agent.client.configuration import FolderConfig
from sandbox_agent.client.files import Files
from sandbox_agent.client.processes import Processes
from sandbox_agent.client.server_api import ServerApi
from sandbox_agent.client.server_sessions.api import ServerSessions
from sandbox_agent.client.server_sessions.streams import Message
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.wire.universal import AgentEvent


class Namespaces(ServerApi):
    """Base of SandboxAgent: the namespaces, and the calls of ``sessions`` that are on the client, too."""

    _tasks: TaskOwner
    _server_sessions: ServerSessions | None = None

    @property
    def sessions(self) -> ServerSessions:
        """The sessions that the server itself stores and drives."""
        if self._server_sessions is None:
            self._server_sessions = ServerSessions(self._http, self._health, self._tasks)
        return self._server_sessions

    @property
    def files(self) -> Files:
        """The files of the sandbox."""
        return Files(self._http, self._health)

    @property
    def processes(self) -> Processes:
        """The processes of the sandbox."""
        return Processes(self._http, self._health)

    @property
    def config(self) -> FolderConfig:
        """The MCP servers and skills that are configured for folders of the sandbox."""
        return FolderConfig(self._http, self._health)

    async def post_message(
        self,
        id: str,  # noqa: A002 - the contract's name
        message: Message,
        *,
        idempotency_key: str | None = None,
    ) -> str:
        """Send a message to a session of the server; this is ``sessions.post_message``."""
        return await self.sessions.post_message(id, message, idempotency_key=idempotency_key)

    def stream_events(
        self,
        id: str,  # noqa: A002 - the contract's name
        *,
        offset: int = 0,
        include_raw: bool = False,
        allow_gaps: bool = False,
    ) -> AsyncGenerator[AgentEvent]:
        """Iterate over the events of a session of the server; this is ``sessions.stream_events``."""
        return self.sessions.stream_events(id, offset=offset, include_raw=include_raw, allow_gaps=allow_gaps)
