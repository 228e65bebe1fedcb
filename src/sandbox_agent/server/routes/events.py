"""``/v1/sessions/{id}/events`` and ``/envelopes``: what a session consists of, in pages and as a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.engine.sse import encode_event
from sandbox_agent.errors import GoneError, ServerSessionNotFoundError, StoreUnavailableError
from sandbox_agent.persist.store import EnvelopeRow, EventRow, SessionRow
from sandbox_agent.server.http.operations import (
    MAX_NUMBER,
    Answer,
    Operation,
    Parameter,
    get_header,
    integer_schema,
    parse_number,
    read_number,
    text_schema,
)
from sandbox_agent.server.routes.session_helpers import (
    INCLUDE_RAW,
    SESSION_ID,
    find_session,
    include_raw,
    session_id_of,
)
from sandbox_agent.server.state import JsonResponse, json_response, state_of
from sandbox_agent.server.streams.session_views import RawView
from sandbox_agent.server.streams.viewers import EVENT_STREAM, EventStream, Viewer
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.sessions import EnvelopesResponse, EventsResponse, SessionEnvelope
from sandbox_agent.wire.universal import EVENT_DATA_TYPES

DEFAULT_LIMIT = 1000
MAX_LIMIT = 10_000
# A page has at least one event, and ends when it is larger than this.
PAGE_BYTES = 4 * 1024 * 1024

_SEQUENCE = {**integer_schema(most=MAX_NUMBER), "nullable": True}
_OFFSET = Parameter(
    "offset", "query", "The last sequence that the client received; later events are returned.", _SEQUENCE
)


@Operation(
    "GET",
    "/v1/sessions/{session_id}/events",
    parameters=(
        SESSION_ID,
        _OFFSET,
        Parameter(
            "limit",
            "query",
            f"The largest number of events; {DEFAULT_LIMIT} by default, never more than {MAX_LIMIT}.",
            _SEQUENCE,
        ),
        *INCLUDE_RAW,
    ),
    answers={200: Answer("The page.", EventsResponse)},
    errors=(ServerSessionNotFoundError, GoneError, StoreUnavailableError),
    store_deadline="request",
    schemas=tuple(EVENT_DATA_TYPES.values()),
)
async def get_events(request: Request) -> Response:
    """Get a page of events.

    Returns events with a sequence above `offset`, in order. The number of events in a page and the size of a
    page are limited; if `hasMore` is true, use the sequence of the page's last event as the next offset.
    Without an offset, the page starts at the oldest stored event. The answer is 410 if the events after the
    offset are not stored any more (the problem has the missing range and the oldest stored sequence), or if
    the offset is past the last event.
    """
    offset = read_number(request, "offset")
    limit = min(read_number(request, "limit", DEFAULT_LIMIT) or 0, MAX_LIMIT)
    raw = include_raw(request)
    row = await find_session(request)
    after = _check_offset(row, offset)
    events: list[EventRow] = []
    if limit and after < row.last_sequence:
        events = await state_of(request).store.events(
            row.key, after=after, limit=limit, max_bytes=PAGE_BYTES, include_raw=raw
        )
        if not events or events[0].sequence > after + 1:
            # events expired, or the session was deleted, since its row was read
            _check_offset(await find_session(request), after)
    return JsonResponse(_page(events, events[-1].sequence if events else after, row.last_sequence))


def _check_offset(row: SessionRow, offset: int | None) -> int:
    """Return the sequence after which the page starts.

    Raises:
        GoneError: the events after the offset are not stored any more, or the offset is past the last event.
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
            f"gone: events {offset + 1} to {row.first_sequence - 1} are not stored any more; "
            f"continue with offset={row.first_sequence - 1}",
            **extent,
            missingFrom=offset + 1,
            missingTo=row.first_sequence - 1,
        )
    if offset > row.last_sequence:
        raise GoneError(
            f"gone: offset {offset} is past the last event of this session, {row.last_sequence}: it belongs "
            f"to an earlier session of that name; start again with offset={row.first_sequence - 1}",
            **extent,
        )
    return offset


def _page(events: Sequence[EventRow], cursor: int, last: int) -> bytes:
    # Stored events are copied as bytes, without decoding them.
    more = b"true" if cursor < last else b"false"
    return b'{"events":[' + b",".join([event.data for event in events]) + b'],"hasMore":' + more + b"}"


