"""``/v1/sessions/{id}/messages``: what is said to an agent, and the events of the turn that it begins."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.errors import (
    AgentNotInstalledError,
    AgentProcessExitedError,
    ConflictError,
    GoneError,
    InvalidRequestError,
    PayloadTooLargeError,
    RequestTimeoutError,
    ServerSessionNotFoundError,
    StreamError,
    UnsupportedAgentError,
    UnsupportedMediaTypeError,
)
from sandbox_agent.persist.store.rows import TurnRow
from sandbox_agent.server.http.operations import Answer, Operation, Parameter, header, read_json
from sandbox_agent.server.routes.session_helpers import (
    EVENT_STREAM_SCHEMA,
    INCLUDE_RAW,
    SESSION_ID,
    include_raw,
    session_id_of,
)
from sandbox_agent.server.state import state_of
from sandbox_agent.server.streams.response import EVENT_STREAM, EventStream
from sandbox_agent.server.streams.session_views import TurnView
from sandbox_agent.server.streams.viewers import Viewer
from sandbox_agent.wire.sessions import MessageRequest

__all__ = ["OPERATIONS", "TURN_HEADER"]

TURN_HEADER = "sandbox-agent-turn"
MAX_KEY = 255
MAX_BLOCKS = 10_000
# ACP's content blocks, and what each must have; kinds that are newer than this pass.
_MEMBERS: dict[str, dict[str, type]] = {
    "text": {"text": str},
    "image": {"data": str, "mimeType": str},
    "audio": {"data": str, "mimeType": str},
    "resource_link": {"uri": str, "name": str},
    "resource": {"resource": dict},
}


async def post_message(request: Request) -> Response:
    """Take a message; it is stored when this answers."""
    turn = await _send(request)
    return Response(status_code=204, headers={TURN_HEADER: turn.turn_id})


async def post_message_stream(request: Request) -> Response:
    """Take a message and stream its turn."""
    raw = include_raw(request)
    state = state_of(request)
    session_id = session_id_of(request)
    session = await state.recorder.session(session_id)
    # A turn that has not begun by the time its row is read begins behind this.
    behind = session.row.last_sequence
    sent = await _send(request)
    turn = await state.store.turn(session.row.key, turn_id=sent.turn_id) or sent
    row = session.row
    if turn.last_sequence is not None and turn.last_sequence < row.first_sequence:
        raise GoneError(
            f"gone: the events of turn '{turn.turn_id}' are not kept any more",
            turnId=turn.turn_id,
            state=turn.state,
            firstSequence=row.first_sequence,
            lastSequence=row.last_sequence,
        )
    cursor = behind if turn.first_sequence is None else turn.first_sequence - 1
    view = TurnView(
        session,
        state.store,
        turn.turn_id,
        first=turn.first_sequence,
        last=turn.last_sequence,
        include_raw=raw,
    )
    return EventStream(Viewer(view, cursor, UNNAMED), headers=[(TURN_HEADER.encode(), turn.turn_id.encode())])


async def _send(request: Request) -> TurnRow:
    session_id = session_id_of(request)
    state = state_of(request)
    key = header(request, b"idempotency-key")
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        raise InvalidRequestError(
            f"invalid request: Idempotency-Key must be 1 to {MAX_KEY} printable characters"
        )
    body = await read_json(request, MessageRequest, state.config.max_body_bytes)
    return await state.sessions.message(session_id, _prompt(body), idempotency_key=key)


def _prompt(body: MessageRequest) -> list[dict[str, Any]]:
    """Return the message as ACP content blocks.

    Raises:
        InvalidRequestError: it is empty, or a block is none.
    """
    message = body.message
    if isinstance(message, str):
        message = [{"type": "text", "text": message}] if message else []
    if not message:
        raise InvalidRequestError("invalid request: the message is empty")
    if len(message) > MAX_BLOCKS:
        raise InvalidRequestError(f"invalid request: a message has at most {MAX_BLOCKS} content blocks")
    for number, block in enumerate(message):
        kind: object = block.get("type")
        if not isinstance(kind, str):
            raise InvalidRequestError(
                f"invalid request: message[{number}] is no ACP content block: its type is missing"
            )
        for member, due in _MEMBERS.get(kind, {}).items():
            if not isinstance(block.get(member), due):
                what = "an object" if due is dict else "a string"
                raise InvalidRequestError(
                    f"invalid request: message[{number}].{member} of a block of type {kind} must be {what}"
                )
    try:
        msgspec.json.encode(message)
    except (RecursionError, ValueError, OverflowError):
        raise InvalidRequestError("invalid request: the message is nested too deeply") from None
    return message


_KEY = Parameter(
    "Idempotency-Key",
    "header",
    "Names the message: sent again under the same key it is not sent to the agent again, but answers with "
    "the same turn, also after a restart. Another message under the same key is refused.",
)
_ERRORS = (
    InvalidRequestError,
    UnsupportedAgentError,
    ServerSessionNotFoundError,
    AgentNotInstalledError,
    ConflictError,
    PayloadTooLargeError,
    UnsupportedMediaTypeError,
    AgentProcessExitedError,
    StreamError,
    RequestTimeoutError,
)

OPERATIONS = (
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}/messages",
        endpoint=post_message,
        operation_id="post_message",
        summary="Say something to the agent",
        description=(
            "A text, or ACP content blocks. 204 means that the message is stored and will be sent, after the "
            "turns before it; the header `Sandbox-Agent-Turn` names its turn. An agent that is gone is "
            "started and restored first."
        ),
        tag="sessions",
        parameters=(SESSION_ID, _KEY),
        request_body=MessageRequest,
        answers={204: Answer("It is taken.")},
        errors=_ERRORS,
    ),
    Operation(
        method="POST",
        path="/v1/sessions/{session_id}/messages/stream",
        endpoint=post_message_stream,
        operation_id="post_message_stream",
        summary="Say something and follow the turn",
        description=(
            "Like messages; answers with server-sent events: those of the turn, from its turn.started to its "
            "turn.ended, each with its sequence as id. A client that goes away does not cancel the turn: the "
            "same message under the same Idempotency-Key streams it again, from its beginning."
        ),
        tag="sessions",
        parameters=(SESSION_ID, _KEY, *INCLUDE_RAW),
        request_body=MessageRequest,
        answers={200: Answer("The stream.", EVENT_STREAM_SCHEMA, EVENT_STREAM)},
        errors=(*_ERRORS, GoneError),
    ),
)
