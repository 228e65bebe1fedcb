"""A session's events on their way to the store: one writer, in order, retried, never dropped silently."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import secrets
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import msgspec

from sandbox_agent.client.tasks import DISPOSED, TaskOwner
from sandbox_agent.client.viewer import NOTICE_INDEX, Viewer
from sandbox_agent.errors import PersistError, SandboxAgentError, SessionFencedError
from sandbox_agent.persist.base import UNFENCED, SessionPersistDriver
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.records import Sender, SessionEvent, SessionRecord

__all__ = ["EventIds", "EventListener", "Journal"]

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

EventListener = Callable[[SessionEvent], Awaitable[object] | object]

# One append: large enough to amortise a commit, small enough that its events soon reach the readers.
MAX_BATCH = 2_048
# Above this the feed is not read on until the store has caught up.
CROWDED_EVENTS = 8_192
CROWDED_BYTES = 32 * 1024 * 1024
# While the store fails, events wait here for the next append; beyond it they are counted as missing.
MAX_UNSTORED_EVENTS = 100_000
MAX_UNSTORED_BYTES = 256 * 1024 * 1024
# What coroutine listeners get to read the last events when the client is disposed.
LISTENER_TIMEOUT = 5.0


class EventIds:
    """Ids that are unique over all stores and rise with time: a prefix of this process, then a counter."""

    def __init__(self) -> None:
        self._prefix = f"{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(8)}"
        self._counter = itertools.count(1)

    def __call__(self) -> str:
        """Return the next id."""
        return f"{self._prefix}-{next(self._counter):08x}"


class _Waiter(msgspec.Struct):
    events: int
    changes: int
    future: asyncio.Future[None]


class Journal:
    """Takes a session's envelopes as they happen, stores them, then tells listeners and readers.

    ``put`` never waits. One writer appends everything that waits as one batch; when the driver fails,
    the batch stays at the front and goes again, with the same ids, at the next put or flush. The first
    write claims the session; when another process claims it later, writes fail until ``reclaim``.

    Attributes:
        record: the session's record as it should be in the store.
        changed_at: when it was changed or saved last, on the monotonic clock.
        discarded: whether the session was deleted.
    """

    def __init__(
        self, record: SessionRecord, driver: SessionPersistDriver, tasks: TaskOwner, ids: EventIds
    ) -> None:
        self.record: SessionRecord = record
        self.changed_at: float = 0.0
        self._driver = driver
        self._tasks = tasks
        self._ids = ids
        self._pending: list[SessionEvent] = []
        self._pending_bytes = 0
        self._put = 0
        self._stored = 0
        self._missing = 0
        self._record_changes = 0
        self._record_saved = 0
        self._held = False
        self._closed = False
        self.discarded: bool = False
        self._error: Exception | None = None
        self._generation: int | None = None
        self._writer: asyncio.Task[None] | None = None
        self._waiters: list[_Waiter] = []
        self._listeners: dict[object, EventListener] = {}
        self._following: set[asyncio.Task[None]] = set()
        self._viewers: weakref.WeakSet[Viewer] = weakref.WeakSet()

    @property
    def dirty(self) -> bool:
        """Whether something is not stored yet."""
        return bool(self._pending) or self._record_saved < self._record_changes or self._missing > 0

    async def refusal(self) -> SessionFencedError | None:
        """Ask the store whether another process has claimed the session since this writer did."""
        if self._generation:
            with contextlib.suppress(SessionFencedError):
                await self.confirm()
        return self._error if isinstance(self._error, SessionFencedError) else None

    async def reclaim(self) -> None:
        """Take the session back: the next write claims it anew.

        What the store has refused, as another process had the session, is not stored later: it would
        stand between what was said there. How much that is, is told.
        """
        await self.idle()
        self._generation = None
        error = self._error
        if not isinstance(error, SessionFencedError):
            return
        self._error = None
        refused = len(self._pending) + self._missing
        self._pending = []
        self._pending_bytes = self._missing = 0
        self._stored, self._record_saved = self._put, self._record_changes
        self._fail_waiters(error)
        if refused:
            self._tell_lost(refused, "another process had the session")

    async def confirm(self) -> None:
        """Make sure that the session is still this writer's, by saving its record once more.

        A store that fails otherwise is for ``flush`` to tell.

        Raises:
            SessionFencedError: another process has claimed it.
        """
        self.change()
        try:
            await self.flush()
        except SessionFencedError:
            raise
        except PersistError:
            return

    @property
    def crowded(self) -> bool:
        """Whether the one who puts should wait for ``room`` first."""
        return len(self._pending) > CROWDED_EVENTS or self._pending_bytes > CROWDED_BYTES

    def hold(self) -> None:
        """Keep everything until ``release``: the session's record is not in the store yet."""
        self._held = True

    def release(self) -> None:
        """Store what was held."""
        self._held = False
        self._wake()

    def discard(self) -> None:
        """Take nothing any more and forget what is not stored: the session is being deleted."""
        self.discarded = True
        self._pending = []
        self._pending_bytes = self._missing = 0
        self._stored, self._record_saved = self._put, self._record_changes
        self._settle()
        self.close()

    async def idle(self) -> None:
        """Return when no append is under way."""
        if self._writer is not None:
            await asyncio.wait({self._writer})

    def put(self, sender: Sender, payloads: Sequence[bytes], connection_id: str) -> SessionEvent:
        """Take envelopes in the order in which they happened and return the last as an event."""
        now = time.time_ns() // 1_000_000
        ids = self._ids
        session_id = self.record.id
        events = [
            SessionEvent(ids(), NOTICE_INDEX, session_id, now, connection_id, sender, payload)
            for payload in payloads
        ]
        if self.discarded:
            return events[-1]
        size = sum(map(len, payloads))
        if self._error is not None and (
            len(self._pending) + len(events) > MAX_UNSTORED_EVENTS
            or self._pending_bytes + size > MAX_UNSTORED_BYTES
        ):
            self._missing += len(events)
        else:
            self._pending += events
            self._pending_bytes += size
            self._put += len(events)
        self._wake()
        return events[-1]

    def change(self, **changes: Any) -> None:
        """Change fields of the record; the writer saves it."""
        self.record = msgspec.structs.replace(self.record, **changes)
        self.changed_at = time.monotonic()
        if not self.discarded:
            self._record_changes += 1
            self._wake()

    async def flush(self) -> None:
        """Return when everything put so far is stored.

        Raises:
            PersistError: the driver failed; what could not be stored goes again with the next append.
        """
        if not self.dirty:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiter = _Waiter(self._put, self._record_changes, future)
        self._waiters.append(waiter)
        self._wake()
        if not self._tasks.running:
            self._give_up()
        await waiter.future

    async def room(self) -> None:
        """Wait until the store has caught up; a failing store does not hold the feed back."""
        try:
            await self.flush()
        except PersistError:
            return

    def _wake(self) -> None:
        if self._writer is None and not self._held and self.dirty and self._tasks.running:
            self._writer = self._tasks.spawn(self._write(), name=f"store {self.record.id}")
            self._writer.add_done_callback(self._writer_ended)

    def _writer_ended(self, writer: asyncio.Task[None]) -> None:
        # Cancelled, maybe before its first step: nobody stores any more.
        if writer.cancelled():
            self._writer = None
            self._give_up()

    async def _write(self) -> None:
        try:
            while self.dirty and not self._held:
                try:
                    if self._generation is None:
                        self._generation = await self._driver.claim_session(self.record.id)
                    # A driver that fences nobody need not know the word.
                    fence = {"generation": self._generation} if self._generation != UNFENCED else {}
                    await self._append_batch(fence)
                    await self._save_record(fence)
                except Exception as error:  # noqa: BLE001 - a driver may raise anything; it reaches the callers
                    self._fail(error)
                    return
                self._error = None
                if self._missing:
                    self._tell_missing()
                self._settle()
        finally:
            self._writer = None

    async def _append_batch(self, fence: dict[str, int]) -> None:
        batch = self._pending[:MAX_BATCH]
        if not batch:
            return
        await self._driver.append_events(self.record.id, batch, **fence)
        if self.discarded:
            return
        del self._pending[: len(batch)]
        self._pending_bytes -= sum(len(event.payload_json) for event in batch)
        self._stored += len(batch)
        self._deliver(batch)

    async def _save_record(self, fence: dict[str, int]) -> None:
        changes = self._record_changes
        if self._record_saved < changes:
            await self._driver.save_session(self.record, **fence)
            self._record_saved = max(self._record_saved, changes)
            self.changed_at = time.monotonic()

    def _tell_missing(self) -> None:
        count, self._missing = self._missing, 0
        self._tell_lost(count, "the store failed")

    def _tell_lost(self, count: int, reason: str) -> None:
        line = _notification("_sandbox_agent/events_lost", {"count": count, "reason": reason})
        self.put("client", [line], self.record.last_connection_id)

    def _settle(self) -> None:
        kept: list[_Waiter] = []
        for waiter in self._waiters:
            if waiter.future.done():
                continue
            if waiter.events <= self._stored and waiter.changes <= self._record_saved:
                waiter.future.set_result(None)
            else:
                kept.append(waiter)
        self._waiters = kept

    def _fail(self, error: Exception) -> None:
        first = self._error is None
        self._error = error
        self._settle()
        self._fail_waiters(error)
        if first:
            logger.error("the store failed for session %s: %s", self.record.id, error)
            message = str(self._persist_error(error))
            params = {"message": message, "unstored": len(self._pending), "missing": self._missing}
            notice = SessionEvent(
                self._ids(),
                NOTICE_INDEX,
                self.record.id,
                time.time_ns() // 1_000_000,
                self.record.last_connection_id,
                "client",
                _notification("_sandbox_agent/persist_failed", params),
            )
            self._deliver([notice])

    def _give_up(self) -> None:
        self._settle()
        self._fail_waiters(SandboxAgentError(DISPOSED))

    def _fail_waiters(self, error: Exception) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.future.done():
                waiter.future.set_exception(self._persist_error(error))

    def _persist_error(self, cause: Exception) -> PersistError:
        if isinstance(cause, SessionFencedError):
            return SessionFencedError(cause.session_id or self.record.id, cause.generation)
        message = (
            f"session '{self.record.id}': the store failed ({cause or type(cause).__name__}); "
            f"{len(self._pending)} event(s) wait and go again with the next append"
        )
        if self._missing:
            message += f", {self._missing} more are lost because too many were waiting"
        error = PersistError(message, session_id=self.record.id)
        error.__cause__ = cause
        return error

    def _deliver(self, events: Sequence[SessionEvent]) -> None:
        for viewer in list(self._viewers):
            viewer.push(events)
        for key, listener in list(self._listeners.items()):
            for event in events:
                if key not in self._listeners:
                    break
                self._tell(listener, event)

    def _tell(self, listener: EventListener, event: SessionEvent) -> None:
        try:
            result = listener(event)
        except Exception:
            # The boundary to the user's code: a listener that raises must not stop the stream.
            logger.exception("an event listener of session %s failed", self.record.id)
            return
        if inspect.isawaitable(result) and self._tasks.running:
            self._follow(_await(result))

    def listen(self, listener: EventListener) -> Callable[[], None]:
        """Call it with every event once it is stored; returns what ends that.

        A coroutine function is awaited event by event in a task of its own, so it may use the session.
        """
        key = object()
        if not inspect.iscoroutinefunction(listener):
            self._listeners[key] = listener
            return lambda: _forget(self._listeners, key)
        viewer = self.view(live=True)
        task = self._follow(self._read(viewer, listener))

        def unsubscribe() -> None:
            self._viewers.discard(viewer)
            if task is not asyncio.current_task():
                task.cancel()

        return unsubscribe

    def _follow(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.spawn(work, name=f"listener of {self.record.id}")
        self._following.add(task)
        task.add_done_callback(self._following.discard)
        return task

    async def _read(self, viewer: Viewer, listener: EventListener) -> None:
        async for event in viewer:
            try:
                result = listener(event)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                logger.exception("an event listener of session %s failed", self.record.id)

    def view(self, after: int = 0, *, live: bool = False) -> Viewer:
        """Return a reader: from the index on, or (live) from the next event on."""
        viewer = Viewer(self._driver, self.record.id, after, live=live)
        self._viewers.add(viewer)
        if self._closed:
            viewer.close()
        return viewer

    def close(self) -> None:
        """End the readers once they have read what is stored."""
        self._closed = True
        for viewer in list(self._viewers):
            viewer.close()

    async def listened(self, caller: asyncio.Task[Any] | None) -> None:
        """Return when the listeners' tasks but the caller's have ended, at most after LISTENER_TIMEOUT."""
        others = self._following - {caller}
        if others:
            await asyncio.wait(others, timeout=LISTENER_TIMEOUT)


async def _await(awaitable: Awaitable[object]) -> None:
    await awaitable


def _forget(listeners: dict[object, EventListener], key: object) -> None:
    listeners.pop(key, None)


def _notification(method: str, params: dict[str, Any]) -> bytes:
    return dumps({"jsonrpc": "2.0", "method": method, "params": params})
