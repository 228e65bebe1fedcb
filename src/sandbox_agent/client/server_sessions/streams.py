"""Event streams over any number of connections: a session's events, and one message's turn."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from typing import Any, TypeAlias

import httpx2

from sandbox_agent.client.http import encode_header
from sandbox_agent.client.prompts import Prompt, prompt_blocks
from sandbox_agent.client.server_sessions.calls import (
    RetryPolicy,
    SessionCalls,
    UnavailableError,
    decode,
    query,
    session_path,
)
from sandbox_agent.client.server_sessions.cursor import EventCursor, SequenceGapError
from sandbox_agent.client.trace import current_trace
from sandbox_agent.engine.sse import SseDecoder, SseEvent, SseTooLargeError
from sandbox_agent.errors import ConnectionLostError, SandboxAgentError
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.sessions import SessionInfo
from sandbox_agent.wire.universal import AgentEvent, TurnEventData

# A connection that has lasted for so long is no part of a loss, also if there were no events: the server
# sends a comment every 15 seconds.
STEADY_SECONDS = 10.0


async def read_batches(
    connect: Callable[[], AbstractAsyncContextManager[httpx2.Response]],
    cursor: EventCursor,
    retry: RetryPolicy,
    is_over: Callable[[], Awaitable[bool]],
) -> AsyncGenerator[list[AgentEvent]]:
    """Iterate over the new events of a stream, those of one chunk together; a batch may be empty.

    Args:
        connect: opens the stream after the cursor's position.
        cursor: the position in the session's events.
        retry: decides how long losses are retried.
        is_over: whether no more events will come; asked when the stream ends.

    Raises:
        GoneError: the server no longer has the next events.
        ConnectionLostError: the server is gone, or the stream is invalid.
    """
    while True:
        loss: Exception | str
        try:
            async with connect() as response, aclosing(_read_chunks(response)) as chunks:
                retry.mark_responded()
                opened = time.monotonic()
                async for chunk in chunks:
                    events = cursor.accept(chunk)
                    if events or time.monotonic() - opened >= STEADY_SECONDS:
                        retry.mark_progress()
                    yield events
            if await is_over():
                return
            loss = "the stream ended"
        except (httpx2.TransportError, SequenceGapError) as error:
            loss = error
        except UnavailableError as error:
            cause = error.__cause__
            loss = cause if isinstance(cause, SandboxAgentError) else error
        await retry.wait(loss)


async def _read_chunks(response: httpx2.Response) -> AsyncGenerator[Sequence[SseEvent]]:
    decoder = SseDecoder()
    async for chunk in response.aiter_raw():
        try:
            yield decoder.feed(chunk)
        except SseTooLargeError as error:
            raise ConnectionLostError(f"invalid event stream: {error}") from error


async def follow(
    calls: SessionCalls,
    session_id: str,
    *,
    offset: int = 0,
    include_raw: bool = False,
    allow_gaps: bool = False,
) -> AsyncGenerator[list[AgentEvent]]:
    """Iterate over a session's events with ``sequence > offset``, in batches as they are received.

    The iteration ends after session.ended, or at once if an ended session has no more events. Raises as
    ``ServerSessions.stream_events``.
    """
    if offset < 0:
        raise ValueError("offset is negative: pass the sequence of the last event that you have, or 0")
    cursor = EventCursor(session_id, offset, allow_gaps=allow_gaps)
    path = session_path(session_id, "events", "sse")
    retry = calls.retry_policy(f"events of session '{session_id}'")

    def connect() -> AbstractAsyncContextManager[httpx2.Response]:
        params = query(offset=cursor.sequence, include_raw=include_raw)
        return calls.stream("GET", path, params=params, headers={})

    async def last_sequence() -> int | None:
        info = await fetch_info(calls, session_id, retry)
        return info.event_count if info.ended else None

    async def is_over() -> bool:
        nonlocal end
        end = await last_sequence()
        return cursor.sequence == end

    # The stream of an ended session stays open, so its last event has to be known before.
    end = await last_sequence()
    if offset == end:
        return
    async with aclosing(read_batches(connect, cursor, retry, is_over)) as batches:
        async for events in batches:
            if events:
                yield events
            if any(event.type == "session.ended" for event in events) or cursor.sequence == end:
                return


async def fetch_info(calls: SessionCalls, session_id: str, retry: RetryPolicy | None = None) -> SessionInfo:
    """Fetch a session's info."""
    path = session_path(session_id)
    return decode(await calls.send("GET", path, retry=retry), SessionInfo, f"GET {path}")


TURN_HEADER = "Sandbox-Agent-Turn"
FINAL_STATES = frozenset({"done", "failed", "cancelled", "interrupted"})


Message: TypeAlias = Prompt


def new_key() -> str:
    """Return a new idempotency key."""
    return str(uuid.uuid4())


def message_body(message: Message) -> dict[str, Any]:
    """Return the request body of a message.

    Raises:
        TypeError: the message is neither text nor a list of content blocks, or the list is empty.
        ValueError: the text is empty.
    """
    if isinstance(message, str) and not message:
        raise ValueError("the message is empty: pass a text, or at least one content block")
    return {"message": message if isinstance(message, str) else prompt_blocks(message)}


async def stream_turn(
    calls: SessionCalls,
    session_id: str,
    message: Message,
    *,
    include_raw: bool = False,
    idempotency_key: str | None = None,
) -> AsyncGenerator[AgentEvent]:
    """Send a message and iterate over its turn's events; see ``ServerSessions.stream_turn``."""
    key = encode_header(idempotency_key or new_key())
    content = dumps(message_body(message))
    trace = current_trace()
    path = session_path(session_id, "messages", "stream")
    # The position of the turn is not known; events that were read are skipped when it is sent again.
    cursor = EventCursor(session_id, None)
    retry = calls.retry_policy(f"turn of session '{session_id}'")
    turn_id: str | None = None

    @asynccontextmanager
    async def connect() -> AsyncGenerator[httpx2.Response]:
        nonlocal turn_id
        headers = {"Content-Type": "application/json", "Idempotency-Key": key, **trace}
        if cursor.sequence is not None:
            headers["Last-Event-ID"] = str(cursor.sequence)
        params = query(include_raw=include_raw)
        async with calls.stream("POST", path, params=params, headers=headers, content=content) as response:
            turn_id = response.headers.get(TURN_HEADER)
            yield response

    async def is_over() -> bool:
        # The turn may have ended without an event that says so.
        info = await fetch_info(calls, session_id, retry)
        turn = next((turn for turn in info.turns or [] if turn.idempotency_key == key), None)
        return turn is not None and turn.state in FINAL_STATES

    await retry.wait_ready()
    async with aclosing(read_batches(connect, cursor, retry, is_over)) as batches:
        async for events in batches:
            for event in events:
                yield event
                if event.type == "session.ended":
                    return
                if isinstance(event.data, TurnEventData):
                    if event.type == "turn.started":
                        # Without an id from the server, the turn is the one that starts first.
                        turn_id = turn_id or event.data.turn_id
                    elif event.type == "turn.ended" and turn_id in {None, event.data.turn_id}:
                        return
