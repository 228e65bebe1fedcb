"""Events and their data, one struct per kind (openapi-0.1-sessions.json: UniversalEvent)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import msgspec

from sandbox_agent.wire.universal.items import UniversalItem

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


class _Data(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
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


class UniversalEvent(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One event of a session.

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
    type: EventType
    data: EventData
    native_session_id: str | None = None
    raw: Any = msgspec.UNSET
