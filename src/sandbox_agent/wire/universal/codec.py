"""Events to JSON and back, and their time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from sandbox_agent.wire.jsonrpc import loads
from sandbox_agent.wire.universal import events

__all__ = ["decode_event", "encode_event", "event_time"]

_DATA: dict[str, type[events.EventData]] = {
    "session.started": events.SessionStartedData,
    "session.ended": events.SessionEndedData,
    "turn.started": events.TurnEventData,
    "turn.ended": events.TurnEventData,
    "item.started": events.ItemEventData,
    "item.delta": events.ItemDeltaData,
    "item.completed": events.ItemEventData,
    "error": events.ErrorData,
    "permission.requested": events.PermissionEventData,
    "permission.resolved": events.PermissionEventData,
    "question.requested": events.QuestionEventData,
    "question.resolved": events.QuestionEventData,
    "agent.unparsed": events.AgentUnparsedData,
}
# Year 9999, the last that RFC 3339 can write.
_LAST_MS = 253_402_300_799_999

_encoder = msgspec.json.Encoder()


class _Wire(msgspec.Struct):
    """UniversalEvent as it comes: the type says which struct the data is."""

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


def encode_event(event: events.UniversalEvent) -> bytes:
    """Return the event as one line of JSON, lone surrogates and huge numbers included."""
    try:
        return _encoder.encode(event)
    except (UnicodeEncodeError, OverflowError):
        return json.dumps(msgspec.to_builtins(event), separators=(",", ":")).encode()


def decode_event(data: bytes) -> events.UniversalEvent:
    """Read an event; data of a type, or with parts, that this version doesn't know stays a dict.

    Raises:
        InvalidEnvelopeError: it is no JSON.
        msgspec.ValidationError: it is no event.
    """
    wire = msgspec.convert(loads(data), _Wire)
    kind = _DATA.get(wire.type)
    value = wire.data
    if kind is not None:
        try:
            value = msgspec.convert(value, kind)
        except msgspec.ValidationError:
            value = wire.data
    return events.UniversalEvent(
        wire.event_id,
        wire.sequence,
        wire.time,
        wire.session_id,
        wire.source,
        wire.synthetic,
        cast("events.EventType", wire.type),  # a newer server may know more
        value,
        wire.native_session_id,
        wire.raw,
    )


def event_time(time_ms: int) -> str:
    """Return milliseconds since the epoch as RFC 3339 in UTC; absurd values become the nearest that fits."""
    seconds, milliseconds = divmod(min(max(time_ms, 0), _LAST_MS), 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"
