"""``/v1/sessions``: list, create, get, terminate, delete and export sessions."""

from __future__ import annotations

from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from sandbox_agent.errors import (
    AgentNotInstalledError,
    ConflictError,
    InvalidRequestError,
    ModeNotSupportedError,
    ServerSessionNotFoundError,
    SessionAlreadyExistsError,
    StoreUnavailableError,
    UnsupportedAgentError,
)
from sandbox_agent.server.http.operations import (
    AGENT_ERRORS,
    MAX_IDEMPOTENCY_KEY,
    MAX_NUMBER,
    Answer,
    Operation,
    Parameter,
    integer_schema,
    read_idempotency_key,
    read_json,
    read_number,
    read_text,
    text_schema,
)
from sandbox_agent.server.routes.session_helpers import (
    NAME,
    SESSION_ID,
    find_session,
    session_id_of,
    session_info,
)
from sandbox_agent.server.state import json_response, state_of
from sandbox_agent.server.transcripts import FORMATS, export
from sandbox_agent.wire.sessions import (
    CreateSessionRequest,
    CreateSessionResponse,
    SessionInfo,
    SessionListResponse,
)

MAX_SESSIONS = 1000
# The number of turns that are returned with a session; the docstring of get_session names it, too.
TURNS = 20
# An exported page shows text of agents and users, so it gets no rights on this server's origin.
_CONTENT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "Identifies the session for 24 hours, even after a restart of the server. The same body with the same "
    "key returns the session that it created, whatever the id in the path is: the response has its "
    "`sessionId`. "
    "Another body with the same key is refused.",
    text_schema(least=1, most=MAX_IDEMPOTENCY_KEY),
)


@Operation(
    "GET",
    "/v1/sessions",
    parameters=(
        Parameter(
            "limit",
            "query",
            f"The largest number of sessions to return; {MAX_SESSIONS} by default, and never more.",
            integer_schema(least=1, most=MAX_NUMBER),
        ),
        Parameter("cursor", "query", "The `nextCursor` of the previous page."),
        Parameter(
            "nativeSessionId",
            "query",
            "Return only the session that the agent calls so; `agent` is required.",
            NAME,
        ),
        Parameter("agent", "query", "The agent of `nativeSessionId`.", NAME),
    ),
    answers={200: Answer("A page of sessions.", SessionListResponse)},
    errors=(StoreUnavailableError,),
    store_deadline="request",
)
async def list_sessions(request: Request) -> Response:
    """List sessions.

    Lists all sessions, newest first. A session that an SDK drives has `managed: false`.
    """
    limit = read_number(request, "limit", MAX_SESSIONS, least=1)
    store, native, agent = (
        state_of(request).store,
        read_text(request, "nativeSessionId"),
        read_text(request, "agent"),
    )
    if (native is None) != (agent is None):
        raise InvalidRequestError("invalid request: 'nativeSessionId' and 'agent' belong together")
    if native is not None and agent is not None:
        row = await store.native_session(agent, native)
        return json_response(SessionListResponse(sessions=[] if row is None else [session_info(row)]))
    rows, cursor = await store.sessions(
        limit=min(limit or MAX_SESSIONS, MAX_SESSIONS), cursor=read_text(request, "cursor")
    )
    return json_response(
        SessionListResponse(sessions=[session_info(row) for row in rows], next_cursor=cursor)
    )


@Operation(
    "POST",
    "/v1/sessions/{session_id}",
    parameters=(SESSION_ID, _KEY),
    request_body=CreateSessionRequest,
    answers={200: Answer("The session was created, now or before.", CreateSessionResponse)},
    errors=(
        UnsupportedAgentError,
        ModeNotSupportedError,
        AgentNotInstalledError,
        SessionAlreadyExistsError,
        ConflictError,
        StoreUnavailableError,
        *AGENT_ERRORS,
    ),
)
async def create_session(request: Request) -> Response:
    """Create a session.

    Starts the agent and opens a session with it. If that fails, no session is created. An agent that is not
    installed is installed first, and the session's events show the progress; if that fails, the session has
    ended with the reason, and another creation replaces it. In the response, `healthy` is always true;
    `error` exists for clients of 0.1 only. The same request again returns the session that exists, unless it
    was terminated.
    """
    session_id = session_id_of(request)
    state = state_of(request)
    body = await read_json(request, CreateSessionRequest, state.config.max_body_bytes, known_only=True)
    key = read_idempotency_key(request)
    return json_response(await state.sessions.create(session_id, body, idempotency_key=key))


@Operation(
    "GET",
    "/v1/sessions/{session_id}",
    parameters=(SESSION_ID,),
    answers={200: Answer("The session.", SessionInfo)},
    errors=(ServerSessionNotFoundError, StoreUnavailableError),
    store_deadline="request",
)
async def get_session(request: Request) -> Response:
    """Get a session.

    Returns a session with its counts, tokens and cost, and its last 20 turns.
    """
    row = await find_session(request)
    turns = await state_of(request).store.turns(row.key, limit=TURNS)
    return json_response(session_info(row, turns))


@Operation(
    "DELETE",
    "/v1/sessions/{session_id}",
    parameters=(
        SESSION_ID,
        Parameter(
            "Idempotency-Key",
            "header",
            "Delete the session only if the creation with this key has created it; cancel that creation if "
            "it runs or arrives later. Otherwise nothing happens.",
            text_schema(least=1, most=MAX_IDEMPOTENCY_KEY),
        ),
    ),
    answers={204: Answer("The session is deleted.")},
    errors=(ServerSessionNotFoundError, ConflictError, StoreUnavailableError),
)
async def delete_session(request: Request) -> Response:
    """Delete a session.

    Terminates the session and erases its events and its search index from the store.
    """
    sessions, session_id, key = (
        state_of(request).sessions,
        session_id_of(request),
        read_idempotency_key(request),
    )
    if key is None:
        await sessions.delete(session_id)
    else:
        await sessions.withdraw(session_id, key)
    return Response(status_code=204)


@Operation(
    "POST",
    "/v1/sessions/{session_id}/terminate",
    parameters=(SESSION_ID,),
    answers={204: Answer("The session has ended.")},
    errors=(ServerSessionNotFoundError, ConflictError, StoreUnavailableError),
)
async def terminate_session(request: Request) -> Response:
    """Terminate a session.

    Ends the session and its turns; its events remain. Terminating it again has no effect.
    """
    await state_of(request).sessions.terminate(session_id_of(request))
    return Response(status_code=204)


@Operation(
    "POST",
    "/v1/sessions/{session_id}/cancel",
    parameters=(SESSION_ID,),
    answers={204: Answer("The cancellation was sent to the agent.")},
    errors=(
        ServerSessionNotFoundError,
        ConflictError,
        StoreUnavailableError,
        *AGENT_ERRORS,
    ),
)
async def cancel_session(request: Request) -> Response:
    """Cancel the running turn.

    Asks the agent to stop the running turn. Without a running turn, nothing happens.
    """
    await state_of(request).sessions.cancel(session_id_of(request))
    return Response(status_code=204)


@Operation(
    "GET",
    "/v1/sessions/{session_id}/export",
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
    errors=(ServerSessionNotFoundError, StoreUnavailableError),
    store_deadline="request",
)
async def export_session(request: Request) -> Response:
    """Export a session.

    `jsonl` has one stored event per line. `markdown` is a transcript. `html` is a transcript as one page,
    which needs no other file and no network.
    """
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
    list_sessions,
    create_session,
    get_session,
    delete_session,
    terminate_session,
    cancel_session,
    export_session,
)
