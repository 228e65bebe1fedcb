"""``/v1/sessions``: the sessions that the server keeps: list, make, look at, end, erase, export."""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from sandbox_agent.errors import (
    AgentNotInstalledError,
    AgentProcessExitedError,
    ConflictError,
    InvalidRequestError,
    ModeNotSupportedError,
    PayloadTooLargeError,
    RequestTimeoutError,
    ServerSessionNotFoundError,
    SessionAlreadyExistsError,
    StreamError,
    UnsupportedAgentError,
    UnsupportedMediaTypeError,
)
from sandbox_agent.server.http.operations import Answer, Operation, Parameter, number, read_json, text
from sandbox_agent.server.routes.session_helpers import SESSION_ID, found_row, session_id_of, session_info
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.server.transcripts import FORMATS, export
from sandbox_agent.wire.sessions import (
    CreateSessionRequest,
    CreateSessionResponse,
    SessionInfo,
    SessionListResponse,
)

__all__ = ["OPERATIONS"]

MAX_SESSIONS = 1000
# The newest turns of one session.
TURNS = 20
MAX_TEXT = 4096
# A page from this server must not act for it, whoever wrote what it shows.
_CONTENT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


async def list_sessions(request: Request) -> Response:
    """List sessions, newest first."""
    limit = number(request, "limit", MAX_SESSIONS, least=1)
    rows, cursor = await state_of(request).store.sessions(
        limit=min(limit or MAX_SESSIONS, MAX_SESSIONS), cursor=text(request, "cursor")
    )
    return json_response(
        SessionListResponse(sessions=[session_info(row) for row in rows], next_cursor=cursor)
    )


async def create_session(request: Request) -> Response:
    """Make a session and start its agent."""
    session_id = session_id_of(request)
    state = state_of(request)
    body = await read_json(request, CreateSessionRequest, state.config.max_body_bytes)
    _check(body)
    return json_response(await state.sessions.create(session_id, body))


def _check(body: CreateSessionRequest) -> None:
    for name in ("agent", "agent_mode", "permission_mode", "model", "variant", "agent_version", "directory"):
        value: str | None = getattr(body, name)
        if value is not None and (len(value) > MAX_TEXT or not value.isprintable()):
            raise InvalidRequestError(
                f"invalid request: {name} must be at most {MAX_TEXT} printable characters"
            )
    if not body.agent:
        raise InvalidRequestError("invalid request: agent must name an agent")
    if body.title is not None and len(body.title) > MAX_TEXT:
        raise InvalidRequestError(f"invalid request: title must be at most {MAX_TEXT} characters")


async def get_session(request: Request) -> Response:
    """Return a session with its newest turns."""
    row = await found_row(request)
    turns = await state_of(request).store.turns(row.key, limit=TURNS)
    return json_response(session_info(row, turns))


async def delete_session(request: Request) -> Response:
    """Erase a session."""
    await state_of(request).sessions.delete(session_id_of(request))
    return Response(status_code=204)


async def terminate_session(request: Request) -> Response:
    """End a session; its events stay."""
    await state_of(request).sessions.terminate(session_id_of(request))
    return Response(status_code=204)


async def cancel_turn(request: Request) -> Response:
    """Stop the turn that runs."""
    await state_of(request).sessions.cancel(session_id_of(request))
    return Response(status_code=204)


