"""Folders that are watched for clients: all streams of one folder share one watcher."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import PurePosixPath
from typing import Final, NamedTuple

import anyio
import msgspec
from anyio.abc import TaskGroup
from anyio.to_thread import run_sync

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.engine.feed import Slice
from sandbox_agent.engine.sse import encode_event
from sandbox_agent.errors import ProblemError, StreamError
from sandbox_agent.server import metrics
from sandbox_agent.server.files.tree import FileTree
from sandbox_agent.server.files.watching import Changes, Watch, open_watch
from sandbox_agent.server.streams.usage import Usage
from sandbox_agent.server.streams.viewers import KEEPALIVE_SECONDS, Signal
from sandbox_agent.wire.files import FsActionResponse, FsChange, FsChanges, FsWatchEnd

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# Each has a thread, and one of the 128 instances of inotify that a user has by default.
MOST_WATCHERS: Final = 64
# A client that reconnects within this time continues where it was.
LINGER_SECONDS: Final = 60.0
# What is kept for clients that reconnect or are slow.
LOG_BYTES: Final = 4 * 1024 * 1024
# How often a thread looks whether its folder is still there.
CHECK_SECONDS: Final = 1.0


class _Entry(NamedTuple):
    sequence: int
    data: bytes


class Watcher:
    """The changes of one folder, which viewers read.

    Attributes:
        signal: fires when there are new events.
        usage: the open streams.
    """

    def __init__(self, tree: FileTree, text: str, *, recursive: bool) -> None:
        self.signal: Signal = Signal()
        self.usage: Usage = Usage()
        self.path: str = tree.places.absolute(text)
        self._tree = tree
        self._text = text
        self._recursive = recursive
        self._epoch = secrets.token_hex(4)
        self._log: deque[_Entry] = deque()
        self._log_bytes = 0
        self._last = 0
        self._ended = False
        self._stopping = False
        self._watch: Watch | None = None
        self._error: Exception | None = None
        self._opened = anyio.Event()

    @property
    def finished(self) -> bool:
        """Whether no event will follow."""
        return self._ended or self._stopping

    async def wait_opened(self) -> None:
        """Wait until every change is found.

        Raises:
            ProblemError: the folder can't be watched.
        """
        with self.usage.used(UNNAMED):
            await self._opened.wait()
        if self._error is not None:
            raise self._error

    async def run(self, limiter: anyio.CapacityLimiter) -> None:
        """Watch until the folder is gone, or ``stop``."""
        loop = asyncio.get_running_loop()
        try:
            self._watch = await run_sync(
                lambda: open_watch(self._tree, self._text, recursive=self._recursive), limiter=limiter
            )
        except (ProblemError, OSError) as error:
            can_not = f"stream error: {self.path} can't be watched: {error}"
            self._error = error if isinstance(error, ProblemError) else StreamError(can_not)
            self._ended = True
            return
        finally:
            self._opened.set()
        watch = self._watch

        def work() -> None:
            while not self._stopping:
                changes = watch.wait(CHECK_SECONDS)
                if changes != Changes():
                    loop.call_soon_threadsafe(self._publish, changes)
                if changes.ended is not None:
                    return

        try:
            await run_sync(work, limiter=limiter)
        except Exception:  # the boundary: what is in a folder must not end the server
            logger.exception("%s is not watched any more", self.path)
            detail = f"stream error: {self.path} can't be watched any more; see the server's log"
            self._publish(Changes(gap=True, ended=FsWatchEnd(detail=detail, gone=False)))
        finally:
            self._ended = True
            self._watch = None
            self.signal.fire()
            with anyio.CancelScope(shield=True):
                await run_sync(watch.close, limiter=limiter)

    def stop(self) -> None:
        """Stop watching."""
        self._stopping = True
        if self._watch is not None:
            self._watch.wake()

    def position(self, last_event_id: str | None) -> tuple[int, bytes]:
        """Return where a viewer begins, and its first events: a gap if it has missed something, and ready."""
        epoch, _, number = (last_event_id or "").partition("-")
        cursor, opening = self._last, b""
        if epoch == self._epoch and number.isascii() and number.isdigit() and len(number) < 20:
            cursor = min(int(number), self._last)
        elif last_event_id is not None:
            opening = self._gap(self._last)
        ready = msgspec.json.encode(FsActionResponse(path=self.path))
        return cursor, opening + encode_event("ready", ready, event_id=self._id(cursor))

    async def read(self, cursor: int, viewer: str, *, max_bytes: int) -> Slice:
        """Return events after a cursor, or a gap if the next one is no longer there."""
        if cursor < self._last and (not self._log or self._log[0].sequence > cursor + 1):
            cursor = self._log[0].sequence - 1 if self._log else self._last
            return Slice(self._gap(cursor), cursor)
        parts: list[bytes] = []
        size = 0
        for entry in self._log:
            if entry.sequence > cursor:
                parts.append(entry.data)
                size += len(entry.data)
                cursor = entry.sequence
                if size >= max_bytes:
                    break
        return Slice(b"".join(parts), cursor)

    def _publish(self, changes: Changes) -> None:
        if changes.found:
            self._add("changes", FsChanges(changes=list(changes.found)))
        if changes.gap:
            self._add("gap", FsChange(type="gap", path=self.path))
        if changes.ended is not None:
            self._add("end", changes.ended)
            self._ended = True
        self.signal.fire()

    def _add(self, event: str, body: object) -> None:
        self._last += 1
        data = encode_event(event, msgspec.json.encode(body), event_id=self._id(self._last))
        self._log.append(_Entry(self._last, data))
        self._log_bytes += len(data)
        # The newest stays, whatever its size.
        while self._log_bytes > LOG_BYTES and len(self._log) > 1:
            self._log_bytes -= len(self._log.popleft().data)

    def _gap(self, cursor: int) -> bytes:
        metrics.GAPS.add("fs_watch")
        body = msgspec.json.encode(FsChange(type="gap", path=self.path))
        return encode_event("gap", body, event_id=self._id(cursor))

    def _id(self, sequence: int) -> str:
        return f"{self._epoch}-{sequence}"


class Watchers:
    """All watchers of a server.

    Args:
        tree: the files of the server.
        most: how many folders are watched at once.
    """

    def __init__(self, tree: FileTree, *, most: int = MOST_WATCHERS) -> None:
        self._tree = tree
        self._most = most
        self._limiter = anyio.CapacityLimiter(most)
        self._found: dict[tuple[str, bool], Watcher] = {}
        self._tasks: TaskGroup | None = None

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Watch while the context lasts."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._keep)
            try:
                yield
            finally:
                self._tasks = None
                for watcher in self._found.values():
                    watcher.stop()
                tasks.cancel_scope.cancel()

    async def get(self, text: str, *, recursive: bool) -> Watcher:
        """Return the watcher of a folder, which finds every change from here on.

        Raises:
            NotFoundError: there is no such folder.
            InvalidRequestError: it is not a folder.
            StreamError: too much is watched, or the server ends.
        """
        path = str(PurePosixPath(self._tree.places.absolute(text)))
        watcher = self._found.get((path, recursive))
        if watcher is None or watcher.finished:
            if self._tasks is None:
                raise StreamError("stream error: the server is shutting down")
            if len(self._found) >= self._most:
                raise StreamError(
                    f"stream error: {self._most} folders are watched already: close other streams, or watch "
                    "a folder that has several of them"
                )
            watcher = Watcher(self._tree, path, recursive=recursive)
            self._found[path, recursive] = watcher
            self._tasks.start_soon(self._run, (path, recursive), watcher)
        await watcher.wait_opened()
        return watcher

    def end_viewers(self) -> None:
        """End all streams after what they have not sent yet."""
        for watcher in self._found.values():
            watcher.signal.close()

    async def _run(self, key: tuple[str, bool], watcher: Watcher) -> None:
        try:
            await watcher.run(self._limiter)
        finally:
            if self._found.get(key) is watcher:
                del self._found[key]

    async def _keep(self) -> None:
        while True:
            await anyio.sleep(KEEPALIVE_SECONDS)
            for watcher in list(self._found.values()):
                idle = watcher.usage.idle_seconds
                if idle is not None and idle > LINGER_SECONDS:
                    watcher.stop()
                else:
                    watcher.signal.tick()
