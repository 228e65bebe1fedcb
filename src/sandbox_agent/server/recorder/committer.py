"""Stores batches of rows, one at a time and in order; then they are published."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store import (
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SessionStore,
    SnapshotRow,
    TextRow,
    TurnRow,
)
from sandbox_agent.server import metrics
from sandbox_agent.server.recorder.published_session import PublishedSession
from sandbox_agent.server.recorder.rows import Row

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# After this time a commit in flight counts as a failure: the store hangs, or is too slow to be waited for.
SLOW_SECONDS = 2.0
_SLOW = PersistError(f"the store has not confirmed a commit for {SLOW_SECONDS:g} s")
# How soon a store that failed is tried again.
RETRY_SECONDS = 0.5


class _Batch:
    """Rows of one transaction.

    Attributes:
        changes: the rows, without those of the sessions themselves.
        sessions: the newest row of each session.
        events: the JSON of each session's events.
        size: the approximate number of bytes in the rows.
        queued: bytes of the queue that are released once the batch is stored.
        waiters: resolved once the batch is stored.
    """

    def __init__(self) -> None:
        self.changes: Changes = Changes()
        self.sessions: dict[PublishedSession, SessionRow] = {}
        self.events: dict[PublishedSession, list[bytes]] = {}
        self.snapshots: dict[int, SnapshotRow] = {}
        self.size: int = 0
        self.queued: int = 0
        self.waiters: list[asyncio.Future[None]] = []

    def __bool__(self) -> bool:
        return bool(self.sessions or self.waiters or self.queued)

    def add(self, session: PublishedSession, rows: Iterable[Row]) -> None:
        """Add rows of a session."""
        changes = self.changes
        events = self.events.setdefault(session, [])
        size = 0
        for row in rows:
            if type(row) is EnvelopeRow:
                changes.envelopes.append(row)
                size += len(row.data)
            elif type(row) is EventRow:
                changes.events.append(row)
                events.append(row.data)
                size += len(row.data)
            elif type(row) is SessionRow:
                self.sessions[session] = row
            elif type(row) is TextRow:
                changes.texts.append(row)
            elif type(row) is TurnRow:
                changes.turns.append(row)
            elif type(row) is PermissionRow:
                changes.permissions.append(row)
            elif type(row) is SnapshotRow:
                self.snapshots[row.key] = row
        self.size += size

    def complete(self) -> Changes:
        """Return all rows."""
        self.changes.sessions = list(self.sessions.values())
        self.changes.snapshots = list(self.snapshots.values())
        return self.changes

    def publish(self) -> None:
        """Show the events to the viewers of their sessions."""
        for session, row in self.sessions.items():
            session.publish(row, self.events[session])


class Committer:
    """Owns the batch that is being filled, and the one that is being stored.

    Attributes:
        degraded: why the store fails, in one line; None while it works.
        exclusive: held while a batch is stored, and by others that change sessions' rows.
        commits: how many batches were stored.
        listeners: called after the commit of a permission request or an answer.
        observers: called with what each batch has stored.

    Args:
        store: an open store.
        on_stored: called with the number of bytes of the queue that were just stored.
        on_recovery: called when the store works again, with the sessions that waited and for how long.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        on_stored: Callable[[int], None],
        on_recovery: Callable[[list[PublishedSession], float], None],
    ) -> None:
        self.degraded: str | None = None
        self.exclusive: asyncio.Lock = asyncio.Lock()
        self.commits: int = 0
        self.listeners: list[Callable[[PublishedSession, PermissionRow], None]] = []
        self.observers: list[Callable[[Changes], None]] = []
        self._store = store
        self._on_stored = on_stored
        self._on_recovery = on_recovery
        self._batch = _Batch()
        self._in_flight: _Batch | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._offered = asyncio.Event()
        self._taken = asyncio.Event()
        self._probe_due = asyncio.Event()
        self._failed_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing is left to store."""
        return self._in_flight is None and not self._batch

    @property
    def size(self) -> int:
        """The approximate number of bytes that the next commit stores."""
        return self._batch.size

    @property
    def unstored(self) -> int:
        """How many envelopes would be lost now."""
        batches = [self._batch] if self._in_flight is None else [self._in_flight, self._batch]
        return sum(len(batch.changes.envelopes) for batch in batches)

    @property
    def unstored_sessions(self) -> Sequence[str]:
        """The sessions that have rows which are not stored."""
        batches = [self._batch] if self._in_flight is None else [self._in_flight, self._batch]
        return [session.session_id for batch in batches for session in list(batch.sessions)]

    def has_rows(self, session: PublishedSession) -> bool:
        """Return whether the next commit stores rows of that session."""
        return session in self._batch.sessions

    def add(self, session: PublishedSession, rows: Iterable[Row]) -> None:
        """Add rows of a session, its own row among them, to the next commit."""
        self._batch.add(session, rows)

    def add_queued(self, size: int) -> None:
        """Count bytes of the queue as stored with the next commit."""
        self._batch.queued += size

    def new_waiter(self) -> asyncio.Future[None]:
        """Return a future that fails as soon as the store does; see resolve_with_next."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        waiter.add_done_callback(self._waiters.discard)
        return waiter

    def resolve_with_next(self, waiter: asyncio.Future[None]) -> None:
        """Resolve a waiter once the next commit is stored."""
        self._batch.waiters.append(waiter)

    def offer(self) -> None:
        """Let the batch be stored as soon as the one before it is."""
        if self._batch:
            self._offered.set()

    async def wait_taken(self) -> None:
        """Return when storing the present batch has begun."""
        self._taken.clear()
        self.offer()
        await self._taken.wait()

    async def run(self) -> None:
        """Store batches until cancelled."""
        while True:
            while not self._batch:
                self._offered.clear()
                await self._offered.wait()
            async with self.exclusive:
                batch, self._batch = self._batch, _Batch()
                self._in_flight = batch
                self._taken.set()
                await self._store_until_done(batch)
            self._in_flight = None
            self.commits += 1
            batch.publish()
            self._notify_observers(batch.changes)
            self._notify_listeners(batch)
            for waiter in batch.waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._on_stored(batch.queued)
            if self._failed_at:
                self._recovered(batch)

    async def _store_until_done(self, batch: _Batch) -> None:
        if not batch.sessions:
            return
        changes = batch.complete()
        while True:
            try:
                await self._commit(changes)
            except PersistError as error:
                self.report_failure(error)
                await anyio.sleep(RETRY_SECONDS)
            else:
                return

    async def _commit(self, changes: Changes) -> None:
        """Commit; a commit that takes long counts as a failure of the store until it is done."""
        timer = asyncio.get_running_loop().call_later(SLOW_SECONDS, self.report_failure, _SLOW)
        begun = time.perf_counter()
        try:
            await self._store.commit(changes)
        finally:
            timer.cancel()
        metrics.COMMIT_SECONDS.observe(time.perf_counter() - begun)
        metrics.EVENTS.add(amount=len(changes.events))
        metrics.ENVELOPES.add(amount=len(changes.envelopes))

    async def store_new(self, session: PublishedSession, rows: Iterable[Row]) -> None:
        """Store and publish the first rows of a session at once (see commit)."""
        batch = _Batch()
        batch.add(session, rows)
        await self.commit(batch.complete())
        batch.publish()

    async def commit(self, changes: Changes) -> None:
        """Store rows at once, beside the batches.

        Raises:
            PersistError: the store failed; nothing is stored.
        """
        try:
            await self._commit(changes)
        except PersistError as error:
            self.report_failure(error)
            raise
        finally:
            if self.degraded is not None:
                self._probe_due.set()

    async def probe(self) -> None:
        """Check a failed store until it works, as long as there is no batch that does so; until cancelled."""
        while True:
            await self._probe_due.wait()
            self._probe_due.clear()
            while self.degraded is not None:
                await anyio.sleep(RETRY_SECONDS)
                if self._in_flight is not None:
                    continue
                try:
                    await self._store.commit(Changes())
                except PersistError as error:
                    self.report_failure(error)
                else:
                    if self._in_flight is None and self._failed_at:
                        self._recovered(_Batch())

    def report_failure(self, error: PersistError) -> None:
        """Note that the store failed, and fail all waiters."""
        metrics.COMMIT_FAILURES.add()
        if self.degraded is None:
            self._failed_at = time.monotonic()
            logger.error("the store failed: nothing is published until it works again (%s)", error)
        self.degraded = str(error)
        for waiter in list(self._waiters):
            if not waiter.done():
                waiter.set_exception(PersistError(str(error)))

    def _recovered(self, batch: _Batch) -> None:
        seconds = time.monotonic() - self._failed_at
        self._failed_at = 0.0
        self.degraded = None
        logger.warning("the store works again, after %.1f s", seconds)
        self._on_recovery(list({**batch.sessions, **self._batch.sessions}), seconds)

    def _notify_observers(self, changes: Changes) -> None:
        for observer in self.observers:
            try:
                observer(changes)
            except Exception:  # the boundary, as below
                logger.exception("an observer of what is stored failed")

    def _notify_listeners(self, batch: _Batch) -> None:
        permissions: Sequence[PermissionRow] = batch.changes.permissions
        if not permissions or not self.listeners:
            return
        sessions = {row.key: session for session, row in batch.sessions.items()}
        for permission in permissions:
            for listener in self.listeners:
                try:
                    listener(sessions[permission.key], permission)
                except Exception:  # the boundary: a listener's bug must not end the recorder
                    logger.exception("a listener for permissions failed")
