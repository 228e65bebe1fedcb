"""Universal events: one event format for the sessions of all agents (openapi-0.1-sessions.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, cast

import msgspec

from sandbox_agent.wire.jsonrpc import loads
from sandbox_agent.wire.serial import Serializable, short_repr, to_time

ItemKind: TypeAlias = Literal["message", "tool_call", "tool_result", "system", "status", "unknown"]
ItemRole: TypeAlias = Literal["user", "assistant", "system", "tool"]
ItemStatus: TypeAlias = Literal["in_progress", "completed", "failed"]
FileAction: TypeAlias = Literal["read", "write", "patch"]
ReasoningVisibility: TypeAlias = Literal["public", "private"]


class _Part(Serializable, msgspec.Struct, frozen=True, tag_field="type", omit_defaults=True):
    pass


class TextPart(_Part, frozen=True, tag="text"):
    """Text, usually Markdown."""

    type: ClassVar[Literal["text"]] = "text"
    text: str


class JsonPart(_Part, frozen=True, tag="json"):
    """Any JSON value that no other part represents."""

    type: ClassVar[Literal["json"]] = "json"
    json: Any


class ToolCallPart(_Part, frozen=True, tag="tool_call"):
    """A tool call; ``arguments`` is JSON in a string."""

    type: ClassVar[Literal["tool_call"]] = "tool_call"
    name: str
    arguments: str
    call_id: str


class ToolResultPart(_Part, frozen=True, tag="tool_result"):
    """The output of a tool call, as text."""

    type: ClassVar[Literal["tool_result"]] = "tool_result"
    call_id: str
    output: str


class FileRefPart(_Part, frozen=True, tag="file_ref"):
    """A file that was read, written or patched; ``diff`` is a unified diff."""

    type: ClassVar[Literal["file_ref"]] = "file_ref"
    path: str
    action: FileAction
    diff: str | None = None


class ReasoningPart(_Part, frozen=True, tag="reasoning"):
    """The reasoning of the agent."""

    type: ClassVar[Literal["reasoning"]] = "reasoning"
    text: str
    visibility: ReasoningVisibility = msgspec.field(default_factory=lambda: "public")


class ImagePart(_Part, frozen=True, tag="image"):
    """An image; ``path`` is a path, a URI, or a ``data:`` URI with its content."""

    type: ClassVar[Literal["image"]] = "image"
    path: str
    mime: str | None = None


class StatusPart(_Part, frozen=True, tag="status"):
    """A status: the name and the new value of what changed."""

    type: ClassVar[Literal["status"]] = "status"
    label: str
    detail: str | None = None


ContentPart: TypeAlias = (
    TextPart | JsonPart | ToolCallPart | ToolResultPart | FileRefPart | ReasoningPart | ImagePart | StatusPart
)


class UniversalItem(Serializable, msgspec.Struct, frozen=True, omit_defaults=True):
    """An item of a session: a message, a tool call, its result, or a status.

    Attributes:
        item_id: unique in its session.
        kind: the kind of the item.
        content: its parts; complete when the item is completed.
        status: in_progress, completed or failed.
        role: the author.
        native_item_id: the agent's own id (ACP's messageId or toolCallId).
        parent_id: the item to which it belongs: the call of a result, or the caller of a sub-agent.
    """

    item_id: str
    kind: ItemKind
    content: list[ContentPart]
    status: ItemStatus
    role: ItemRole | None = None
    native_item_id: str | None = None
    parent_id: str | None = None


EventSource: TypeAlias = Literal["agent", "daemon"]
EventType: TypeAlias = Literal[
    "session.started",
    "session.ended",
    "turn.started",
    "turn.ended",
    "item.started",
    "item.delta",
    "item.completed",
    "error",
    "permission.requested",
    "permission.resolved",
    "question.requested",
    "question.resolved",
    "agent.unparsed",
]
PermissionStatus: TypeAlias = Literal["requested", "accept", "accept_for_session", "reject"]
QuestionStatus: TypeAlias = Literal["requested", "answered", "rejected"]
SessionEndReason: TypeAlias = Literal["completed", "error", "terminated"]
TerminatedBy: TypeAlias = Literal["agent", "daemon"]
TurnPhase: TypeAlias = Literal["started", "ended"]


class _Data(Serializable, msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    pass


class SessionStartedData(_Data, frozen=True):
    """The session was created; ``metadata`` has its settings."""

    metadata: Any = None


class StderrOutput(_Data, frozen=True):
    """The output of the agent's process to stderr."""

    truncated: bool
    head: str | None = None
    tail: str | None = None
    total_lines: int | None = None


