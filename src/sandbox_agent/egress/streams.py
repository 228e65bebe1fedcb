"""The two ends of a connection that is passed on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable

CHUNK = 64 * 1024
# A client that still sends is given this long to read why it is refused.
LINGER_SECONDS = 2.0


class Stream:
    """One end: what was read and not used yet, and a writer with backpressure.

    Attributes:
        rest: What was read already.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.rest: bytes = b""

    async def read(self) -> bytes:
        """Return the next bytes, or no bytes at the end."""
        if self.rest:
            data, self.rest = self.rest, b""
            return data
        return await self._reader.read(CHUNK)

    async def read_more(self) -> bool:
        """Add the next bytes to the rest; return whether there were any."""
        data = await self._reader.read(CHUNK)
        self.rest += data
        return bool(data)

    async def write(self, data: bytes) -> None:
        """Write bytes, and wait while the other side does not read."""
        self._writer.write(data)
        await self._writer.drain()

    def end(self) -> None:
        """Say that nothing more will be written."""
        with contextlib.suppress(OSError, RuntimeError):
            if self._writer.can_write_eof():
                self._writer.write_eof()

    async def refuse(self, answer: bytes) -> None:
        """Write a last answer. A connection that is closed while the client sends may lose it."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                await self.write(answer)
                self.end()
                while await self._reader.read(CHUNK):
                    pass

    def close(self) -> asyncio.Future[None]:
        """Close the connection, and return what ends when everything is sent."""
        self._writer.close()
        return asyncio.ensure_future(self._writer.wait_closed())

    def abort(self) -> None:
        """Close the connection at once."""
        self._writer.transport.abort()


async def close(*streams: Stream) -> None:
    """Close connections. What the other side has not read within a moment is lost."""
    closing = [stream.close() for stream in streams]
    try:
        await asyncio.wait(closing, timeout=LINGER_SECONDS)
    finally:
        for stream in streams:
            stream.abort()
        await asyncio.gather(*closing, return_exceptions=True)


async def pump(source: Stream, target: Stream, active: Callable[[], None] = lambda: None) -> None:
    """Pass on bytes until the source ends, and then its end. ``active`` is called with each piece."""
    while data := await source.read():
        active()
        await target.write(data)
    target.end()


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait for their end."""
    cancelled = list(tasks)
    for task in cancelled:
        task.cancel()
    await asyncio.gather(*cancelled, return_exceptions=True)
