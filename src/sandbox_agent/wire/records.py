"""Session records and events, as persist drivers store them."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, TypeVar, cast

import msgspec

from sandbox_agent.wire.jsonrpc import dumps, loads
from sandbox_agent.wire.serial import Serializable, short_repr, to_time

if TYPE_CHECKING:
    from sandbox_agent.wire.acp import SessionUpdate
    from sandbox_agent.wire.requests import PermissionRequest, QuestionRequest

RESTORED_METHOD = "_sandbox_agent/session_restored"

T = TypeVar("T")
Sender = Literal["client", "agent"]


class _CamelNames:
    """Lets drivers use the attributes by their names in the TypeScript SDK, too."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            attribute = re.sub("[A-Z]", lambda match: f"_{match[0].lower()}", name)
            if attribute == name or attribute not in type(self).__struct_fields__:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(self, attribute)


class SessionRecord(
    _CamelNames, Serializable, msgspec.Struct, kw_only=True, rename="camel", omit_defaults=True
):
    """A stored session; the field names on the wire are those of the TypeScript SDK.

    ``created_at`` and ``destroyed_at`` are milliseconds since the epoch. ``session_init`` is the
    ``session/new`` params (cwd, mcpServers), ``config_options`` and ``modes`` are those of ACP.
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

    @property
    def created_time(self) -> datetime:
        """When the session was created, in UTC."""
        return to_time(self.created_at)

    @property
    def destroyed_time(self) -> datetime | None:
        """When the session was destroyed, in UTC, or None."""
        return None if self.destroyed_at is None else to_time(self.destroyed_at)

    def __repr__(self) -> str:
        """Return the ids; what the session was created with may hold secrets."""
        return short_repr(self, "id", "agent", "agent_session_id", "created_at", "destroyed_at")


class SessionRestored(
    Serializable, msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True
):
    """The session was restored in another connection; stored in its history as an event of the client.

    Attributes:
        method: "session/resume" or "session/load" of the agent; "replay" is a new agent session that
            receives the recent history before the next prompt.
        replayed: the number of the newest events in the replay. After "session/load" these are events that
            the agent had lost.
        left_out: the number of older events that are not in the replay, which the agent may not know.
        verified: whether the last messages of the user and the agent are in the history that the agent
            sent when it loaded the session; None if unknown: it sent no history, or received a replay.
        applied: the chosen settings that were set again and confirmed, by category ("model", "mode",
            "thought_level") or config option id.
        failed: the settings that could not be confirmed, with the reasons; prompts wait until they are.
        agent: the new agent, if the session was handed over to another one.
        from_agent: the previous agent, in that case.
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
        """Return the params of the event, without absent members."""
        return {
            "method": self.method,
            "replayed": self.replayed,
            "leftOut": self.left_out,
            **cast("dict[str, Any]", msgspec.to_builtins(self)),
        }


class _RestoredEnvelope(msgspec.Struct, frozen=True):
    params: SessionRestored


class SessionEvent(Serializable):
    """One stored JSON-RPC envelope of a session.

    The envelope is held as the received bytes; ``payload`` decodes them on first use.

    Attributes:
        id: unique over all events of a store.
        event_index: position in its session, contiguous from 1; 0 until the store allocates one.
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
    def update(self) -> SessionUpdate | SessionRestored | PermissionRequest | QuestionRequest | None:
        """What the envelope says, typed; None if its kind is not known.

        It is the update of a session/update, SessionRestored, or the agent's request to the user, with the
        ``id`` that ``respond_permission`` and ``respond_question`` take.
        """
        if RESTORED_METHOD.encode() in self.payload_json and self.payload.get("method") == RESTORED_METHOD:
            # An agent may use the name for something else.
            with contextlib.suppress(msgspec.ValidationError):
                return msgspec.convert(self.payload, _RestoredEnvelope).params
        # Programs that never use updates need not import their types.
        from sandbox_agent.wire.requests import may_be_request, read_request

        if may_be_request(self.payload_json) and (request := read_request(self)) is not None:
            return request
        from sandbox_agent.wire.acp import read_update

        return read_update(self.payload_json)

    @property
    def created_time(self) -> datetime:
        """When the event was stored, in UTC."""
        return to_time(self.created_at)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        from sandbox_agent.wire.transcript import event_html

        return event_html(self)

    def _repr_markdown_(self) -> str:
        """Return the same as Markdown."""
        from sandbox_agent.wire.transcript import event_markdown

        return event_markdown(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the event in the shape of the TypeScript SDK, with the envelope as ``payload``."""
        return {name: getattr(self, attribute) for name, attribute in _EVENT_NAMES.items()}

    @classmethod
    def from_dict(cls, event: Mapping[str, Any]) -> SessionEvent:
        """Return the event of a dict that ``to_dict`` has returned.

        Raises:
            msgspec.ValidationError: the dict is not an event.
        """
        fields = msgspec.convert(event, _EventFields)
        return cls(
            fields.id,
            fields.event_index,
            fields.session_id,
            fields.created_at,
            fields.connection_id,
            fields.sender,
            dumps(fields.payload),
        )

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            # msgspec.json.encode asks for the names in __dataclass_fields__.
            attribute = _EVENT_NAMES.get(name)
            if attribute is None or attribute == name:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            return getattr(self, attribute)

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


_EVENT_NAMES = {
    "id": "id",
    "eventIndex": "event_index",
    "sessionId": "session_id",
    "createdAt": "created_at",
    "connectionId": "connection_id",
    "sender": "sender",
    "payload": "payload",
}


class _EventFields(msgspec.Struct, rename="camel"):
    id: str
    event_index: int
    session_id: str
    created_at: int
    connection_id: str
    sender: Sender
    payload: dict[str, Any]


def _fields() -> dict[str, object]:
    shape = dataclasses.make_dataclass("_Shape", _EVENT_NAMES)
    return {field.name: field for field in dataclasses.fields(shape)}


# msgspec writes any object that has the fields of a dataclass, and this one as the TypeScript SDK does.
SessionEvent.__dataclass_fields__ = _fields()  # pyright: ignore[reportAttributeAccessIssue]


class ListPage(Serializable, msgspec.Struct, Generic[T], frozen=True):
    """A page of a listing: its items, and the cursor of the next page or None at the end."""

    items: list[T]
    next_cursor: str | None = None


class ListPageRequest(_CamelNames, Serializable, msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What a driver's ``list_sessions`` is called with, if it takes a request instead of keywords.

    Attributes:
        limit: the maximum number of items; None, or an invalid number, is the driver's default.
        cursor: the cursor of an earlier page; None begins with the oldest.
    """

    limit: int | None = None
    cursor: str | None = None


class ListEventsRequest(ListPageRequest, frozen=True, kw_only=True, rename="camel"):
    """What a driver's ``list_events`` is called with, if it takes a request instead of keywords.

    Attributes:
        session_id: the session of the events.
    """

    session_id: str