@Operation(
    "GET",
    "/v1/sessions/{session_id}/events/sse",
    parameters=(
        SESSION_ID,
        _OFFSET,
        Parameter(
            "Last-Event-ID",
            "header",
            "The last sequence that the client received; takes precedence over the offset.",
            integer_schema(most=MAX_NUMBER),
        ),
        *INCLUDE_RAW,
    ),
    answers={200: Answer("The stream.", text_schema(), EVENT_STREAM)},
    errors=(ServerSessionNotFoundError, StoreUnavailableError),
    store_deadline="request",
)
async def get_events_sse(request: Request) -> Response:
    """Stream events.

    Server-sent events. A `message` event has a session event as its data and the event's sequence as its id.
    Stored events come first, then new ones, without gaps or duplicates. A `gap` event names a range that is
    not stored any more (`from`, `to`). A `reset` event means that the requested id is past the last event;
    the stream then starts from the first event. The stream ends when the session is deleted.
    """
    last_event_id = get_header(request, b"last-event-id")
    offset = read_number(request, "offset", 0) or 0
    if last_event_id:
        # A client that reconnects repeats its first offset; the event id is newer.
        offset = parse_number(last_event_id, "Last-Event-ID")
    raw = include_raw(request)
    state = state_of(request)
    session = await state.recorder.open(session_id_of(request))
    opening = b""
    if offset > session.row.last_sequence:
        reset = {
            "sessionId": session.row.session_id,
            "lastEventId": offset,
            "lastSequence": session.row.last_sequence,
        }
        opening = encode_event("reset", dumps(reset), event_id=0)
        offset = 0
    viewed = RawView(session, state.store) if raw else session
    return EventStream(Viewer(viewed, offset, UNNAMED), opening=opening)


@Operation(
    "GET",
    "/v1/sessions/{session_id}/envelopes",
    parameters=(
        SESSION_ID,
        Parameter(
            "after",
            "query",
            "The index of the last envelope that the client has; later ones are returned.",
            integer_schema(most=MAX_NUMBER),
        ),
        Parameter(
            "limit",
            "query",
            f"The largest number of envelopes; {DEFAULT_LIMIT} by default, and never more.",
            integer_schema(most=MAX_NUMBER),
        ),
    ),
    answers={200: Answer("The page.", EnvelopesResponse)},
    errors=(ServerSessionNotFoundError, StoreUnavailableError),
    store_deadline="request",
)
async def get_envelopes(request: Request) -> Response:
    """Get a page of envelopes.

    Returns the JSON-RPC messages of both directions that the server has recorded, with an index above
    `after`, in order. This also works for sessions that an SDK drives (`managed: false`): an SDK whose stream
    is gone reads here what it has not received. The number of envelopes in a page and the size of a page are
    limited; if `hasMore` is true, use the index of the page's last envelope as the next `after`. Envelopes
    that retention has erased are missing at the start.
    """
    after = read_number(request, "after", 0) or 0
    limit = min(read_number(request, "limit", DEFAULT_LIMIT) or 0, DEFAULT_LIMIT)
    state = state_of(request)
    await state.recorder.flush()
    row = await find_session(request)
    rows = await state.store.envelopes(row.key, after=after, limit=limit) if limit else []
    rows = rows[: _fitting(rows)]
    envelopes = [
        SessionEnvelope(
            index=each.index,
            sender=each.sender,
            connection_id=each.connection_id,
            time=each.time,
            envelope=msgspec.Raw(each.data),
        )
        for each in rows
    ]
    last = rows[-1].index if rows else after if not limit else row.last_envelope
    more = last < row.last_envelope
    page = EnvelopesResponse(envelopes=envelopes, has_more=more, last_index=row.last_envelope)
    return json_response(page)


def _fitting(rows: Sequence[EnvelopeRow]) -> int:
    """Return how many rows a page holds: at least one."""
    size = 0
    for position, row in enumerate(rows):
        size += len(row.data)
        if size > PAGE_BYTES and position:
            return position
    return len(rows)


OPERATIONS = (
    get_events,
    get_events_sse,
    get_envelopes,
)
