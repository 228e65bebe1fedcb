"""``/v1/sessions/{id}/events``: a session's events by sequence, as pages and as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.engine.sse import encode_event
from sandbox_agent.errors import GoneError, InvalidRequestError, ServerSessionNotFoundError, StreamError
from sandbox_agent.persist.store.rows import EventRow, SessionRow
from sandbox_agent.server.http.event_schema import EVENT_DATA_TYPES
from sandbox_agent.server.http.operations import (
    MAX_NUMBER,
    Answer,
    Operation,
    Parameter,
    as_number,
    header,
    number,
)
from sandbox_agent.server.routes.session_helpers import (
    EVENT_STREAM_SCHEMA,
    INCLUDE_RAW,
    SESSION_ID,
    found_row,
    include_raw,
    session_id_of,
)
from sandbox_agent.server.state import JsonResponse, state_of
from sandbox_agent.server.streams.response import EVENT_STREAM, EventStream
from sandbox_agent.server.streams.session_views import RawView
from sandbox_agent.server.streams.viewers import Viewer
from sandbox_agent.wire.jsonrpc import dumps

__all__ = ["OPERATIONS"]

DEFAULT_LIMIT = 1000
MAX_LIMIT = 10_000
# A page ends where it is over this, whatever its limit; with one event at least.
PAGE_BYTES = 4 * 1024 * 1024


async def get_events(request: Request) -> Response:
    """Return a page of events."""
    offset = number(request, "offset")
    limit = min(number(request, "limit", DEFAULT_LIMIT) or 0, MAX_LIMIT)
    raw = include_raw(request)
    row = await found_row(request)
    after = _checked(row, offset)
    events: list[EventRow] = []
    if limit and after < row.last_sequence:
        events = await state_of(request).store.events(
            row.key, after=after, limit=limit, max_bytes=PAGE_BYTES, include_raw=raw
        )
        if not events or events[0].sequence > after + 1:
            # expired or deleted since the session was looked at
            _checked(await found_row(request), after)
    return JsonResponse(_page(events, events[-1].sequence if events else after, row.last_sequence))


def _checked(row: SessionRow, offset: int | None) -> int:
    """Return the sequence that the page begins behind.

    Raises:
        GoneError: what follows the offset is not kept any more, or the offset is of another log.
    """
    if offset is None:
        return row.first_sequence - 1
    extent: dict[str, Any] = {
        "sessionId": row.session_id,
        "firstSequence": row.first_sequence,
        "lastSequence": row.last_sequence,
    }
    if offset + 1 < row.first_sequence:
        raise GoneError(
            f"gone: events {offset + 1} to {row.first_sequence - 1} are not kept any more; "
            f"go on with offset={row.first_sequence - 1}",
            **extent,
            missingFrom=offset + 1,
            missingTo=row.first_sequence - 1,
        )
    if offset > row.last_sequence:
        raise GoneError(
            f"gone: offset {offset} is ahead of this session's log, which ends at {row.last_sequence}: it "
            f"belongs to another session of that name; begin again with offset={row.first_sequence - 1}",
            **extent,
        )
    return offset


def _page(events: Sequence[EventRow], cursor: int, last: int) -> bytes:
    # the stored bytes are copied: nothing is decoded or encoded
    more = b"true" if cursor < last else b"false"
    return b'{"events":[' + b",".join([event.data for event in events]) + b'],"hasMore":' + more + b"}"


async def stream_events(request: Request) -> Response:
    """Stream a session's events, those that are there and those that come."""
    last_event_id = header(request, b"last-event-id")
    offset = number(request, "offset", 0) or 0
    if last_event_id:
        # what the client has by now; the offset is what it had when it first asked
        offset = as_number(last_event_id, "Last-Event-ID")
    raw = include_raw(request)
    state = state_of(request)
    session = await state.recorder.session(session_id_of(request))
    opening = b""
    if offset > session.row.last_sequence:
        told = {
            "sessionId": session.row.session_id,
            "lastEventId": offset,
            "lastSequence": session.row.last_sequence,
        }
        opening = encode_event("reset", dumps(told), event_id=0)
        offset = 0
    viewed = RawView(session, state.store) if raw else session
    return EventStream(Viewer(viewed, offset, UNNAMED), opening=opening)


_SEQUENCE = {"type": "integer", "format": "int64", "nullable": True, "minimum": 0, "maximum": MAX_NUMBER}
_OFFSET = Parameter(
    "offset", "query", "The last sequence that the client has: later events follow.", _SEQUENCE
)
_EVENTS = {
    "type": "object",
    "required": ["events", "hasMore"],
    "properties": {
        "events": {"type": "array", "items": {"$ref": "#/components/schemas/UniversalEvent"}},
        "hasMore": {"type": "boolean"},
    },
}

OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/sessions/{session_id}/events",
        endpoint=get_events,
        operation_id="get_events",
        summary="A page of events",
        description=(
            "Events with a sequence above `offset`, in order. A page is bounded in number and size; "
            "`hasMore` says whether there is another, behind the sequence of its last event. 410 where what "
            "follows the offset is not kept any more (with the range, and from where the events are there), "
            "or the offset is ahead of the log; without an offset the page begins at the oldest event that "
            "is there."
        ),
        tag="sessions",
        parameters=(
            SESSION_ID,
            _OFFSET,
            Parameter(
                "limit",
                "query",
                f"At most so many; {DEFAULT_LIMIT} by default, {MAX_LIMIT} at most.",
                _SEQUENCE,
            ),
            *INCLUDE_RAW,
        ),
        answers={200: Answer("The page.", _EVENTS)},
        errors=(InvalidRequestError, ServerSessionNotFoundError, GoneError, StreamError),
        schemas=EVENT_DATA_TYPES,
    ),
    Operation(
        method="GET",
        path="/v1/sessions/{session_id}/events/sse",
        endpoint=stream_events,
        operation_id="get_events_sse",
        summary="Stream events",
        description=(
            "Server-sent events: `message` with an event as data and its sequence as id; first those that "
            "are there, then those that come, without a hole or a repeat. `gap` names a range that is not "
            "kept any more (`from`, `to`); `reset` says that the id asked for is ahead of the log, which "
            "then begins anew. The stream ends when the session is deleted."
        ),
        tag="sessions",
        parameters=(
            SESSION_ID,
            _OFFSET,
            Parameter(
                "Last-Event-ID",
                "header",
                "The last sequence that the client has; counts more than the offset.",
                {"type": "integer", "format": "int64", "minimum": 0, "maximum": MAX_NUMBER},
            ),
            *INCLUDE_RAW,
        ),
        answers={200: Answer("The stream.", EVENT_STREAM_SCHEMA, EVENT_STREAM)},
        errors=(InvalidRequestError, ServerSessionNotFoundError, StreamError),
    ),
)
