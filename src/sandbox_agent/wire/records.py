"""Session records and events: what a persist driver keeps (seeds 001 and 002)."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, cast

import msgspec

from sandbox_agent.wire.jsonrpc import loads

if TYPE_CHECKING:
    from sandbox_agent.wire.acp import SessionUpdate

__all__ = ["RESTORED_METHOD", "ListPage", "Sender", "SessionEvent", "SessionRecord", "SessionRestored"]

RESTORED_METHOD = "_sandbox_agent/session_restored"

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


class SessionRestored(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The session went on in another connection; kept in its history as an event of the client's.

    Attributes:
        method: by which means: "session/resume" and "session/load" are the agent's own; "replay" is a new
            agent session, with the recent history in front of the next prompt.
        replayed: how many of the newest events the replay covers. After "session/load" those are what the
            agent did not tell again: it had lost them.
        left_out: how many older ones it does not, which the agent may not know.
        verified: whether the user's and the agent's last words are in what the agent told again when it
            loaded the session; None where that can't be known: it told nothing, or was told the replay.
        applied: the chosen settings that were set again and confirmed, by category ("model", "mode",
            "thought_level") or config option id.
        failed: those that could not be confirmed, and why; no prompt is sent until they are.
        agent: the agent that has it now, where it was handed over to another one.
        from_agent: the one that had it before, then.
    """

    name: ClassVar[str] = "session.restored"

    session_id: str
    method: str = "replay"
    replayed: int = 0
    left_out: int = 0
    verified: bool | None = None
    applied: dict[str, Any] | None = None
    failed: dict[str, str] | None = None
    agent: str | None = None
    from_agent: str | None = None

    def params(self) -> dict[str, Any]:
        """Return it as the event has it: names of the wire, and only what says something."""
        return {
            "method": self.method,
            "replayed": self.replayed,
            "leftOut": self.left_out,
            **cast("dict[str, Any]", msgspec.to_builtins(self)),
        }


class _RestoredEnvelope(msgspec.Struct, frozen=True):
    params: SessionRestored


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

    id: str
    event_index: int
    session_id: str
    created_at: int
    connection_id: str
    sender: Sender
    payload_json: bytes
    _payload: dict[str, Any] | None

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
        self.sender = sender
        self.payload_json = payload_json
        self._payload = None

    def copy(self) -> SessionEvent:
        """Return an event that shares no state with this one."""
        return SessionEvent(
            self.id,
            self.event_index,
            self.session_id,
            self.created_at,
            self.connection_id,
            self.sender,
            self.payload_json,
        )

    @property
    def payload(self) -> dict[str, Any]:
        """The envelope as a dict."""
        if self._payload is None:
            self._payload = cast("dict[str, Any]", loads(self.payload_json))
        return self._payload

    @property
    def update(self) -> SessionUpdate | SessionRestored | None:
        """A typed view of the session update that it carries, SessionRestored, or None for the rest."""
        if RESTORED_METHOD.encode() in self.payload_json and self.payload.get("method") == RESTORED_METHOD:
            # An agent may use the name for something else.
            with contextlib.suppress(msgspec.ValidationError):
                return msgspec.convert(self.payload, _RestoredEnvelope).params
        # Records are kept by programs that never look at an update: they need not load its views.
        from sandbox_agent.wire.acp import read_update

        return read_update(self.payload_json)

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
