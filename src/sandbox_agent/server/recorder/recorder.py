"""The recorder: turns what passes through connections into stored, published sessions."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio

from sandbox_agent.engine.project import Projector
from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store import Changes, PermissionRow, SessionRow, SessionStore
from sandbox_agent.server.errors import session_not_found
from sandbox_agent.server.log_context import log_fields
from sandbox_agent.server.recorder.committer import RETRY_SECONDS, Committer
from sandbox_agent.server.recorder.counting import count_turns
from sandbox_agent.server.recorder.published_session import PublishedSession
from sandbox_agent.server.recorder.queue import Job, RecorderQueue, Tap
from sandbox_agent.server.recorder.registry import RecordedSession, SessionRegistry
from sandbox_agent.server.recorder.worker import MakeEvents, Worker
from sandbox_agent.server.streams.viewers import KEEPALIVE_SECONDS
from sandbox_agent.wire.universal import UniversalEvent

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How long the end of the server waits for a store that fails, or that does nothing at all.
REFUSED_SECONDS = 2.0
STALLED_SECONDS = 4.0
# How many sessions the log names when their events are lost.
SHOWN_SESSIONS = 20


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Recorder:
    """Stores every envelope of a session, and the events that it means; the facade of this package.

    Data moves one way: queue, worker (with each session's projection), committer, published session.

    Args:
        store: an open store.
        max_bytes: of envelopes that wait to be stored; with more, ``over_limit`` is true.
        clock: the time in milliseconds since the epoch.
    """

    def __init__(
        self,
        store: SessionStore,
        *,
        max_bytes: int = 20 * 1024 * 1024,
        clock: Callable[[], int] = _now_ms,
    ) -> None:
        self._store = store
        self._clock = clock
        self._queue = RecorderQueue(max_bytes)
        self._registry = SessionRegistry(store)
        self._committer = Committer(
            store, on_stored=self._queue.release, on_recovery=self._add_recovery_event
        )
        self.observers.append(count_turns)
        self._gave_up_at: int | None = None
        self._worker = Worker(self._queue, self._registry, self._committer, store, clock)

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Recorder]:
        """Record until the end of the block; what is queued then is stored, as long as the store works."""
        async with anyio.create_task_group() as tasks:
            # A cancelled server stores what it has, too: _drain() bounds that.
            scopes = [anyio.CancelScope(shield=True), anyio.CancelScope(shield=True)]
            tasks.start_soon(_within, scopes[0], self._worker.run)
            tasks.start_soon(_within, scopes[1], self._committer.run)
            tasks.start_soon(self._keep_alive)
            tasks.start_soon(self._committer.probe)
            try:
                yield self
            finally:
                with anyio.CancelScope(shield=True):
                    await self._drain()
                tasks.cancel_scope.cancel()
                for scope in scopes:
                    scope.cancel()

    async def end_viewers(self) -> None:
        """Store what is queued, as far as the store works, and end the viewers after it."""
        await self._drain()
        for session in self.sessions:
            session.signal.close()

    async def _keep_alive(self) -> None:
        while True:
            await anyio.sleep(KEEPALIVE_SECONDS)
            for session in self.sessions:
                session.signal.tick()

    # connections

    @property
    def over_limit(self) -> bool:
        """Whether more waits to be stored than should."""
        return self._queue.over_limit

    async def wait_below_limit(self) -> None:
        """Return when no more waits to be stored than should."""
        await self._queue.wait_below_limit()

    def tap(self, connection_id: str, server_id: str, agent: str) -> Tap:
        """Return the tap that records a connection (see Tap)."""
        return Tap(
            self._queue,
            connection_id=connection_id,
            server_id=server_id,
            agent=agent,
            wait_stored=self.wait_flushed,
            clock=self._clock,
        )

    # sessions

    @property
    def degraded(self) -> str | None:
        """Why the store fails, in one line; None while it works."""
        return self._committer.degraded

    def require_store(self) -> None:
        """Check that the store works, as far as is known.

        Raises:
            PersistError: it does not.
        """
        if self.degraded is not None:
            raise PersistError(self.degraded)

    @property
    def listeners(self) -> list[Callable[[PublishedSession, PermissionRow], None]]:
        """Called after the commit of a permission request or an answer."""
        return self._committer.listeners

    @property
    def observers(self) -> list[Callable[[Changes], None]]:
        """Called with what each commit of the recorder has stored."""
        return self._committer.observers

    @property
    def open_sessions(self) -> int:
        """How many sessions are open at an agent."""
        return self._worker.open_sessions

    @property
    def queued_bytes(self) -> int:
        """Bytes of envelopes that are not stored yet."""
        return self._queue.used

    @property
    def sessions(self) -> list[RecordedSession]:
        """The sessions in memory."""
        return self._registry.sessions

    @property
    def registry(self) -> SessionRegistry:
        """The sessions in memory, by name, key and agent's id."""
        return self._registry

    async def open(self, session_id: str) -> RecordedSession:
        """Return a session, loaded from the store if it is not in memory.

        What was open in it when the server ended is closed and stored first.

        Raises:
            ServerSessionNotFoundError: there is no such session.
            PersistError: the store failed.
        """
        session = await self._registry.open(session_id)
        if session.interrupted:
            await self._run_job(lambda: self._worker.close_interrupted(session), session)
        return session

    async def create(self, row: SessionRow) -> RecordedSession:
        """Create a session that the server drives; it is stored on return. The row's key is set here.

        Raises:
            SessionAlreadyExistsError: a session of that name exists.
            PersistError: the store failed; there is no such session.
        """
        async with self._registry.reserve(row.session_id):
            session, events = await self._registry.make(row)
            projection = session.projection
            rows = projection.add_events(events, projection.next_time(row.created_at))
            await self._committer.store_new(session, [*rows, *projection.state_rows()])
            self._registry.keep(session)
            with log_fields(session_id=row.session_id):
                logger.info("session %s of agent %s was created", row.session_id, row.agent)
            return session

    async def commit(self, changes: Changes) -> None:
        """Store rows at once, beside what is queued (see Committer.commit)."""
        await self._committer.commit(changes)

    async def add_events(self, session: RecordedSession, make: MakeEvents) -> None:
        """Add events that no envelope makes, after everything that is queued; they are stored on return.

        Raises:
            ServerSessionNotFoundError: the session was deleted.
            PersistError: the store failed; if it did so after the call, the events are kept and stored
                once it works again.
        """
        await self._run_job(lambda: self._worker.add_events(session, make), session)

    async def open_requests(self, session: RecordedSession) -> list[str]:
        """Return the JSON-RPC ids of the agent's requests that have no answer, after everything queued.

        Raises as ``add_events`` does.
        """
        found: list[str] = []

        async def read() -> None:
            projector = session.projection.projector
            found.extend([*projector.pending_permissions.values(), *projector.pending_questions.values()])

        await self._run_job(read, session)
        return found

    async def update(self, session: RecordedSession, **columns: Any) -> None:
        """Change columns of the session's row, after everything that is queued; stored on return.

        Raises as ``add_events`` does.
        """
        await self._run_job(lambda: self._worker.update_row(session, columns), session)

    async def flush(self) -> None:
        """Return when everything is stored that was queued before.

        Raises:
            PersistError: the store failed.
        """
        await self._run_job(_do_nothing, None)

    async def wait_flushed(self) -> None:
        """Return when everything is stored that was queued before, however long the store fails."""
        while True:
            try:
                await self.flush()
            except PersistError:
                await anyio.sleep(RETRY_SECONDS)
            else:
                return

    async def forget(self, session: RecordedSession) -> None:
        """Record nothing for a session any more, so that it can be deleted; its viewers end.

        Raises:
            PersistError: the store failed; the session is as it was.
        """
        if session.finished:
            return
        await self._run_job(lambda: self._worker.forget(session), None)
        session.finish()

    async def delete(self, session: RecordedSession) -> None:
        """Erase a session from the store.

        Raises:
            PersistError: the store failed: the session is still there, and can be opened and deleted again.
        """
        await self.forget(session)
        try:
            await self._store.delete(session.row.key)
        except PersistError:
            self._registry.undrop(session)
            raise

    async def expire(
        self, *, before: int | None = None, max_bytes: int | None = None
    ) -> Sequence[SessionRow]:
        """Erase what is older, or the oldest of what is too much (see SessionStore.expire).

        Raises:
            PersistError: the store failed.
        """
        if self.degraded is not None:
            raise PersistError(self.degraded)
        expired = await self._store.expire(before=before, max_bytes=max_bytes, retire=self._retire)
        for row in expired:
            session = self._registry.get(row.session_id)
            if session is not None and session.row.key == row.key:
                session.projection.row.first_sequence = row.first_sequence
                published = copy.copy(session.row)
                published.first_sequence = row.first_sequence
                session.row = published
        return expired

    async def _retire(self, row: SessionRow) -> bool:
        """Remove a session that has no events any more, unless it is in use."""
        async with self._registry.lock(row.session_id), self._committer.exclusive:
            session = self._registry.get(row.session_id)
            if session is not None and (session.row.key != row.key or self._worker.uses(session)):
                return False
            now = await self._store.session(row.session_id)
            if now is None or now.key != row.key or now.first_sequence <= now.last_sequence:
                return False
            await self._store.hide(row.key)
            if session is not None:
                await self._worker.forget(session)
                session.finish()
            return True

    async def _run_job(self, run: Callable[[], Awaitable[None]], session: RecordedSession | None) -> None:
        """Run a job between two envelopes and wait until its rows are stored."""
        self.require_store()
        if session is not None and self._registry.is_forgotten(session.row.key):
            raise session_not_found(session.session_id)
        stored = self._committer.new_waiter()
        self._queue.enqueue(Job(lambda: self._worker.run_job(run, stored)))
        await stored

    def _add_recovery_event(self, waiting: Sequence[PublishedSession], seconds: float) -> None:
        """Say in the sessions that waited that the store works again."""

        def make(projector: Projector, now: int) -> Sequence[UniversalEvent]:
            return projector.error(
                now,
                message=f"the server's store took no events for {seconds:.1f} s; nothing was lost",
                code="store_degraded",
                details={"seconds": round(seconds, 3)},
            )

        async def add() -> None:
            for published in waiting:
                session = self._registry.get(published.session_id)
                if session is not None and session is published:
                    await self._worker.add_events(session, make)

        self._queue.enqueue(Job(add), first=True)

    async def _drain(self) -> None:
        """Wait until everything is stored, or the store does nothing."""
        begun = time.monotonic()
        commits = self._committer.commits
        if self._gave_up_at == commits:  # the end waits once only
            return
        while len(self._queue) or self._worker.busy or not self._committer.idle:
            await anyio.sleep(0.005)
            now = time.monotonic()
            if self._committer.commits != commits:
                begun, commits = now, self._committer.commits
            if now - begun > (REFUSED_SECONDS if self.degraded is not None else STALLED_SECONDS):
                self._gave_up_at = commits
                logger.error("the store does not work: %s (%s)", self.loss, self.degraded)
                return

    @property
    def loss(self) -> str:
        """What is lost if the server ends now, in words."""
        count = self._queue.unstored + self._worker.unstored + self._committer.unstored
        names = sorted({*self._committer.unstored_sessions, *self._worker.unstored_sessions})
        shown = ", ".join(names[:SHOWN_SESSIONS]) + (", ..." if len(names) > SHOWN_SESSIONS else "")
        return f"{count} envelopes are lost" + (f", of the sessions {shown}" if names else "")


async def _within(scope: anyio.CancelScope, run: Callable[[], Awaitable[None]]) -> None:
    with scope:
        await run()


async def _do_nothing() -> None:
    """Wait in the queue only."""
