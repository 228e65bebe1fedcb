"""A child's pipes: read as much as is there at once, write whole messages, and let the pipe push back."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

__all__ = ["READ_BYTES", "PipeReader", "PipeWriter"]

# One read takes what a pipe holds unless somebody made it larger.
READ_BYTES = 64 * 1024
# Linux lets a pipe be made this large.
MAX_PIPE_BYTES = 1024 * 1024


class PipeReader:
    """The reading end of a pipe, with a buffer of one read.

    What isn't read stays in the pipe, so a slow reader stops the writer: that is the backpressure.

    Args:
        fd: the descriptor; it is made non-blocking and closed by close().

    Attributes:
        drained: whether the last read took all that was there.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.drained = False
        self._fd = fd
        self._waiter: asyncio.Future[None] | None = None
        self._watched = False
        self._ahead: bytes | None = None

    async def read(self) -> bytes:
        """Wait for bytes and return them; ``b""`` at the end of the stream."""
        if self.drained and self._ahead is None and self._fd >= 0:
            await self._readable()
        while (data := self.read_nowait()) is None:
            await self._readable()
        self.drained = 0 < len(data) < READ_BYTES
        return data

    def read_nowait(self) -> bytes | None:
        """Return what is there now, ``b""`` at the end of the stream, None when nothing is there."""
        if self._ahead is not None:
            data, self._ahead = self._ahead, None
            return data
        if self._fd < 0:
            return b""
        try:
            return os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def leftover(self) -> Iterator[bytes]:
        """Yield what an exited process left in the pipe, and no more than a pipe can hold.

        Somebody who escaped the process's tree may go on writing; that one is not listened to for ever.
        """
        size = 0
        while size < MAX_PIPE_BYTES and (data := self.read_nowait()):
            size += len(data)
            yield data

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        self._waiter = waiter = loop.create_future()
        if not self._watched:
            loop.add_reader(self._fd, self._on_readable)
            self._watched = True
        try:
            await waiter
        finally:
            self._waiter = None

    def _on_readable(self) -> None:
        # watched on between reads, which spares two system calls for each; unwatched when nobody reads
        if self._waiter is None or self._ahead is not None:
            self._unwatch()
            return
        self._ahead = self.read_nowait()
        if self._ahead is not None:
            _wake(self._waiter)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            asyncio.get_running_loop().remove_reader(self._fd)

    def close(self) -> None:
        """Close the pipe; a reader that waits sees the end of the stream."""
        if self._fd < 0:
            return
        self._unwatch()
        fd, self._fd = self._fd, -1
        if self._waiter is not None:
            _wake(self._waiter)
        os.close(fd)


class PipeWriter:
    """The writing end of a pipe: one message at a time, each of them whole.

    Args:
        fd: the descriptor; it is made non-blocking and closed by close().
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._rest = memoryview(b"")
        self._turn = asyncio.Lock()
        self._flushed: asyncio.Future[None] | None = None

    async def write(self, data: bytes) -> None:
        """Write a message; returns when the pipe has taken all of it.

        A caller that is cancelled before its turn has written nothing; one that is cancelled in the
        middle leaves the rest to be written in the background, so that no message is ever cut.

        Raises:
            BrokenPipeError: nobody reads the pipe any more, or it is closed.
        """
        async with self._turn:
            while self._flushed is not None:
                await asyncio.shield(self._flushed)
            self._rest = memoryview(data)
            if self._flush():
                return
            await asyncio.shield(self._flush_later())

    def write_nowait(self, data: bytes) -> bool:
        """Write a message if it is nobody's turn and the pipe takes it; write() says why it did not.

        A pipe that takes a part of it gets the rest in the background, before any other message.
        """
        if self._turn.locked() or self._flushed is not None or self._fd < 0:
            return False
        try:
            written = os.write(self._fd, data)
        except OSError:
            return False
        if written < len(data):
            self._rest = memoryview(data)[written:]
            self._flush_later()
        return True

    def _flush_later(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        self._flushed = flushed = loop.create_future()
        loop.add_writer(self._fd, self._on_writable)
        return flushed

    def _flush(self) -> bool:
        if self._fd < 0:
            raise BrokenPipeError("stdin is closed")
        try:
            while self._rest:
                self._rest = self._rest[os.write(self._fd, self._rest) :]
        except BlockingIOError:
            return False
        return True

    def _on_writable(self) -> None:
        error: Exception | None = None
        try:
            if not self._flush():
                return
        except OSError as broken:
            error = BrokenPipeError(f"stdin is closed: {broken.strerror}")
        self._finish(error)

    def _finish(self, error: Exception | None) -> None:
        asyncio.get_running_loop().remove_writer(self._fd)
        self._rest = memoryview(b"")
        flushed, self._flushed = self._flushed, None
        if flushed is not None and not flushed.done():
            if error is None:
                flushed.set_result(None)
            else:
                flushed.set_exception(error)
                flushed.exception()  # the writer may have been cancelled: then nobody else looks

    def close(self) -> None:
        """Close the pipe; a writer that waits gets BrokenPipeError."""
        if self._fd < 0:
            return
        if self._flushed is not None:
            self._finish(BrokenPipeError("stdin is closed"))
        fd, self._fd = self._fd, -1
        os.close(fd)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
