"""``/v1/sessions``: list, create, get, terminate, delete and export sessions."""

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
from sandbox_agent.server.http.operations import (
    MAX_NUMBER,
    Answer,
    Operation,
    Parameter,
    integer_schema,
    read_json,
    read_number,
    read_text,
    text_schema,
)
from sandbox_agent.server.routes.session_helpers import (
    SESSION_ID,
    find_session,
    session_id_of,
    session_info,
)
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.server.transcripts import FORMATS, export
from sandbox_agent.wire.sessions import (
    MAX_TEXT,
    CreateSessionRequest,
    CreateSessionResponse,
    SessionInfo,
    SessionListResponse,
)

MAX_SESSIONS = 1000
# The number of turns that are returned with a session.
TURNS = 20
# An exported page shows text of agents and users, so it gets no rights on this server's origin.
_CONTENT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


async def list_sessions(request: Request) -> Response:
    """List sessions, newest first."""
    limit = read_number(request, "limit", MAX_SESSIONS, least=1)
    rows, cursor = await state_of(request).store.sessions(
        limit=min(limit or MAX_SESSIONS, MAX_SESSIONS), cursor=read_text(request, "cursor")
    )
    return json_response(
        SessionListResponse(sessions=[session_info(row) for row in rows], next_cursor=cursor)
    )


async def create_session(request: Request) -> Response:
    """Create a session and start its agent."""
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
        raise InvalidRequestError("invalid request: agent must be the id of an agent")
    if body.title is not None and len(body.title) > MAX_TEXT:
        raise InvalidRequestError(f"invalid request: title must be at most {MAX_TEXT} characters")


async def get_session(request: Request) -> Response:
    """Return a session with its newest turns."""
    row = await find_session(request)
    turns = await state_of(request).store.turns(row.key, limit=TURNS)
    return json_response(session_info(row, turns))


async def delete_session(request: Request) -> Response:
    """Delete a session with all its data."""
    await state_of(request).sessions.delete(session_id_of(request))
    return Response(status_code=204)


async def terminate_session(request: Request) -> Response:
    """Terminate a session; its events remain stored."""
    await state_of(request).sessions.terminate(session_id_of(request))
    return Response(status_code=204)


async def cancel_turn(request: Request) -> Response:
    """Cancel the running turn."""
    await state_of(request).sessions.cancel(session_id_of(request))
    return Response(status_code=204)


async def export_session(request: Request) -> Response:
    """Return a session as a file."""
    form = read_text(request, "format") or "jsonl"
    if form not in FORMATS:
        raise InvalidRequestError(f"invalid request: format must be one of {', '.join(FORMATS)}")
    row = await find_session(request)
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
        del response.headers["content-length"]  # the file's length is not known before its end
        return response
    chunks = export(state_of(request).store, row, session_info(row), form)
    return StreamingResponse(chunks, headers=headers, media_type=media_type)


OPERATIONS = (
    Operation(
        method="GET",
        path="/v1/sessions",
        endpoint=list_sessions,
        operation_id="list_sessions",
        summary="List sessions",
        description="Lists all sessions, newest first. A session that an SDK drives has `managed: false`.",
        tag="sessions",
        parameters=(
            Parameter(
                "limit",
                "query",
                f"The largest number of sessions to return; {MAX_SESSIONS} by default, and never more.",
                integer_schema(least=1, most=MAX_NUMBER),
            ),
            Parameter("cursor", "query", "The `nextCursor` of the previous page."),
        ),
        answers={200: Answer("A page of sessions.", SessionListResponse)},
        errors=(InvalidRequestError, StreamError),
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}",
        endpoint=create_session,
        operation_id="create_session",
        summary="Create a session",
        description=(
            "Starts the agent and opens a session with it. If that fails, no session is created. In the "
            "response, `healthy` is always true; `error` exists for clients of 0.1 only."
        ),
        tag="sessions",
        parameters=(SESSION_ID,),
        request_body=CreateSessionRequest,
        answers={200: Answer("The session was created.", CreateSessionResponse)},
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
        summary="Get a session",
        description=f"Returns a session with its counts, tokens and cost, and its last {TURNS} turns.",
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
        summary="Delete a session",
        description="Terminates the session and erases its events and its search index from the store.",
        tag="sessions",
        parameters=(SESSION_ID,),
        answers={204: Answer("The session is deleted.")},
        errors=(InvalidRequestError, ServerSessionNotFoundError, ConflictError, StreamError),
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}/terminate",
        endpoint=terminate_session,
        operation_id="terminate_session",
        summary="Terminate a session",
        description="Ends the session and its turns; its events remain. Terminating it again has no effect.",
        tag="sessions",
        parameters=(SESSION_ID,),
        answers={204: Answer("The session has ended.")},
        errors=(InvalidRequestError, ServerSessionNotFoundError, ConflictError, StreamError),
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}/cancel",
        endpoint=cancel_turn,
        operation_id="cancel_session",
        summary="Cancel the running turn",
        description="Asks the agent to stop the running turn. Without a running turn, nothing happens.",
        tag="sessions",
        parameters=(SESSION_ID,),
        answers={204: Answer("The cancellation was sent to the agent.")},
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
        summary="Export a session",
        description=(
            "`jsonl` has one stored event per line. `markdown` is a transcript. `html` is a transcript as "
            "one page, which needs no other file and no network."
        ),
        tag="sessions",
        parameters=(
            SESSION_ID,
            Parameter(
                "format",
                "query",
                "The file's format; jsonl by default.",
                {"type": "string", "enum": list(FORMATS)},
            ),
        ),
        answers={200: Answer("The file.", text_schema(), [media_type for media_type, _ in FORMATS.values()])},
        errors=(InvalidRequestError, ServerSessionNotFoundError, StreamError),
    ),
)
