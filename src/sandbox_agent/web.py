"""Responses of web applications, made from sessions of the SDK: for FastAPI and Starlette.

A client that disconnects does not cancel the turn, and continues where it stopped: with ``Last-Event-ID``,
with the index of its last event, or by resuming the chat of the AI SDK. A client that reads slowly costs no
memory: what it has not read stays in the store.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any, cast

import anyio

from sandbox_agent.client.session import Session, Turn, waits_for_people
from sandbox_agent.engine.permissions import is_reply
from sandbox_agent.engine.project import Projector
from sandbox_agent.engine.sse import encode_comment, encode_event, encode_retry
from sandbox_agent.engine.ui_messages import Chunk, UiMessageChunks, approvals_of, prompt_of
from sandbox_agent.errors import ConflictError, InvalidRequestError, SandboxAgentError
from sandbox_agent.extras import missing_extra
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, elements, loads, members
from sandbox_agent.wire.records import SessionEvent
from sandbox_agent.wire.requests import PermissionRequest, QuestionRequest

try:
    from starlette.requests import HTTPConnection
    from starlette.responses import Response, StreamingResponse
    from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
except ImportError as _missing:
    raise missing_extra("sandbox_agent.web", "server") from _missing

__all__ = ["sse_response", "ui_resume_response", "ui_stream_response", "websocket_endpoint"]

logger: logging.Logger = logging.getLogger("sandbox_agent.web")

# Proxies drop a silent connection after 30 to 60 s.
KEEPALIVE_SECONDS = 15.0
# How long a client waits before it reconnects.
RETRY_MS = 500
# Prompts of one WebSocket that run or wait.
MAX_PROMPTS = 16
_SSE = "text/event-stream"
_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_UI_HEADERS = {**_HEADERS, "x-vercel-ai-ui-message-stream": "v1"}
_UI_DONE = b"data: [DONE]\n\n"
_TURN = "turn-"
# Those of 2**53, beyond which JavaScript has no exact integers.
_MAX_DIGITS = 16
_NORMAL, _GOING_AWAY, _POLICY_VIOLATION, _INTERNAL_ERROR = 1000, 1001, 1008, 1011


def sse_response(
    session: Session, request: HTTPConnection | None = None, *, last_event_id: int | str | None = None
) -> Response:
    """Return the events of a session as server-sent events: stored ones, then live ones, each once.

    The id of an event is its index; its data is ``SessionEvent.to_json()``. The stream lasts until the client
    leaves or the SDK is disposed. A comment every 15 seconds keeps it alive.

    Args:
        session: The session. Requests of its agent are among the events; answer them with
            ``respond_permission`` in another endpoint.
        request: The request, whose ``Last-Event-ID`` says where the stream begins.
        last_event_id: The index after which it begins, if the request does not say so; the first event by
            default.

    Returns:
        The response; one with the status 400 if the id is not a number.
    """
    given = (None if request is None else request.headers.get("last-event-id")) or last_event_id or 0
    index = _index_of(str(given))
    if index is None:
        return _refusal(InvalidRequestError("invalid request: Last-Event-ID must be the index of an event"))
    frames = _event_frames(session.events(after=index))
    return StreamingResponse(_kept_alive(frames), media_type=_SSE, headers=_HEADERS)


async def _event_frames(events: AsyncIterator[SessionEvent]) -> AsyncGenerator[bytes]:
    yield encode_retry(RETRY_MS)
    try:
        async for event in events:
            # A notice of a store that fails has no place in the history.
            event_id = event.event_index or None
            yield encode_event("message", event.to_json().encode(), event_id=event_id)
    except SandboxAgentError as error:
        logger.warning("a stream ends early: the events can't be read (%s)", error)


async def websocket_endpoint(session: Session, websocket: WebSocket, *, after: int | None = None) -> None:
    """Serve a session over a WebSocket: events to the client; prompts, cancels and answers to the agent.

    All frames are text with a JSON object. The client sends::

        {"type": "prompt", "prompt": "text or content blocks", "id": 1}
        {"type": "cancel"}
        {"type": "permission", "id": "...", "reply": "once" | "always" | "reject"}
        {"type": "question", "id": "...", "answers": [...] | {...} | null}

    The ``id`` of an answer is that of the event with the request. The client receives::

        {"type": "event", "event": {...}}                       SessionEvent.to_dict()
        {"type": "turn_ended", "id": 1, "stopReason": "end_turn"}
        {"type": "error", "message": "...", "id": 1}            a prompt or another frame has failed

    The endpoint returns when the client has left. Its turn continues, and permission requests wait for an
    answer: a session without a ``permission_policy`` gets the policy "ask". Authenticate the handshake
    before, and check its ``Origin`` if you use cookies: a page of any site can open a WebSocket.

    Args:
        session: The session.
        websocket: The WebSocket; it is accepted if that was not done.
        after: The index of the last event that the client has; by default the query parameter ``after``, or
            0 for all events.

    The close code is 1008 if ``after`` is not a number, 1001 if the SDK was disposed, and 1011 if the events
    cannot be read or something unexpected fails.
    """
    _wait_for_people(session)
    if websocket.application_state is WebSocketState.CONNECTING:
        await websocket.accept()
    index = after if after is not None else _index_of(websocket.query_params.get("after") or "0")
    socket = _Socket(session, websocket)
    code, reason = _POLICY_VIOLATION, "after must be the index of an event"
    if index is not None:
        code, reason = await socket.serve(index)
    if websocket.client_state is not WebSocketState.DISCONNECTED:
        try:
            await websocket.close(code, reason)
        except (OSError, RuntimeError, WebSocketDisconnect):
            logger.debug("a WebSocket was closed by its client meanwhile")


class _Socket:
    """A WebSocket of a session."""

    def __init__(self, session: Session, websocket: WebSocket) -> None:
        self._session = session
        self._websocket = websocket
        self._lock = anyio.Lock()
        self._prompts = 0
        # The last event that was sent, and those which wait until others are.
        self._sent = 0
        self._waiters: dict[anyio.Event, int] = {}

    async def serve(self, after: int) -> tuple[int, str]:
        """Serve until the client has left; return the code and the reason of the close."""
        code, reason = _GOING_AWAY, "the SDK was disposed"
        self._sent = after
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._receive, tasks)
                async for event in self._session.events(after=after):
                    await self._send({"type": "event", "event": event.to_dict()})
                    self._sent = max(self._sent, event.event_index)
                    for waiter, index in self._waiters.items():
                        if index <= self._sent:
                            waiter.set()
                tasks.cancel_scope.cancel()
        except* (WebSocketDisconnect, OSError):
            code, reason = _NORMAL, ""
        except* SandboxAgentError as errors:
            logger.warning("a WebSocket ends early: the events can't be read (%s)", errors.exceptions[0])
            code, reason = _INTERNAL_ERROR, "the events can't be read now"
        except* Exception:
            logger.exception("a WebSocket of session %s failed", self._session.id)
            code, reason = _INTERNAL_ERROR, "an unexpected error; see the application's log"
        return code, reason

    async def _send(self, frame: dict[str, Any]) -> None:
        async with self._lock:
            await self._websocket.send_text(dumps(frame).decode())

    async def _receive(self, tasks: anyio.abc.TaskGroup) -> None:
        while True:
            message = await self._websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", _NORMAL))
            frame: dict[str, Any] = {}
            try:
                frame = _read_frame(message.get("text"))
                if frame.get("type") == "prompt":
                    self._begin_prompt(frame, tasks)
                else:
                    await self._answer(frame)
            except (SandboxAgentError, ValueError, TypeError) as error:
                await self._send(_error(frame, error))

    def _begin_prompt(self, frame: dict[str, Any], tasks: anyio.abc.TaskGroup) -> None:
        if self._prompts >= MAX_PROMPTS:
            raise ConflictError(f"conflict: {MAX_PROMPTS} prompts of this WebSocket wait already")
        turn = self._session.stream(frame.get("prompt", ""))  # checks the prompt
        self._prompts += 1
        tasks.start_soon(self._prompt, frame, turn)

    async def _prompt(self, frame: dict[str, Any], turn: Turn) -> None:
        answer: dict[str, Any]
        last = 0
        try:
            async for event in turn:
                last = event.event_index
            reason = turn.response.stop_reason
            answer = {"type": "turn_ended", "id": frame.get("id"), "stopReason": reason}
        except (SandboxAgentError, ValueError, TypeError) as error:
            answer = _error(frame, error)
        finally:
            self._prompts -= 1
        await self._wait_sent(last)
        await self._send(answer)

    async def _wait_sent(self, index: int) -> None:
        """Wait until an event was sent, so that the end of a turn comes behind its events."""
        if index > self._sent:
            waiter = anyio.Event()
            self._waiters[waiter] = index
            await waiter.wait()
            del self._waiters[waiter]

    async def _answer(self, frame: dict[str, Any]) -> None:
        name = str(frame.get("id"))
        match frame.get("type"):
            case "cancel":
                await self._session.cancel()
            case "permission":
                reply = frame.get("reply")
                if not is_reply(reply):
                    raise ValueError(f'reply must be "once", "always" or "reject", not {reply!r}')
                await self._session.respond_permission(name, reply)
            case "question":
                await self._session.respond_question(name, frame.get("answers"))
            case kind:
                raise ValueError(f'type must be "prompt", "cancel", "permission" or "question", not {kind!r}')


def _read_frame(text: str | None) -> dict[str, Any]:
    try:
        frame: object = None if text is None else loads(text.encode())
    except InvalidEnvelopeError as error:
        raise ValueError(f"a frame must be a JSON object: {error}") from None
    if not isinstance(frame, dict):
        raise ValueError("a frame must be text with a JSON object")
    return cast("dict[str, Any]", frame)


def _error(frame: dict[str, Any], error: Exception) -> dict[str, Any]:
    return {"type": "error", "id": frame.get("id"), "message": str(error)}


def ui_stream_response(session: Session, body: Mapping[str, Any]) -> Response:
    """Return the response to a chat of the AI SDK (npm ``ai``): its UI message stream, version 1.

    The same as ``POST /v1/sessions/{session_id}/ui`` of the server, for a session of the SDK. If the last
    message is a user's, it is sent, and its turn is streamed as an assistant's message. The stream also ends
    when the turn waits for a permission: the next request, with the answers of ``addToolApprovalResponse``,
    continues the turn. A session without a ``permission_policy`` gets the policy "ask".

    Args:
        session: The session; one for each chat.
        body: The body of the request, which has ``messages``.

    Returns:
        The response; one with the status 400 if the body is not that of a chat.
    """
    if not isinstance(body, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - it is a client's
        return _refusal(InvalidRequestError("invalid request: the body must be a JSON object with messages"))
    _wait_for_people(session)
    messages = [members(message) for message in elements(body.get("messages"))]
    message = messages[-1] if messages else {}
    try:
        if message.get("role") != "assistant":
            return _ui_response(session, session.stream(prompt_of(message), on_busy="error"))
        index, after = _turn_of(message)
    except SandboxAgentError as error:
        return _refusal(error)
    return _ui_response(session, None, index=index, after=after, answers=approvals_of(message))


def ui_resume_response(session: Session) -> Response:
    """Return the response to ``resumeStream()`` of the AI SDK: the turn that runs, from its start.

    Serve it at ``{api}/{chat_id}/stream``, where ``api`` is the path of ``ui_stream_response``.

    Returns:
        The response; one with the status 204 if no turn runs.
    """
    turn = session.turn
    return Response(status_code=HTTPStatus.NO_CONTENT) if turn is None else _ui_response(session, turn)


def _wait_for_people(session: Session) -> None:
    if session.permission_policy is None:
        session.permission_policy = "ask"


def _turn_of(message: dict[str, Any]) -> tuple[int, int]:
    """Return the index of the prompt of an assistant's message, and of the last event that the page has."""
    number = _index_of(str(message.get("id") or "").removeprefix(_TURN))
    after = members(message.get("metadata")).get("sequence")
    if number is None or not isinstance(after, int) or not approvals_of(message):
        raise InvalidRequestError(
            "invalid request: the last message is an assistant's, but does not answer a permission request: "
            "it needs the id and metadata that the stream gave it, and a part in the state "
            "'approval-responded'"
        )
    return number, after


