"""A child's pipes: large reads, and writes of whole messages."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator

# The capacity of an agent's stdout and the size of one read: 10 % faster than Linux's default of 64 KiB. A
# user may have 64 MiB of pipes (pipe-user-pages-soft), which suffices for hundreds of agents.
READ_BYTES = 256 * 1024
# All reads share this buffer: allocating READ_BYTES for each would cost ten times as much as reading a small
# message. There is no await between a read and its copy.
_buffer = memoryview(bytearray(READ_BYTES))
# The maximum capacity of a pipe on Linux.
MAX_PIPE_BYTES = 1024 * 1024


def widen_pipe(fd: int) -> None:
    """Set the capacity of a pipe to READ_BYTES where the system allows it."""
    with contextlib.suppress(AttributeError, OSError):  # not on Linux, or over the user's limit
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, READ_BYTES)


def open_pipes() -> list[tuple[int, int]]:
    """Open three pipes, each with its read and its write end. If one fails, the others are closed."""
    pipes: list[tuple[int, int]] = []
    try:
        while len(pipes) < 3:
            pipes.append(os.pipe())
    except OSError:
        for fd in (fd for pipe in pipes for fd in pipe):
            os.close(fd)
        raise
    return pipes


class PipeReader:
    """The read end of a pipe, without a buffer of its own; the descriptor is set non-blocking.

    Unread data stays in the pipe, so a slow reader blocks the writer.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._on_data: Callable[[bytes], bool] | None = None
        self._done: asyncio.Future[bool] | None = None

    @property
    def fd(self) -> int:
        """The descriptor; -1 once it is closed."""
        return self._fd

    async def listen(self, on_data: Callable[[bytes], bool]) -> bool:
        """Call ``on_data`` with data as it arrives, once per iteration of the event loop.

        The event loop calls it directly, which saves waking a task; it returns whether to continue. If it
        raises, so does this method, and the data that it received counts as read.

        Returns:
            True if ``on_data`` stopped the reading, False at the end of the stream.
        """
        if self._fd < 0:
            return False
        done = self.start(on_data)
        try:
            return await done
        finally:
            self.stop()

    def start(self, on_data: Callable[[bytes], bool]) -> asyncio.Future[bool]:
        """Do what listen() does without a task that waits: return what it returns, and let stop() end it."""
        loop = asyncio.get_running_loop()
        self._on_data = on_data
        self._done = loop.create_future()
        loop.add_reader(self._fd, self._on_readable)
        return self._done

    async def read(self) -> bytes:
        """Wait for data and return it, or ``b""`` at the end of the stream."""
        read: list[bytes] = []

        def on_data(data: bytes) -> bool:
            read.append(data)
            return False

        await self.listen(on_data)
        return read[0] if read else b""

    def read_nowait(self) -> bytes | None:
        """Return the available data, ``b""`` at the end of the stream, or None if there is no data now."""
        if self._fd < 0:
            return b""
        try:
            return bytes(_buffer[: os.readv(self._fd, [_buffer])])
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def read_leftover(self) -> Iterator[bytes]:
        """Yield the data that an exited process left in the pipe, at most the capacity of a pipe.

        The limit is for a process that escaped the tree and keeps writing.
        """
        size = 0
        while size < MAX_PIPE_BYTES and (data := self.read_nowait()):
            size += len(data)
            yield data

    def _on_readable(self) -> None:
        done, on_data = self._done, self._on_data
        if done is None or done.done() or on_data is None or (data := self.read_nowait()) is None:
            return
        try:
            more = on_data(data) if data else False
        except Exception as error:  # noqa: BLE001 - raised by listen()
            done.set_exception(error)
        else:
            if more:
                return
            done.set_result(bool(data))
        self.stop()

    def stop(self) -> None:
        """Stop reading, if that is not so already."""
        if self._done is not None:
            self._done = self._on_data = None
            asyncio.get_running_loop().remove_reader(self._fd)

    def close(self) -> None:
        """Close the pipe. A running listen() returns as at the end of the stream."""
        if self._fd < 0:
            return
        done = self._done
        self.stop()
        if done is not None and not done.done():
            done.set_result(False)
        fd, self._fd = self._fd, -1
        os.close(fd)


class PipeWriter:
    """The write end of a pipe, set non-blocking. Messages are written one at a time and never cut."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._rest = memoryview(b"")
        self._lock = asyncio.Lock()
        self._flushed: asyncio.Future[None] | None = None

    async def write(self, data: bytes, *, on_begin: Callable[[], None] | None = None) -> None:
        """Write a message and return when all of it is in the pipe. ``on_begin`` is called just before.

        If the caller is cancelled before the message's turn, nothing is written. If it is cancelled later,
        the rest is written in the background, so that no message is cut.

        Raises:
            BrokenPipeError: The pipe has no reader or is closed.
        """
        async with self._lock:
            while self._flushed is not None:
                await asyncio.shield(self._flushed)
            if on_begin is not None:
                on_begin()
            self._rest = memoryview(data)
            if self._flush():
                return
            await asyncio.shield(self._flush_later())

    def write_nowait(self, data: bytes) -> bool:
        """Write a message if that is possible without waiting, and return whether it was written.

        If the pipe has room for a part only, the rest is written in the background before any other message.
        Use write() to get the reason of a failure.
        """
        if self._lock.locked() or self._flushed is not None or self._fd < 0:
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
                flushed.exception()  # mark it as retrieved: the writer may have been cancelled

    def close(self) -> None:
        """Close the pipe. Pending writes raise BrokenPipeError."""
        if self._fd < 0:
            return
        if self._flushed is not None:
            self._finish(BrokenPipeError("stdin is closed"))
        fd, self._fd = self._fd, -1
        os.close(fd)
