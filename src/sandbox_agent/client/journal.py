"""Stores a session's events: one writer, in order, with retries; nothing is dropped silently."""

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
from itertools import repeat
from typing import Any

import msgspec

from sandbox_agent.client.envelopes import notification
from sandbox_agent.client.identity import is_same_connection
from sandbox_agent.client.tasks import DISPOSED, TaskOwner, await_result, call_listener
from sandbox_agent.client.viewer import NOTICE_INDEX, Viewer
from sandbox_agent.errors import PersistError, SandboxAgentError, SessionFencedError
from sandbox_agent.persist.base import UNFENCED, SessionPersistDriver
from sandbox_agent.wire.records import Sender, SessionEvent, SessionRecord

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

EventListener = Callable[[SessionEvent], Awaitable[object] | object]

# One append: large enough to amortize a commit, small enough that its events soon reach the listeners.
MAX_BATCH = 2_048
# Above these limits the feed is not read until the store has caught up.
MAX_PENDING_EVENTS = 8_192
MAX_PENDING_BYTES = 32 * 1024 * 1024
# While the store fails, this much is kept for the next append; further events are counted as lost.
MAX_UNSTORED_EVENTS = 100_000
MAX_UNSTORED_BYTES = 256 * 1024 * 1024
# How long async listeners may take to receive the last events when the client is disposed.
LISTENER_TIMEOUT = 5.0
# How long the store may take to store the last events when the client is disposed.
FLUSH_TIMEOUT = 30.0


class EventIds:
    """Generates ids that are unique over all stores and increase with time."""

    def __init__(self) -> None:
        self._prefix = f"{time.time_ns() // 1_000_000:012x}-{secrets.token_hex(8)}"
        self._counter = itertools.count(1)

    def __call__(self) -> str:
        """Return the next id."""
        return f"{self._prefix}-{next(self._counter):08x}"


class _Flush(msgspec.Struct):
    """A call of ``flush`` that waits until this many events and record changes are stored."""

    events: int
    changes: int
    future: asyncio.Future[None]


