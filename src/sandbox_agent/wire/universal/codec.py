"""Encode and decode events, and format their time."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, cast

import msgspec

from sandbox_agent.wire.jsonrpc import loads
from sandbox_agent.wire.universal import events
from sandbox_agent.wire.universal.events import EVENT_DATA_TYPES

# Year 9999, the last that RFC 3339 can write.
_LAST_MS = 253_402_300_799_999

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


def encode_event(event: events.UniversalEvent) -> bytes:
    """Encode an event as one line of JSON; lone surrogates and huge numbers are allowed."""
    try:
        return _encoder.encode(event)
    except (UnicodeEncodeError, OverflowError):
        return json.dumps(msgspec.to_builtins(event), separators=(",", ":")).encode()


def decode_event(data: bytes) -> events.UniversalEvent:
    """Decode an event. Data of an unknown type, or with unknown parts, stays a dict.

    Raises:
        InvalidEnvelopeError: the data is not valid JSON.
        msgspec.ValidationError: the JSON is not an event.
    """
    wire = msgspec.convert(loads(data), _Wire)
    kind = EVENT_DATA_TYPES.get(wire.type)
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
    """Format milliseconds since the epoch as RFC 3339 in UTC; values out of range are clamped."""
    seconds, milliseconds = divmod(min(max(time_ms, 0), _LAST_MS), 1000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{milliseconds:03d}Z"