def _index_of(text: str) -> int | None:
    """Return the index that a text has; None if it has none."""
    is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
    return int(text) if is_number else None


def _ui_response(
    session: Session,
    turn: Turn | None,
    *,
    index: int = 0,
    after: int = 0,
    answers: Mapping[str, bool] | None = None,
) -> Response:
    frames = _ui_frames(session, turn, index, after, answers or {})
    return StreamingResponse(_kept_alive(frames), media_type=_SSE, headers=_UI_HEADERS)


async def _ui_frames(
    session: Session, turn: Turn | None, index: int, after: int, answers: Mapping[str, bool]
) -> AsyncGenerator[bytes]:
    ended = False
    try:
        for permission_id, approved in answers.items():
            if waits_for_people(session, permission_id):  # else it was answered before, here or elsewhere
                await session.respond_permission(permission_id, "once" if approved else "reject")
        events: AsyncIterator[SessionEvent] | None = turn or (session.turn if index else None)
        if events is None:
            stored = session.events(after=index - 1)
            stored.close()  # the turn has ended: what is stored is all
            events = stored
        async for chunks, ended in _chunks(session, events, index, after):
            if chunks:
                yield _encode(chunks)
            if ended:
                break
        if not ended:
            yield _encode([{"type": "error", "errorText": "The turn was interrupted."}])
    except (SandboxAgentError, TypeError) as error:
        if not ended:
            yield _encode([{"type": "error", "errorText": str(error)}])
    yield _UI_DONE


