"""What a connection and a session need of each other, as small protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from sandbox_agent.client.envelopes import Envelope
from sandbox_agent.client.journal import Journal
from sandbox_agent.wire.records import SessionEvent

__all__ = ["AgentConnection", "ClientSession"]


class AgentConnection(Protocol):
    """What a session needs of the connection that carries it."""

    @property
    def agent(self) -> str:
        """The agent's id."""
        ...

    @property
    def connection_id(self) -> str:
        """The id that records and events store."""
        ...

    async def respond(
        self, raw_id: msgspec.Raw, session: ClientSession | None, *, result: object = None
    ) -> None:
        """Send the response to one of the agent's requests."""
        ...


class ClientSession(Protocol):
    """What a connection needs of a session that is bound to it."""

    @property
    def journal(self) -> Journal:
        """Stores the session's envelopes."""
        ...

    def on_bound(self, connection: AgentConnection, result: Mapping[str, Any]) -> None:
        """Record the opened agent session; called before its first update is routed."""
        ...

    def on_unbound(self, connection: AgentConnection) -> None:
        """Handle the loss of the connection."""
        ...

    def on_state_update(self, line: bytes) -> None:
        """Record an update that changes the session's settings."""
        ...

    def on_agent_request(self, connection: AgentConnection, head: Envelope, event: SessionEvent) -> None:
        """Handle a request of the agent; the response is sent later, with ``connection.respond``."""
        ...