class SessionEndedData(_Data, frozen=True):
    """The session has ended."""

    reason: SessionEndReason
    terminated_by: TerminatedBy
    message: str | None = None
    exit_code: int | None = None
    stderr: StderrOutput | None = None


class TurnEventData(_Data, frozen=True):
    """A turn starts or ends; at the end, ``metadata`` has its stop_reason, usage and error."""

    phase: TurnPhase
    turn_id: str | None = None
    metadata: Any = None


class ItemEventData(_Data, frozen=True):
    """An item starts or is completed."""

    item: UniversalItem


class ItemDeltaData(_Data, frozen=True):
    """More of an item's text."""

    item_id: str
    delta: str
    native_item_id: str | None = None


class ErrorData(_Data, frozen=True):
    """Something failed; ``code`` is a JSON-RPC code or a name of the HTTP contract."""

    message: str
    code: str | None = None
    details: Any = None


class PermissionEventData(_Data, frozen=True):
    """A permission is requested, granted or rejected.

    Attributes:
        permission_id: unique in its session.
        action: a description of what the agent wants to do.
        status: requested, or the answer.
        metadata: of a request: request_id (ACP's), tool_call_id, item_id, kind, options, raw_input, paths; of
            an answer: outcome, option_id, answered_by.
    """

    permission_id: str
    action: str
    status: PermissionStatus
    metadata: Any = None


class QuestionEventData(_Data, frozen=True):
    """A question of the agent to the user, or its answer."""

    question_id: str
    prompt: str
    options: list[str]
    status: QuestionStatus
    response: str | None = None


class AgentUnparsedData(_Data, frozen=True):
    """A message of the agent that cannot be understood; ``raw_hash`` is the SHA-256 of the event's raw."""

    error: str
    location: str
    raw_hash: str | None = None


EventData: TypeAlias = (
    SessionStartedData
    | SessionEndedData
    | TurnEventData
    | ItemEventData
    | ItemDeltaData
    | ErrorData
    | PermissionEventData
    | QuestionEventData
    | AgentUnparsedData
)

EVENT_DATA_TYPES: Mapping[str, type[EventData]] = MappingProxyType(
    {
        "session.started": SessionStartedData,
        "session.ended": SessionEndedData,
        "turn.started": TurnEventData,
        "turn.ended": TurnEventData,
        "item.started": ItemEventData,
        "item.delta": ItemDeltaData,
        "item.completed": ItemEventData,
        "error": ErrorData,
        "permission.requested": PermissionEventData,
        "permission.resolved": PermissionEventData,
        "question.requested": QuestionEventData,
        "question.resolved": QuestionEventData,
        "agent.unparsed": AgentUnparsedData,
    }
)
"""The struct of an event's data, by the event's type."""


if TYPE_CHECKING:
    # The defaults make ``UniversalEvent`` alone an event of any type.
    from typing import Generic

    from typing_extensions import TypeVar

    TypeT = TypeVar("TypeT", bound=EventType, default=EventType, covariant=True)
    DataT = TypeVar("DataT", bound=EventData, default=EventData, covariant=True)

    class _Typed(Generic[TypeT, DataT]):
        """Where type checkers see the type and its data."""
else:
    TypeT, DataT = EventType, EventData

    class _Typed:
        """At run time, an event of some type is of the same class as all."""

        __slots__ = ()

        def __class_getitem__(cls, _parameters: object) -> type:
            return cls


