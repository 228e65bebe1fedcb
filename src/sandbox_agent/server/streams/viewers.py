"""Viewers of a feed, which are cursors that wait until there is more, and their server-sent events."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sandbox_agent.engine.feed import Slice
from sandbox_agent.engine.sse import encode_comment, encode_retry
from sandbox_agent.errors import PersistError
from sandbox_agent.server.streams.usage import Usage

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# Proxies drop a silent connection after 30 to 60 s.
KEEPALIVE_SECONDS = 15.0
# One write to a socket: large enough to be cheap, small enough not to hold the loop.
SLICE_BYTES = 256 * 1024
EVENT_STREAM = "text/event-stream"
# How long a client waits before it reconnects.
RETRY_MS = 500
EVENT_STREAM_HEADERS = (
    (b"content-type", EVENT_STREAM.encode()),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Signal:
    """Wakes all that wait for something new.

    Attributes:
        ticks: how often it fired only to keep connections alive.
        closed: nothing new will come; a viewer that has read everything ends.
    """

    __slots__ = ("_waiters", "closed", "ticks")

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []
        self.ticks: int = 0
        self.closed: bool = False

    def fire(self) -> None:
        """Wake all that wait now."""
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def tick(self) -> None:
        """Wake all that wait now, to keep their connections alive."""
        self.ticks += 1
        self.fire()

    def close(self) -> None:
        """Wake all that wait now: nothing will follow."""
        self.closed = True
        self.fire()

    def wait(self) -> asyncio.Future[None]:
        """Return a future that is done when it fires next."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        return waiter


class Viewed(Protocol):
    """What a viewer reads, and what counts its viewers."""

    signal: Signal
    usage: Usage

    @property
    def finished(self) -> bool:
        """Whether nothing will come any more."""
        ...

    async def read(self, cursor: int, viewer: str, *, max_bytes: int) -> Slice:
        """Return what is after the cursor, from memory or from the spill."""
        ...


class Viewer:
    """A cursor into a feed. Iterating it yields server-sent events until the feed ends or the viewer leaves.

    A viewer holds only its cursor, the last sequence that the client has. It reads from memory while it can,
    else from the spill, so a slow viewer costs no more than a fast one.

    Args:
        viewed: what is read.
        cursor: the last sequence that the client has.
        name: the client's name, or UNNAMED.
        audience: whose envelopes it receives; by default those for the client.
    """

    __slots__ = ("_audience", "_cursor", "_left", "_name", "_ticks", "_viewed", "_waiter")

    def __init__(self, viewed: Viewed, cursor: int, name: str, *, audience: str | None = None) -> None:
        self._viewed = viewed
        self._cursor = cursor
        self._name = name
        self._audience = name if audience is None else audience
        self._ticks = viewed.signal.ticks
        self._left = False
        self._waiter: asyncio.Future[None] | None = None

    def counted(self) -> AbstractContextManager[object]:
        """Return a context that counts as an open stream of the client."""
        return self._viewed.usage.used(self._name, streams=1)

    def leave(self) -> None:
        """End the iteration: the client has disconnected."""
        self._left = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        signal = self._viewed.signal
        while not self._left:
            finished = self._viewed.finished or signal.closed
            part = await self._viewed.read(self._cursor, self._audience, max_bytes=SLICE_BYTES)
            if part.cursor != self._cursor or part.data:
                self._cursor = part.cursor
                if part.data:
                    self._ticks = signal.ticks
                    yield part.data
            elif finished:
                return
            elif self._viewed.finished or signal.closed:
                continue  # it ended while the spill was read, so the signal does not fire again
            elif signal.ticks != self._ticks:
                self._ticks = signal.ticks
                yield encode_comment()
            else:
                self._waiter = signal.wait()
                await self._waiter


class EventStream(Response):
    """The events of a viewer, as a response that lasts until the viewer ends or the client disconnects.

    The first bytes are sent at once. If the store fails, the stream ends: the client's next request
    continues where this one stopped, or fails with the reason. ``opening`` has events that are sent first.
    ``presence`` is entered while the response lasts. ``endless``: it lasts until the client leaves.
    """

    stream_type = "sse"
    status_code = 200

    def __init__(
        self,
        viewer: Viewer,
        *,
        opening: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = (),
        presence: AbstractContextManager[None] | None = None,
        endless: bool = True,
    ) -> None:
        self.endless: bool = endless
        self._viewer = viewer
        self._presence = presence or nullcontext()
        self._opening = encode_comment("connected") + encode_retry(RETRY_MS) + opening
        self._headers = [*EVENT_STREAM_HEADERS, *headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self._headers})
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        with self._viewer.counted(), self._presence, on_disconnect(receive, self._viewer.leave):
            await send({"type": "http.response.body", "body": self._opening, "more_body": True})
            try:
                async for data in self._viewer:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            except PersistError as error:
                logger.warning("a stream ends early: the store can't be read (%s)", error)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


@contextmanager
def on_disconnect(receive: Receive, call: Callable[[], None]) -> Generator[None]:
    """Call a function if the client disconnects while the context lasts; the request's body was read."""
    watching = asyncio.ensure_future(_call_on_disconnect(receive, call))
    try:
        yield
    finally:
        watching.cancel()


async def _call_on_disconnect(receive: Receive, call: Callable[[], None]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    call()
