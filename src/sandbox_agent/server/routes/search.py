"""``/v1/search``: full-text search over all sessions."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import InvalidRequestError, StoreUnavailableError
from sandbox_agent.server.http.operations import (
    MAX_NUMBER,
    Answer,
    Operation,
    Parameter,
    integer_schema,
    read_number,
    read_text,
    text_schema,
)
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.wire.sessions import SearchHit, SearchResponse

MAX_QUERY = 1000
DEFAULT_HITS = 20
MAX_HITS = 100
MAX_OFFSET = 10_000


@Operation(
    "GET",
    "/v1/search",
    parameters=(
        Parameter(
            "q", "query", "The words to search for.", text_schema(least=1, most=MAX_QUERY), required=True
        ),
        Parameter("agent", "query", "Search only the sessions of this agent."),
        Parameter("session", "query", "Search only this session."),
        Parameter("since", "query", "Search only events of this time and later: RFC 3339, or milliseconds."),
        Parameter("until", "query", "Search only events before this time."),
        Parameter(
            "limit",
            "query",
            f"The largest number of hits; {DEFAULT_HITS} by default.",
            integer_schema(least=1, most=MAX_HITS),
        ),
        Parameter("offset", "query", "The number of hits to skip.", integer_schema(most=MAX_OFFSET)),
    ),
    answers={200: Answer("The hits.", SearchResponse)},
    errors=(StoreUnavailableError,),
)
async def search(request: Request) -> Response:
    """Search all sessions.

    Searches messages, tool titles and tool output for all words of the query; the best hits come first. Words
    in "double quotes" must be adjacent. In the snippet of a hit, the words are between [ and ].
    """
    query = read_text(request, "q")
    if query is None or not query.strip() or len(query) > MAX_QUERY:
        raise InvalidRequestError(f"invalid request: q must be a query of 1 to {MAX_QUERY} characters")
    limit = read_number(request, "limit", DEFAULT_HITS, least=1, most=MAX_HITS) or DEFAULT_HITS
    found = await state_of(request).store.search(
        query,
        limit=limit + 1,
        offset=read_number(request, "offset", 0, most=MAX_OFFSET) or 0,
        agent=read_text(request, "agent"),
        session_id=read_text(request, "session"),
        since=_read_time(request, "since"),
        until=_read_time(request, "until"),
    )
    hits = [
        SearchHit(
            session_id=row.session_id,
            agent=row.agent,
            sequence=row.sequence,
            time=row.time,
            snippet=row.snippet,
            title=row.title,
        )
        for row in found[:limit]
    ]
    return json_response(SearchResponse(hits=hits, has_more=len(found) > limit))


def _read_time(request: Request, name: str) -> int | None:
    """Return a query parameter's time in milliseconds since the epoch.

    Raises:
        InvalidRequestError: it is neither a number of milliseconds nor an RFC 3339 time.
    """
    value = read_text(request, name)
    if value is None:
        return None
    if value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= MAX_NUMBER:
        return int(value)
    try:
        # An unencoded "+" in a time zone arrives as a space.
        moment = datetime.fromisoformat(value.replace(" ", "+") if "T" in value else value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(round(moment.timestamp() * 1000), 0)
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            f"invalid request: {name} must be milliseconds since the epoch, or a time such as "
            "2026-01-31T12:00:00Z"
        ) from None


OPERATIONS = (search,)
