"""``/v1/sessions/{id}/messages``: send a message, and stream the events of its turn."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.errors import (
    AgentNotInstalledError,
    ConflictError,
    GoneError,
    ServerSessionNotFoundError,
    StoreUnavailableError,
    UnsupportedAgentError,
)
from sandbox_agent.persist.store import TurnRow
from sandbox_agent.server.http.dispatch import start_store_deadline
from sandbox_agent.server.http.operations import (
    AGENT_ERRORS,
    MAX_IDEMPOTENCY_KEY,
    Answer,
    Operation,
    Parameter,
    read_idempotency_key,
    read_json,
    text_schema,
)
from sandbox_agent.server.routes.session_helpers import (
    INCLUDE_RAW,
    SESSION_ID,
    include_raw,
    session_id_of,
)
from sandbox_agent.server.state import state_of
from sandbox_agent.server.streams.session_views import TurnView
from sandbox_agent.server.streams.viewers import EVENT_STREAM, EventStream, Viewer
from sandbox_agent.wire.sessions import MessageRequest

TURN_HEADER = "sandbox-agent-turn"

_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "Identifies the message. If it is sent again with the same key, the agent does not receive it twice: the "
    "answer has the same turn, even after a restart of the server. A different message with the same key is "
    "refused.",
    text_schema(least=1, most=MAX_IDEMPOTENCY_KEY),
)
_TURN = {TURN_HEADER: "The id of the message's turn."}
_ERRORS = (
    UnsupportedAgentError,
    ServerSessionNotFoundError,
    AgentNotInstalledError,
    ConflictError,
    StoreUnavailableError,
    *AGENT_ERRORS,
)


@Operation(
    "POST",
    "/v1/sessions/{session_id}/messages",
    parameters=(SESSION_ID, _KEY),
    request_body=MessageRequest,
    store_deadline="body",
    answers={204: Answer("The message is stored.", headers=_TURN)},
    errors=_ERRORS,
)
async def post_message(request: Request) -> Response:
    """Send a message.

    The message is a text or a list of ACP content blocks. The answer 204 means that it is stored and is sent
    to the agent after the earlier turns. An agent that does not run is started and its session is restored
    first.
    """
    turn = await _send(request)
    return Response(status_code=204, headers={TURN_HEADER: turn.turn_id})


@Operation(
    "POST",
    "/v1/sessions/{session_id}/messages/stream",
    parameters=(SESSION_ID, _KEY, *INCLUDE_RAW),
    request_body=MessageRequest,
    store_deadline="body",
    answers={200: Answer("The stream.", text_schema(), EVENT_STREAM, _TURN)},
    errors=(*_ERRORS, GoneError),
)
async def post_message_stream(request: Request) -> Response:
    """Send a message and stream its turn.

    Sends a message and answers with server-sent events: the events of the turn, from turn.started to
    turn.ended, each with its sequence as its id. A client that disconnects does not cancel the turn. Sending
    the same message with the same Idempotency-Key streams the turn again, from its first event.
    """
    raw = include_raw(request)
    state = state_of(request)
    session_id = session_id_of(request)
    session = await state.recorder.open(session_id)
    # If the turn has not started when its row is read, its events come after this one.
    last_sequence = session.row.last_sequence
    sent = await _send(request)
    turn = await state.store.turn(session.row.key, turn_id=sent.turn_id) or sent
    row = session.row
    if turn.last_sequence is not None and turn.last_sequence < row.first_sequence:
        raise GoneError(
            f"gone: the events of turn '{turn.turn_id}' are not stored any more",
            turnId=turn.turn_id,
            state=turn.state,
            firstSequence=row.first_sequence,
            lastSequence=row.last_sequence,
        )
    # A turn that never began has only an end, which may have come before this request.
    first = turn.last_sequence if turn.first_sequence is None else turn.first_sequence
    cursor = last_sequence if first is None else first - 1
    view = TurnView(
        session,
        state.store,
        turn.turn_id,
        first=turn.first_sequence,
        last=turn.last_sequence,
        include_raw=raw,
    )
    headers = [(TURN_HEADER.encode(), turn.turn_id.encode())]
    return EventStream(Viewer(view, cursor, UNNAMED), headers=headers, endless=False)


async def _send(request: Request) -> TurnRow:
    session_id = session_id_of(request)
    state = state_of(request)
    key = read_idempotency_key(request)
    body = await read_json(request, MessageRequest, state.config.max_body_bytes, known_only=True)
    message = body.message
    if isinstance(message, str):
        message = [{"type": "text", "text": message}] if message else []
    start_store_deadline(request)
    return await state.sessions.message(session_id, message, idempotency_key=key)


OPERATIONS = (
    post_message,
    post_message_stream,
)