class UniversalEvent(
    Serializable, msgspec.Struct, _Typed[TypeT, DataT], frozen=True, omit_defaults=True, gc=False
):
    """One event of a session. An ``AgentEvent`` is one whose data type checkers know once they know its type.

    Attributes:
        event_id: unique over all sessions; made from session id and sequence.
        sequence: contiguous from 1 in its session.
        time: RFC 3339 in UTC, with milliseconds.
        session_id: the server's id of the session.
        source: the origin of the event: the agent, or the server ("daemon").
        synthetic: whether the server created the event for something that the agent did not report.
        type: what happened.
        data: the struct of the type; a dict if the type is unknown.
        native_session_id: the agent's own id of the session.
        raw: the envelope from which it was made, if requested or not understood.
    """

    event_id: str
    sequence: int
    time: str
    session_id: str
    source: EventSource
    synthetic: bool
    type: TypeT
    data: DataT
    native_session_id: str | None = None
    raw: Any = msgspec.UNSET

    @property
    def created_time(self) -> datetime:
        """``time`` as a datetime in UTC."""
        return datetime.fromisoformat(self.time)

    @classmethod
    def from_dict(cls, event: Mapping[str, Any]) -> AgentEvent:
        """Return the event of a dict that ``to_dict`` or a server's JSON has.

        Raises:
            msgspec.ValidationError: the dict is not an event.
        """
        return _read(msgspec.convert(event, _Wire))

    def __repr__(self) -> str:
        """Return the place and the type of the event; its data may be long."""
        return short_repr(self, "session_id", "sequence", "type")


if TYPE_CHECKING:
    AgentEvent: TypeAlias = (
        UniversalEvent[Literal["session.started"], SessionStartedData]
        | UniversalEvent[Literal["session.ended"], SessionEndedData]
        | UniversalEvent[Literal["turn.started", "turn.ended"], TurnEventData]
        | UniversalEvent[Literal["item.started", "item.completed"], ItemEventData]
        | UniversalEvent[Literal["item.delta"], ItemDeltaData]
        | UniversalEvent[Literal["error"], ErrorData]
        | UniversalEvent[Literal["permission.requested", "permission.resolved"], PermissionEventData]
        | UniversalEvent[Literal["question.requested", "question.resolved"], QuestionEventData]
        | UniversalEvent[Literal["agent.unparsed"], AgentUnparsedData]
    )
else:
    AgentEvent = UniversalEvent

_encoder = msgspec.json.Encoder()


class _Wire(msgspec.Struct):
    """An event whose data is not decoded yet: its type selects the struct of the data."""

    event_id: str
    sequence: int
    time: str
    session_id: str
    source: Any
    synthetic: bool
    type: str
    data: Any
    native_session_id: str | None = None
    raw: Any = msgspec.UNSET


def encode_event(event: UniversalEvent) -> bytes:
    """Encode an event as one line of JSON; lone surrogates and huge numbers are allowed."""
    try:
        return _encoder.encode(event)
    except (UnicodeEncodeError, OverflowError):
        return json.dumps(msgspec.to_builtins(event), separators=(",", ":")).encode()


def decode_event(data: bytes) -> AgentEvent:
    """Decode an event. Data of an unknown type, or with unknown parts, stays a dict.

    Raises:
        InvalidEnvelopeError: the data is not valid JSON.
        msgspec.ValidationError: the JSON is not an event.
    """
    return _read(msgspec.convert(loads(data), _Wire))


def _read(wire: _Wire) -> AgentEvent:
    kind = EVENT_DATA_TYPES.get(wire.type)
    value = wire.data
    if kind is not None:
        try:
            value = msgspec.convert(value, kind)
        except msgspec.ValidationError:
            value = wire.data
    event = UniversalEvent(
        wire.event_id,
        wire.sequence,
        wire.time,
        wire.session_id,
        wire.source,
        wire.synthetic,
        cast("EventType", wire.type),  # a newer server may know more
        value,
        wire.native_session_id,
        wire.raw,
    )
    return cast("AgentEvent", event)


def event_time(time_ms: int) -> str:
    """Format milliseconds since the epoch as RFC 3339 in UTC; values out of range are clamped."""
    return to_time(time_ms).isoformat(timespec="milliseconds").replace("+00:00", "Z")
