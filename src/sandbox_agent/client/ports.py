"""What a connection and a session need of each other, as small protocols."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from sandbox_agent.client.envelopes import Envelope
from sandbox_agent.client.journal import Journal
from sandbox_agent.wire.records import SessionEvent


class AgentConnection(Protocol):
    """What a session needs of the connection that carries it."""

    @property
    def agent(self) -> str: ...
    @property
    def connection_id(self) -> str: ...
    async def respond(
        self, raw_id: msgspec.Raw, session: ClientSession | None, *, result: object = None
    ) -> None: ...


class ClientSession(Protocol):
    """What a connection needs of a session that is bound to it.

    ``on_bound`` is called before the first update of the opened agent session is routed.
    ``on_agent_request`` returns at once; the response is sent later, with ``connection.respond``.
    """

    @property
    def journal(self) -> Journal: ...
    def on_bound(self, connection: AgentConnection, result: Mapping[str, Any]) -> None: ...
    def on_unbound(self, connection: AgentConnection) -> None: ...
    def on_state_update(self, line: bytes) -> None: ...
    def on_agent_request(self, connection: AgentConnection, head: Envelope, event: SessionEvent) -> None: ...
