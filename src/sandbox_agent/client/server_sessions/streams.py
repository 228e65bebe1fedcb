"""Reads an event stream over any number of connections: after a loss it is opened again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing

import httpx2

from sandbox_agent.client.server_sessions.calls import UnavailableError
from sandbox_agent.client.server_sessions.cursor import EventCursor, SequenceGapError
from sandbox_agent.client.server_sessions.retry import RetryPolicy
from sandbox_agent.engine.sse import SseDecoder, SseEvent, SseTooLargeError
from sandbox_agent.errors import ConnectionLostError, SandboxAgentError
from sandbox_agent.wire.universal import UniversalEvent


async def read_batches(
    connect: Callable[[], AbstractAsyncContextManager[httpx2.Response]],
    cursor: EventCursor,
    retry: RetryPolicy,
    is_over: Callable[[], Awaitable[bool]],
) -> AsyncGenerator[list[UniversalEvent]]:
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
                async for chunk in chunks:
                    events = cursor.accept(chunk)
                    if events:
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