async def export_session(request: Request) -> Response:
    """Return a session as a file."""
    form = text(request, "format") or "jsonl"
    if form not in FORMATS:
        raise InvalidRequestError(f"invalid request: format must be one of {', '.join(FORMATS)}")
    row = await found_row(request)
    media_type, suffix = FORMATS[form]
    how = "inline" if form == "html" else "attachment"
    name = quote(f"{row.session_id}.{suffix}", safe="")
    headers = {
        "Content-Disposition": f"{how}; filename*=UTF-8''{name}",
        "Content-Security-Policy": _CONTENT_POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    if request.method == "HEAD":
        response = Response(status_code=200, headers=headers, media_type=media_type)
        del response.headers["content-length"]  # how long the file is would only be known at its end
        return response
    chunks = export(state_of(request).store, row, session_info(row), form)
    return StreamingResponse(chunks, headers=headers, media_type=media_type)


_TEXT = {"type": "string"}

OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/sessions",
        endpoint=list_sessions,
        operation_id="list_sessions",
        summary="List sessions",
        description="All that the store has, newest first; `managed: false` are those that SDKs drive.",
        tag="sessions",
        parameters=(
            Parameter(
                "limit",
                "query",
                f"At most so many; {MAX_SESSIONS} by default and at most.",
                {"type": "integer", "format": "int64", "minimum": 1},
            ),
            Parameter("cursor", "query", "`nextCursor` of the page before."),
        ),
        answers={200: Answer("A page of sessions.", SessionListResponse)},
        errors=(InvalidRequestError, StreamError),
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}",
        endpoint=create_session,
        operation_id="create_session",
        summary="Make a session",
        description=(
            "Starts the agent and opens a session with it. Where that fails the answer is the problem, and "
            "no session is made. `healthy` is always true; `error` is there for clients of 0.1."
        ),
        tag="sessions",
        parameters=(SESSION_ID,),
        request_body=CreateSessionRequest,
        answers={200: Answer("It is made.", CreateSessionResponse)},
        errors=(
            InvalidRequestError,
            UnsupportedAgentError,
            ModeNotSupportedError,
            AgentNotInstalledError,
            SessionAlreadyExistsError,
            ConflictError,
            PayloadTooLargeError,
            UnsupportedMediaTypeError,
            AgentProcessExitedError,
            StreamError,
            RequestTimeoutError,
        ),
    ),
    Operation(
        method="GET",
        path="/v1/sessions/{session_id}",
        endpoint=get_session,
        operation_id="get_session",
        summary="One session",
        description="With its counts, tokens and cost, and its newest turns, oldest of them first.",
        tag="sessions",
        parameters=(SESSION_ID,),
        answers={200: Answer("The session.", SessionInfo)},
        errors=(InvalidRequestError, ServerSessionNotFoundError, StreamError),
    ),
    Operation(
        method="DELETE",
        path="/v1/sessions/{session_id}",
        endpoint=delete_session,
        operation_id="delete_session",
        summary="Erase a session",
        description="Ends it, and erases its events, its index and what the store's file still holds of it.",
        tag="sessions",
        parameters=(SESSION_ID,),
        answers={204: Answer("It is erased.")},
        errors=(InvalidRequestError, ServerSessionNotFoundError, ConflictError, StreamError),
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}/terminate",
        endpoint=terminate_session,
        operation_id="terminate_session",
        summary="End a session",
        description="Its agent is told, its turns end, its events stay. Ending it again changes nothing.",
        tag="sessions",
        parameters=(SESSION_ID,),
        answers={204: Answer("It has ended.")},
        errors=(InvalidRequestError, ServerSessionNotFoundError, ConflictError, StreamError),
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}/cancel",
        endpoint=cancel_turn,
        operation_id="cancel_session",
        summary="Stop the turn that runs",
        description="The session stays; where no turn runs nothing happens.",
        tag="sessions",
        parameters=(SESSION_ID,),
        answers={204: Answer("The agent has been told.")},
        errors=(
            InvalidRequestError,
            ServerSessionNotFoundError,
            ConflictError,
            AgentProcessExitedError,
            StreamError,
            RequestTimeoutError,
        ),
    ),
    Operation(
        method="GET",
        path="/v1/sessions/{session_id}/export",
        endpoint=export_session,
        operation_id="export_session",
        summary="A session as a file",
        description=(
            "`jsonl`: its events, one a line, as they are stored; `markdown`: a transcript; `html`: a "
            "transcript as one page that needs no other file and no network."
        ),
        tag="sessions",
        parameters=(
            SESSION_ID,
            Parameter(
                "format",
                "query",
                "jsonl by default.",
                {"type": "string", "enum": ["jsonl", "markdown", "html"]},
            ),
        ),
        answers={200: Answer("The file.", _TEXT, "application/x-ndjson")},
        errors=(InvalidRequestError, ServerSessionNotFoundError, StreamError),
    ),
)