async def _chunks(
    session: Session, events: AsyncIterator[SessionEvent], index: int, after: int
) -> AsyncGenerator[tuple[list[Chunk], bool]]:
    """Yield the chunks of each event of a turn behind ``after``, and whether the response ends with them.

    ``index`` is that of the turn's prompt; 0 for the first prompt of the events.
    """
    projector = Projector(session.id)
    message: UiMessageChunks | None = None
    started = False
    async for event in events:
        if message is None:
            if _is_prompt(event, 0) and event.event_index > index > 0:
                return  # the turn is not one of this session's
            if not _is_prompt(event, index):
                continue
            message = UiMessageChunks(f"{_TURN}{event.event_index}")
        chunks: list[Chunk] = []
        for each in projector.feed(
            event.sender, event.payload_json, event.created_at, subject_id=_subject_of(event)
        ):
            chunks += message.feed(each)
        if event.event_index <= after:
            continue
        if not started:
            started, chunks = True, [*message.start(), *chunks]
        waits = any(waits_for_people(session, name) for name in message.waiting)
        if waits:
            chunks += message.pause(event.event_index)
        yield chunks, message.ended or waits


def _is_prompt(event: SessionEvent, index: int) -> bool:
    is_it = event.sender == "client" and event.payload.get("method") == "session/prompt"
    return is_it and index in (0, event.event_index)


