"""``/v1/search``: full text over all sessions."""

from __future__ import annotations

from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.errors import InvalidRequestError, StreamError
from sandbox_agent.server.http.operations import MAX_NUMBER, Answer, Operation, Parameter, number, text
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.wire.sessions import SearchHit, SearchResponse

__all__ = ["OPERATIONS"]

MAX_QUERY = 1000
DEFAULT_HITS = 20
MAX_HITS = 100
MAX_OFFSET = 10_000


async def search(request: Request) -> Response:
    """Return where words are found."""
    query = text(request, "q")
    if query is None or not query.strip() or len(query) > MAX_QUERY:
        raise InvalidRequestError(f"invalid request: q must be 1 to {MAX_QUERY} characters to look for")
    limit = number(request, "limit", DEFAULT_HITS, least=1, most=MAX_HITS) or DEFAULT_HITS
    found = await state_of(request).store.search(
        query,
        limit=limit + 1,
        offset=number(request, "offset", 0, most=MAX_OFFSET) or 0,
        agent=text(request, "agent"),
        session_id=text(request, "session"),
        since=_time(request, "since"),
        until=_time(request, "until"),
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


def _time(request: Request, name: str) -> int | None:
    """Return a time in milliseconds since the epoch.

    Raises:
        InvalidRequestError: it is neither that nor RFC 3339.
    """
    value = text(request, name)
    if value is None:
        return None
    if value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= MAX_NUMBER:
        return int(value)
    try:
        # the "+" of a zone arrives as a space where the client did not encode it
        moment = datetime.fromisoformat(value.replace(" ", "+") if "T" in value else value)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return max(round(moment.timestamp() * 1000), 0)
    except (ValueError, OverflowError):
        raise InvalidRequestError(
            f"invalid request: {name} must be milliseconds since the epoch or like 2026-01-31T12:00:00Z"
        ) from None


def _bounded(least: int, most: int) -> dict[str, object]:
    return {"type": "integer", "format": "int64", "minimum": least, "maximum": most}


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/search",
        endpoint=search,
        operation_id="search",
        summary="Search all sessions",
        description=(
            "Finds the words in messages, tool titles and tool output, best first; all of them must be "
            'there, those in "double quotes" next to each other. A hit\'s snippet has them between [ and ].'
        ),
        tag="sessions",
        parameters=(
            Parameter("q", "query", "What to look for; must be given."),
            Parameter("agent", "query", "Only sessions of that agent."),
            Parameter("session", "query", "Only that session."),
            Parameter("since", "query", "Only events of that time and later: RFC 3339, or milliseconds."),
            Parameter("until", "query", "Only events before that time."),
            Parameter("limit", "query", f"{DEFAULT_HITS} by default.", _bounded(1, MAX_HITS)),
            Parameter("offset", "query", "So many hits are left out.", _bounded(0, MAX_OFFSET)),
        ),
        answers={200: Answer("The hits.", SearchResponse)},
        errors=(InvalidRequestError, StreamError),
    ),
)
