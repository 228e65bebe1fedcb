"""Session records and events: what a persist driver keeps (seeds 001 and 002)."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar, cast

import msgspec

from sandbox_agent.wire.jsonrpc import loads

__all__ = ["ListPage", "Sender", "SessionEvent", "SessionRecord"]

T = TypeVar("T")
Sender = Literal["client", "agent"]


class SessionRecord(msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True):
    """A session as it is kept; field names on the wire are those of the TypeScript SDK.

    ``created_at`` and ``destroyed_at`` are milliseconds since the epoch. ``session_init`` is the
    ``session/new`` params (cwd, mcpServers), ``config_options`` and ``modes`` are as ACP gives them.
    """

    id: str
    agent: str
    agent_session_id: str
    last_connection_id: str
    created_at: int
    destroyed_at: int | None = None
    sandbox_id: str | None = None
    session_init: dict[str, Any] | None = None
    config_options: list[dict[str, Any]] | None = None
    modes: dict[str, Any] | None = None


class SessionEvent:
    """One JSON-RPC envelope of a session, as it is kept.

    The envelope is held as the bytes that came; ``payload`` decodes them when first asked.

    Attributes:
        id: unique over all events of a store.
        event_index: position in its session, contiguous from 1; 0 before the store allocated one.
        session_id: the local session id.
        created_at: milliseconds since the epoch.
        connection_id: the connection that carried it.
        sender: "client" or "agent".
        payload_json: the envelope as UTF-8 JSON bytes, one line.
    """

    __slots__ = (
        "_payload",
        "connection_id",
        "created_at",
        "event_index",
        "id",
        "payload_json",
        "sender",
        "session_id",
    )

    def __init__(
        self,
        id: str,  # noqa: A002 - the contract's name
        event_index: int,
        session_id: str,
        created_at: int,
        connection_id: str,
        sender: Sender,
        payload_json: bytes,
    ) -> None:
        self.id = id
        self.event_index = event_index
        self.session_id = session_id
        self.created_at = created_at
        self.connection_id = connection_id
        self.sender: Sender = sender
        self.payload_json = payload_json
        self._payload: dict[str, Any] | None = None

    @property
    def payload(self) -> dict[str, Any]:
        """The envelope as a dict."""
        if self._payload is None:
            self._payload = cast("dict[str, Any]", loads(self.payload_json))
        return self._payload

    def _key(self) -> tuple[object, ...]:
        return (
            self.id,
            self.event_index,
            self.session_id,
            self.created_at,
            self.connection_id,
            self.sender,
            self.payload,
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SessionEvent) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((self.id, self.event_index, self.session_id))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(id={self.id!r}, event_index={self.event_index}, "
            f"session_id={self.session_id!r}, sender={self.sender!r})"
        )


class ListPage(msgspec.Struct, Generic[T], frozen=True):
    """A page of a listing: its items, and the cursor of the next page or None at the end."""

    items: list[T]
    next_cursor: str | None = None