class Journal:
    """Receives a session's envelopes as they occur, stores them, then delivers them to the listeners.

    ``append`` never waits. One writer stores everything that is pending as one batch. If the driver fails,
    the batch is kept and is sent again, with the same ids, at the next append or flush. The first write
    claims the session; once another process has claimed it, writes fail until ``reclaim``.

    Attributes:
        record: the session's record as the store should have it.
        changed_at: when the record was last changed or saved, on the monotonic clock.
        discarded: whether the session was deleted.
        fence_reported: whether a caller has received the error that another process owns the session.
    """

    def __init__(
        self, record: SessionRecord, driver: SessionPersistDriver, tasks: TaskOwner, ids: EventIds
    ) -> None:
        self.record: SessionRecord = record
        self.changed_at: float = 0.0
        self.discarded: bool = False
        self._driver = driver
        self._tasks = tasks
        self._ids = ids
        self._pending: list[SessionEvent] = []
        self._pending_bytes = 0
        self._appended = 0
        self._stored = 0
        self._lost = 0
        self._record_changes = 0
        self._record_saved = 0
        self._held = False
        self._closed = False
        self._error: Exception | None = None
        # Whether the process that took the session over reads the same stream: it stores the events.
        self._is_shared = False
        self.fence_reported: bool = False
        self._generation: int | None = None
        self._writer: asyncio.Task[None] | None = None
        self._flushes: list[_Flush] = []
        self._listeners: dict[object, EventListener] = {}
        self._listener_tasks: set[asyncio.Task[None]] = set()
        self._viewers: weakref.WeakSet[Viewer] = weakref.WeakSet()
        # The index of the last event that the listeners received.
        self._delivered = 0
        self._follower: asyncio.Task[None] | None = None

    # receiving

    def append(
        self,
        sender: Sender,
        payloads: Sequence[bytes],
        connection_id: str,
        ids: Sequence[str | None] | None = None,
    ) -> SessionEvent:
        """Append envelopes in the order in which they occurred; return the last one as an event.

        Args:
            sender: who sent them.
            payloads: the envelopes.
            connection_id: the connection that they passed.
            ids: the ids of their events; None generates one.
        """
        now = time.time_ns() // 1_000_000
        new_id = self._ids
        session_id = self.record.id
        events = [
            SessionEvent(event_id or new_id(), NOTICE_INDEX, session_id, now, connection_id, sender, payload)
            for payload, event_id in zip(payloads, ids or repeat(None), strict=False)
        ]
        if self.discarded or self._is_shared:
            return events[-1]
        size = sum(map(len, payloads))
        if self._error is not None and (
            len(self._pending) + len(events) > MAX_UNSTORED_EVENTS
            or self._pending_bytes + size > MAX_UNSTORED_BYTES
        ):
            self._lost += len(events)
        else:
            self._pending += events
            self._pending_bytes += size
            self._appended += len(events)
        self._wake()
        return events[-1]

    def append_notice(self, method: str, params: dict[str, Any]) -> None:
        """Append a notification of the client itself."""
        self.append("client", [notification(method, params)], self.record.last_connection_id)

    def change(self, **changes: Any) -> None:
        """Change fields of the record; the writer saves it."""
        self.record = msgspec.structs.replace(self.record, **changes)
        self.changed_at = time.monotonic()
        if not self.discarded:
            self._record_changes += 1
            self._wake()

    @property
    def dirty(self) -> bool:
        """Whether something is not stored yet."""
        return bool(self._pending) or self._record_saved < self._record_changes or self._lost > 0

    @property
    def over_limit(self) -> bool:
        """Whether the caller should wait for ``wait_drained`` before it appends more."""
        return len(self._pending) > MAX_PENDING_EVENTS or self._pending_bytes > MAX_PENDING_BYTES

    async def wait_drained(self) -> None:
        """Wait until the store has caught up; return at once if the store fails."""
        with contextlib.suppress(PersistError):
            await self.flush(quiet=True)

    async def flush(self, *, quiet: bool = False) -> None:
        """Return when everything appended so far is stored.

        Args:
            quiet: the caller does not pass the error on.

        Raises:
            PersistError: the driver failed; the events are sent to it again with the next append.
        """
        if self._is_shared:
            self.check_fence(quiet=quiet)
        if not self.dirty:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._flushes.append(_Flush(self._appended, self._record_changes, future))
        self._wake()
        if not self._tasks.running:
            self._stop_waiting()
        try:
            await future
        except SessionFencedError:
            self.fence_reported = self.fence_reported or not quiet
            raise

    async def wait_idle(self) -> None:
        """Return when no write is in progress."""
        if self._writer is not None:
            await asyncio.wait({self._writer})

    def hold(self) -> None:
        """Store nothing until ``release``: the session's record is not complete yet."""
        self._held = True

    def release(self) -> None:
        """Store what was held."""
        self._held = False
        self._wake()

    def discard(self) -> None:
        """Drop everything that is not stored, now and later: the session is being deleted."""
        self.discarded = True
        self._drop_pending()
        self._complete_flushes()
        self.close()

    def _drop_pending(self) -> None:
        self._pending = []
        self._pending_bytes = self._lost = 0
        self._stored, self._record_saved = self._appended, self._record_changes

    # ownership of the session

    async def confirm(self) -> None:
        """Check that this writer still owns the session, by saving its record once more.

        Other failures of the store are left to ``flush``.

        Raises:
            SessionFencedError: another process has claimed the session.
        """
        self.change()
        try:
            await self.flush()
        except SessionFencedError:
            raise
        except PersistError:
            return

    @property
    def is_fenced(self) -> bool:
        """Whether the store has refused this writer, as another process has claimed the session."""
        return isinstance(self._error, SessionFencedError)

    def check_fence(self, *, quiet: bool = False) -> None:
        """Raise SessionFencedError if the store has refused this writer; ``quiet`` as in ``flush``."""
        if isinstance(self._error, SessionFencedError):
            self.fence_reported = self.fence_reported or not quiet
            raise self._persist_error(self._error)

    async def fencing_error(self) -> SessionFencedError | None:
        """Ask the store whether another process has claimed the session; return its error if so."""
        if self._generation:
            with contextlib.suppress(SessionFencedError):
                await self.confirm()
        return self._error if isinstance(self._error, SessionFencedError) else None

    async def reclaim(self) -> None:
        """Let the next write claim the session again.

        Events that the store refused while another process owned the session are not stored later, since
        they would appear between that process's events. A notice counts them.
        """
        await self.wait_idle()
        self._generation = None
        self.fence_reported = self._is_shared = False
        error = self._error
        if not isinstance(error, SessionFencedError):
            return
        self._error = None
        refused = len(self._pending) + self._lost
        self._drop_pending()
        self._fail_flushes(error)
        if refused:
            self._append_lost(refused, "another process had the session")

    # storing

    def _wake(self) -> None:
        if self._writer is None and not self._held and self.dirty and self._tasks.running:
            self._writer = self._tasks.spawn(self._write(), name=f"store {self.record.id}")
            self._writer.add_done_callback(self._writer_ended)

    def _writer_ended(self, writer: asyncio.Task[None]) -> None:
        # A cancelled writer, maybe before its first step, stores nothing any more.
        if writer.cancelled():
            self._writer = None
            self._stop_waiting()

    async def _write(self) -> None:
        try:
            while self.dirty and not self._held:
                try:
                    if self._generation is None:
                        self._generation = await self._driver.claim_session(self.record.id)
                        await self._stop_following()
                    # A driver without fencing need not accept the keyword.
                    fence = {"generation": self._generation} if self._generation != UNFENCED else {}
                    await self._append_batch(fence)
                    await self._save_record(fence)
                except Exception as error:  # noqa: BLE001 - a driver may raise anything; it reaches the callers
                    self._is_shared = isinstance(error, SessionFencedError) and await self._is_attached_to()
                    self._fail(error)
                    if self.is_fenced and (self._listeners or self._viewers):
                        self._follow()
                    if self._is_shared:
                        self._pending, self._pending_bytes, self._lost = [], 0, 0
                    return
                self._error = None
                if self._lost:
                    count, self._lost = self._lost, 0
                    self._append_lost(count, "the store failed")
                self._complete_flushes()
        finally:
            self._writer = None

    async def _is_attached_to(self) -> bool:
        """Whether the process that claimed the session has attached to this one's connection."""
        with contextlib.suppress(PersistError):
            record = await self._driver.get_session(self.record.id)
            return record is not None and is_same_connection(record, self.record)
        return False

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

    def _append_lost(self, count: int, reason: str) -> None:
        self.append_notice("_sandbox_agent/events_lost", {"count": count, "reason": reason})

    def _complete_flushes(self) -> None:
        waiting: list[_Flush] = []
        for flush in self._flushes:
            if flush.future.done():
                continue
            if flush.events <= self._stored and flush.changes <= self._record_saved:
                flush.future.set_result(None)
            else:
                waiting.append(flush)
        self._flushes = waiting

    def _fail_flushes(self, error: Exception) -> None:
        flushes, self._flushes = self._flushes, []
        for flush in flushes:
            if not flush.future.done():
                flush.future.set_exception(self._persist_error(error))

    def _stop_waiting(self) -> None:
        self._complete_flushes()
        self._fail_flushes(SandboxAgentError(DISPOSED))

    def _fail(self, error: Exception) -> None:
        first = self._error is None
        self._error = error
        self._complete_flushes()
        self._fail_flushes(error)
        if first:
            logger.error("the store failed for session %s: %s", self.record.id, error)
            message = str(self._persist_error(error))
            params = {"message": message, "unstored": len(self._pending), "missing": self._lost}
            notice = SessionEvent(
                self._ids(),
                NOTICE_INDEX,
                self.record.id,
                time.time_ns() // 1_000_000,
                self.record.last_connection_id,
                "client",
                notification("_sandbox_agent/persist_failed", params),
            )
            self._deliver([notice])

    def _persist_error(self, cause: Exception) -> PersistError:
        if isinstance(cause, SessionFencedError):
            return SessionFencedError(cause.session_id or self.record.id, cause.generation)
        message = (
            f"session '{self.record.id}': the store failed ({cause or type(cause).__name__}); "
            f"{len(self._pending)} event(s) are kept and sent again with the next append"
        )
        if self._lost:
            message += f"; {self._lost} more event(s) are lost because too many were kept"
        error = PersistError(message, session_id=self.record.id)
        error.__cause__ = cause
        return error

    # delivering

    def _follow(self) -> None:
        """Deliver what other processes store, while this one does not write the session."""
        is_writer = self._generation is not None and not self.is_fenced
        if self._follower is None and not is_writer and not self._closed and self._tasks.running:
            self._follower = self._tasks.spawn(self._deliver_stored(), name=f"follow {self.record.id}")

    async def _deliver_stored(self) -> None:
        after = self._delivered or max(0, await self._driver.last_event_index(self.record.id))
        self._delivered = after
        try:
            async with contextlib.aclosing(self._driver.follow_events(self.record.id, after=after)) as events:
                async for event in events:
                    self._deliver([event])
        except PersistError as error:
            logger.warning("session %s can't be followed any more: %s", self.record.id, error)

    async def _stop_following(self) -> None:
        """Deliver what other processes have stored; from now on this one stores the events."""
        follower, self._follower = self._follower, None
        if follower is None:
            return
        follower.cancel()
        await asyncio.wait({follower})
        cursor = self._driver.cursor_after(self._delivered)
        while self._delivered:
            page = await self._driver.list_events(self.record.id, cursor=cursor)
            self._deliver([event for event in page.items if event.event_index > self._delivered])
            cursor = page.next_cursor
            if cursor is None:
                return

    def _deliver(self, events: Sequence[SessionEvent]) -> None:
        if not events:
            return
        self._delivered = max(self._delivered, events[-1].event_index)
        for viewer in list(self._viewers):
            viewer.push(events)
        for key, listener in list(self._listeners.items()):
            for event in events:
                if key not in self._listeners:
                    break
                self._notify(listener, event)

    def _notify(self, listener: EventListener, event: SessionEvent) -> None:
        result = call_listener(listener, event, f"an event listener of session {self.record.id}")
        if result is not None and self._tasks.running:
            self._spawn_listener(await_result(result))

    def listen(self, listener: EventListener) -> Callable[[], None]:
        """Call the listener with every event once it is stored; return a function that unregisters it.

        An async listener is awaited event by event in its own task, so it may use the session.
        """
        self._follow()
        if not inspect.iscoroutinefunction(listener):
            key = object()
            self._listeners[key] = listener

            def unregister_sync() -> None:
                self._listeners.pop(key, None)

            return unregister_sync
        viewer = self.view(live=True)
        task = self._spawn_listener(self._run_listener(viewer, listener))

        def unregister() -> None:
            self._viewers.discard(viewer)
            if task is not asyncio.current_task():
                task.cancel()

        return unregister

    def _spawn_listener(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._tasks.spawn(work, name=f"listener of {self.record.id}")
        self._listener_tasks.add(task)
        task.add_done_callback(self._listener_tasks.discard)
        return task

    async def _run_listener(self, viewer: Viewer, listener: EventListener) -> None:
        async for event in viewer:
            try:
                result = listener(event)
                if inspect.isawaitable(result):
                    await result
            except Exception:
                logger.exception("an event listener of session %s failed", self.record.id)

    def view(self, after: int = 0, *, live: bool = False, follow: bool = True) -> Viewer:
        """Return an iterator over the events above an index, or (live) from the next event on.

        Args:
            after: the index.
            live: begin with the next event.
            follow: include what other processes store; False if this one is about to write.
        """
        if follow:
            self._follow()
        viewer = Viewer(self._driver, self.record.id, after, live=live, check=self._tasks.check_caller)
        self._viewers.add(viewer)
        if self._closed:
            viewer.close()
        return viewer

    def view_from(self, event: SessionEvent | None) -> Viewer:
        """Return an iterator that begins with an event of this session, or live without one."""
        if event is None or event.event_index == NOTICE_INDEX:
            return self.view(live=True, follow=False)
        return self.view(event.event_index - 1, follow=False)

    def close(self) -> None:
        """End the viewers once they have returned what is stored."""
        self._closed = True
        if self._follower is not None:
            self._follower.cancel()
        for viewer in list(self._viewers):
            viewer.close()

    async def wait_listeners(self, caller: asyncio.Task[Any] | None) -> None:
        """Wait until all listener tasks except the caller's have ended, at most LISTENER_TIMEOUT."""
        others = self._listener_tasks - {caller}
        if others:
            await asyncio.wait(others, timeout=LISTENER_TIMEOUT)

    async def finish(self, caller: asyncio.Task[Any] | None) -> PersistError | None:
        """Store the last events and close the journal; return the error if some could not be stored."""
        failed: PersistError | None = None
        reported = self.fence_reported
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT):
                if self.dirty:
                    await self.flush()
        except PersistError as error:
            handled = isinstance(error, SessionFencedError) and reported
            # A process that reads the same stream has stored the events: then nothing is left.
            failed = None if handled or not self.dirty else error
        except TimeoutError:
            failed = PersistError(
                f"session '{self.record.id}': storing its last events took more than {FLUSH_TIMEOUT:g} s",
                session_id=self.record.id,
            )
        self.close()
        await self.wait_listeners(caller)
        return failed
