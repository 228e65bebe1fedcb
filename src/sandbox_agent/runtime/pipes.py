"""A child's pipes: read as much as is there at once, write whole messages, and let the pipe push back."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator

__all__ = ["READ_BYTES", "PipeReader", "PipeWriter", "widen"]

# What an agent's stdout is made to hold, and one read takes: a tenth faster than Linux's 64 KiB. A user may
# have 64 MiB of pipes (pipe-user-pages-soft), so there is room for hundreds.
READ_BYTES = 256 * 1024
# Every read goes here first: a fresh READ_BYTES of memory each time would cost ten times what a small
# message's read does. Nothing is awaited between a read and its copy.
_landing = memoryview(bytearray(READ_BYTES))
# Linux lets a pipe be made this large.
MAX_PIPE_BYTES = 1024 * 1024


def widen(fd: int) -> None:
    """Let a pipe hold READ_BYTES where the system allows it."""
    with contextlib.suppress(AttributeError, OSError):  # not on Linux, or no room left
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, READ_BYTES)


class PipeReader:
    """The reading end of a pipe, without a buffer of its own.

    What isn't read stays in the pipe, so a slow reader stops the writer: that is the backpressure.

    Args:
        fd: the descriptor; it is made non-blocking and closed by close().
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._take: Callable[[bytes], bool] | None = None
        self._heard: asyncio.Future[bool] | None = None

    async def listen(self, take: Callable[[bytes], bool]) -> bool:
        """Hand bytes to ``take`` as they come, one read each turn of the event loop, while it wants more.

        Args:
            take: called by the loop itself, which spares a task's wake-up; returns whether it wants more.

        Returns:
            True when ``take`` wanted no more, False at the end of the stream.

        Raises:
            Exception: whatever ``take`` raised; what it was given counts as read.
        """
        if self._fd < 0:
            return False
        loop = asyncio.get_running_loop()
        self._take = take
        self._heard = loop.create_future()
        loop.add_reader(self._fd, self._on_readable)
        try:
            return await self._heard
        finally:
            self._finish()

    async def read(self) -> bytes:
        """Wait for bytes and return them; ``b""`` at the end of the stream."""
        read: list[bytes] = []

        def take(data: bytes) -> bool:
            read.append(data)
            return False

        await self.listen(take)
        return read[0] if read else b""

    def read_nowait(self) -> bytes | None:
        """Return what is there now, ``b""`` at the end of the stream, None when nothing is there."""
        if self._fd < 0:
            return b""
        try:
            return bytes(_landing[: os.readv(self._fd, [_landing])])
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

    def _on_readable(self) -> None:
        heard, take = self._heard, self._take
        if heard is None or heard.done() or take is None or (data := self.read_nowait()) is None:
            return
        try:
            more = take(data) if data else False
        except Exception as error:  # noqa: BLE001 - it belongs to whoever listens
            heard.set_exception(error)
        else:
            if more:
                return
            heard.set_result(bool(data))
        self._finish()

    def _finish(self) -> None:
        if self._heard is not None:
            self._heard = self._take = None
            asyncio.get_running_loop().remove_reader(self._fd)

    def close(self) -> None:
        """Close the pipe; whoever listens sees the end of the stream."""
        if self._fd < 0:
            return
        heard = self._heard
        self._finish()
        if heard is not None and not heard.done():
            heard.set_result(False)
        fd, self._fd = self._fd, -1
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

    async def write(self, data: bytes, *, on_begin: Callable[[], None] | None = None) -> None:
        """Write a message; returns when the pipe has taken all of it.

        A caller that is cancelled before its turn has written nothing; one that is cancelled in the
        middle leaves the rest to be written in the background, so that no message is ever cut.

        Args:
            data: the message.
            on_begin: called when its turn has come and it will be written.

        Raises:
            BrokenPipeError: nobody reads the pipe any more, or it is closed.
        """
        async with self._turn:
            while self._flushed is not None:
                await asyncio.shield(self._flushed)
            if on_begin is not None:
                on_begin()
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