def _subject_of(event: SessionEvent) -> str | None:
    """Return the id of what an event begins: a turn, a permission request or a question."""
    if _is_prompt(event, 0):
        return f"{_TURN}{event.event_index}"
    update = event.update
    return update.id if isinstance(update, PermissionRequest | QuestionRequest) else None


def _encode(chunks: list[Chunk]) -> bytes:
    return b"".join([b"data: %b\n\n" % dumps(chunk) for chunk in chunks])


async def _kept_alive(frames: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
    """Yield frames, and a comment if there was none for a time; the frames are closed at the end."""
    yield encode_comment("connected")
    following: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(_next(frames))
            done, _ = await asyncio.wait({following}, timeout=KEEPALIVE_SECONDS)
            if not done:
                yield encode_comment()
                continue
            frame = following.result()
            following = None
            if frame is None:
                return
            yield frame
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait({following})
        await frames.aclose()


async def _next(frames: AsyncGenerator[bytes]) -> bytes | None:
    return await anext(frames, None)


def _refusal(error: SandboxAgentError) -> Response:
    problem = {
        "type": "urn:sandbox-agent:error:invalid_request",
        "title": "Invalid Request",
        "status": 400,
        "detail": str(error),
    }
    return Response(dumps(problem), HTTPStatus.BAD_REQUEST, media_type="application/problem+json")
