"""``/v1/sessions/{id}/ui``: a session as a chat of the AI SDK (npm ``ai``)."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.engine.ui_messages import approvals_of, prompt_of
from sandbox_agent.errors import (
    AgentNotInstalledError,
    ConflictError,
    GoneError,
    InvalidRequestError,
    ServerSessionNotFoundError,
    StoreUnavailableError,
    UnsupportedAgentError,
)
from sandbox_agent.persist.store import TurnRow
from sandbox_agent.server.http.operations import (
    AGENT_ERRORS,
    Answer,
    Operation,
    Parameter,
    read_identity,
    read_json,
    text_schema,
)
from sandbox_agent.server.recorder import RecordedSession
from sandbox_agent.server.routes.session_helpers import (
    CLIENT,
    NAME,
    SESSION_ID,
    find_session,
    session_id_of,
)
from sandbox_agent.server.state import ServerState, state_of
from sandbox_agent.server.streams.session_views import UiTurnView
from sandbox_agent.server.streams.viewers import EVENT_STREAM, EventStream, Viewer
from sandbox_agent.wire.jsonrpc import members
from sandbox_agent.wire.ui import UiRequest

_HEADER = "x-vercel-ai-ui-message-stream"
_HEADERS = {_HEADER: "The version of the stream: v1."}
_STREAM = Answer("The stream of chunks.", text_schema(), EVENT_STREAM, _HEADERS)
# Turns that may be waiting or running; the oldest of them is the one that a page shows.
_TURNS = 100
# How long after its end a turn can be resumed: a client whose connection was lost has not seen the end.
_RESUMABLE_MS = 60_000


@Operation(
    "POST",
    "/v1/sessions/{session_id}/ui",
    parameters=(SESSION_ID, CLIENT),
    request_body=UiRequest,
    answers={200: _STREAM},
    errors=(
        UnsupportedAgentError,
        ServerSessionNotFoundError,
        AgentNotInstalledError,
        ConflictError,
        GoneError,
        StoreUnavailableError,
        *AGENT_ERRORS,
    ),
)
async def post_ui_message(request: Request) -> Response:
    """Chat with the AI SDK.

    For the `DefaultChatTransport` of npm `ai`, with this path as its `api`. Sends the last message, if it is
    a user's, and streams its turn as an assistant's message (UI message stream, version 1). If the session
    does not exist, it is created as `session` says. The stream also ends when the turn waits for a
    permission: the next request, with the answers of `addToolApprovalResponse` in its last message, continues
    the turn. A client that disconnects does not cancel the turn. The same message again streams the same
    turn.
    """
    state = state_of(request)
    session_id = session_id_of(request)
    body = await read_json(request, UiRequest, state.config.max_body_bytes)
    if not body.messages:
        raise InvalidRequestError("invalid request: messages is empty: send at least the new message")
    message = body.messages[-1]
    if message.get("role") == "assistant":
        return await _continue(request, session_id, message)
    prompt = prompt_of(message)
    if body.session is not None and await state.store.session(session_id) is None:
        await state.sessions.create(session_id, body.session)
    session = await state.recorder.open(session_id)
    # If the turn has not started when its row is read, its events come after this one.
    last_sequence = session.row.last_sequence
    key = None if body.trigger == "regenerate-message" else _key_of(message, prompt)
    sent = await state.sessions.message(session_id, prompt, idempotency_key=key)
    turn = await state.store.turn(session.row.key, turn_id=sent.turn_id) or sent
    return _stream(state, session, turn, last_sequence)


@Operation(
    "GET",
    "/v1/sessions/{session_id}/ui/stream",
    parameters=(SESSION_ID,),
    answers={200: _STREAM, 204: Answer("No turn runs.")},
    errors=(ServerSessionNotFoundError, StoreUnavailableError),
    store_deadline="request",
)
async def get_ui_stream(request: Request) -> Response:
    """Resume a chat of the AI SDK.

    Streams the running turn from its start, also what was sent before. If no turn runs or waits, it is the
    last one, whose end a client may have missed when it lost its connection; 60 s after its end, the answer
    is 204.
    """
    row = await find_session(request)
    state = state_of(request)
    session = await state.recorder.open(row.session_id)
    last_sequence = session.row.last_sequence
    turns = await state.store.turns(session.row.key, limit=_TURNS)
    turn = next((turn for turn in turns if turn.ended_at is None), turns[-1] if turns else None)
    if turn is None or (turn.ended_at or time.time() * 1000) < time.time() * 1000 - _RESUMABLE_MS:
        return Response(status_code=204)
    return _stream(state, session, turn, last_sequence)


@Operation(
    "GET",
    "/v1/sessions/{session_id}/ui/{chat_id}/stream",
    parameters=(SESSION_ID, Parameter("chat_id", "path", "The id of the chat; any.", NAME)),
    answers={200: _STREAM, 204: Answer("No turn runs.")},
    errors=(ServerSessionNotFoundError, StoreUnavailableError),
    store_deadline="request",
)
async def get_ui_chat_stream(request: Request) -> Response:
    """Resume a chat of the AI SDK by its default path.

    The same as `GET /v1/sessions/{session_id}/ui/stream`, at the path to which `resumeStream` of the AI SDK
    connects.
    """
    return await get_ui_stream.endpoint(request)


async def _continue(request: Request, session_id: str, message: dict[str, Any]) -> Response:
    """Answer the permission requests of a turn, and stream what follows."""
    state = state_of(request)
    session = await state.recorder.open(session_id)
    turn = await state.store.turn(session.row.key, turn_id=str(message.get("id") or ""))
    after = members(message.get("metadata")).get("sequence")
    answers = approvals_of(message)
    if turn is None or not answers or not isinstance(after, int):
        raise InvalidRequestError(
            "invalid request: the last message is an assistant's, but not one of this session that answers a "
            "permission request: it needs the id and metadata that the stream gave it, and a part in the "
            "state 'approval-responded'"
        )
    for permission_id, approved in answers.items():
        try:
            await state.inbox.reply_permission(
                session_id, permission_id, "once" if approved else "reject", by=read_identity(request)
            )
        except ConflictError:
            continue  # it was answered before, here or elsewhere
    return _stream(state, session, turn, session.row.last_sequence, after)


def _stream(
    state: ServerState, session: RecordedSession, turn: TurnRow, last_sequence: int, after: int = 0
) -> Response:
    row = session.row
    if turn.last_sequence is not None and (turn.first_sequence or turn.last_sequence) < row.first_sequence:
        raise GoneError(
            f"gone: the events of turn '{turn.turn_id}' are not stored any more",
            turnId=turn.turn_id,
            state=turn.state,
            firstSequence=row.first_sequence,
            lastSequence=row.last_sequence,
        )
    # A turn that never began has only an end, which may have come before this request.
    first = turn.last_sequence if turn.first_sequence is None else turn.first_sequence
    view = UiTurnView(
        session,
        state.store,
        turn.turn_id,
        first=turn.first_sequence,
        last=turn.last_sequence,
        after=after,
        is_for_people=lambda request: state.automatic.waits_for_people(session.row, request),
    )
    cursor = last_sequence if first is None else first - 1
    return EventStream(Viewer(view, cursor, UNNAMED), headers=[(_HEADER.encode(), b"v1")], endless=False)


def _key_of(message: dict[str, Any], prompt: list[dict[str, Any]]) -> str | None:
    """Return the idempotency key of a message; None if it has no id. An edited message has another key."""
    name = message.get("id")
    if not isinstance(name, str) or not name:
        return None
    return "ui:" + hashlib.sha256(msgspec.json.encode([name, prompt])).hexdigest()


OPERATIONS = (
    post_ui_message,
    get_ui_stream,
    get_ui_chat_stream,
)
