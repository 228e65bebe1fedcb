"""The recorder: one task that turns what passes through the connections into stored sessions."""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import anyio

from sandbox_agent.engine.project import Projector
from sandbox_agent.errors import PersistError, SessionAlreadyExistsError
from sandbox_agent.persist.store import Changes, PermissionRow, SessionRow, SessionStore
from sandbox_agent.server.errors import session_not_found
from sandbox_agent.server.recorder.batch import Batch
from sandbox_agent.server.recorder.committer import Committer
from sandbox_agent.server.recorder.intake import Intake, Job
from sandbox_agent.server.recorder.naming import started_metadata
from sandbox_agent.server.recorder.pace import Pace
from sandbox_agent.server.recorder.projection import Fold
from sandbox_agent.server.recorder.published_session import LiveSession, TailMemory
from sandbox_agent.server.recorder.reload import load
from sandbox_agent.server.recorder.tap import Tap
from sandbox_agent.server.recorder.worker import Worker
from sandbox_agent.server.streams.viewers import KEEPALIVE_SECONDS
from sandbox_agent.wire.universal import UniversalEvent

__all__ = ["Recorder"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

T = TypeVar("T")

# How long the end of the server waits for a store that refuses, or that does nothing at all.
REFUSED_SECONDS = 2.0
STALLED_SECONDS = 10.0
# How many sessions stay in memory that nobody uses.
RECENT = 64


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Recorder:
    """Stores every envelope of every connection with the session it belongs to, and what it means.

    Attributes:
        tails: the newest events of the sessions in memory.
        listeners: called after the commit that stored that something was asked for, or was answered.

    Args:
        store: an open store.
        max_bytes: of envelopes that wait to be stored; above it ``exceeded`` is true.
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
        self._intake = Intake(max_bytes)
        pace = Pace()
        self.listeners: list[Callable[[LiveSession, PermissionRow], None]] = []
        self._committer = Committer(
            store, self._intake.give_back, self._recovered, self.listeners, pace.aside
        )
        self.tails: TailMemory = TailMemory()
        self._live: WeakValueDictionary[str, LiveSession] = WeakValueDictionary()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._recent: OrderedDict[str, LiveSession] = OrderedDict()
        self._natives: WeakValueDictionary[tuple[str, str], LiveSession] = WeakValueDictionary()
        self._names: set[str] = set()
        self._forgotten: set[int] = set()
        self._last_key = 0
        self._clock = clock
        self._worker = Worker(self._intake, self._committer, store, self, clock, pace)

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Recorder]:
        """Record until the end of the block; what is queued then is stored, as long as the store takes it.

        Raises:
            PersistError: the store can't be read.
        """
        newest = await self._store.newest_envelopes(0, limit=1)
        self._worker.last_connection_envelope = newest[-1].index if newest else 0
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
        """Store what is queued, as far as the store takes it, then let the viewers end behind it."""
        await self._drain()
        for session in self.sessions:
            session.bell.close()

    async def _keep_alive(self) -> None:
        while True:
            await anyio.sleep(KEEPALIVE_SECONDS)
            for session in self.sessions:
                session.bell.tick()

    @property
    def degraded(self) -> str | None:
        """Why the store refuses, in one line; None while it works."""
        return self._committer.degraded

    async def commit(self, changes: Changes) -> None:
        """Store rows at once, beside what is queued.

        Raises:
            PersistError: the store refuses; nothing of them is stored.
        """
        await self._committer.commit(changes)

    @property
    def exceeded(self) -> bool:
        """Whether more waits to be stored than should."""
        return self._intake.exceeded

    async def relieve(self) -> None:
        """Return when no more waits than should."""
        await self._intake.relieve()

    @property
    def sessions(self) -> list[LiveSession]:
        """The sessions in memory."""
        return list(self._live.values())

    def tap(self, connection_id: str, server_id: str, agent: str) -> Tap:
        """Return where a connection hands over its envelopes.

        Args:
            connection_id: the epoch of its feed.
            server_id: its name.
            agent: the agent's id.
        """
        return Tap(
            self._intake,
            connection_id=connection_id,
            server_id=server_id,
            agent=agent,
            on_bind=lambda tap, session: self._intake.put(Job(lambda: self._worker.bind(tap, session))),
            on_close=lambda tap: self._intake.put(Job(lambda: self._worker.close(tap))),
            clock=self._clock,
        )

    async def session(self, session_id: str) -> LiveSession:
        """Return a session, out of the store where it isn't in memory.

        What was open in it when the server ended is closed, and that is stored.

        Raises:
            ServerSessionNotFoundError: there is none of that name.
            PersistError: the store failed.
        """
        live = await self._open(session_id)
        if live.torn:
            await self._do(lambda: self._worker.close_torn(live), live)
        return live

    async def create(self, row: SessionRow) -> LiveSession:
        """Make a managed session; it is stored on return. The row's key is given here.

        Raises:
            SessionAlreadyExistsError: one of that name exists.
            PersistError: the store failed; there is no such session.
        """
        name = row.session_id
        if name in self._names or name in self._live:
            raise _exists(name)
        self._names.add(name)
        try:
            async with self._lock(name):  # whoever opens it meanwhile gets this one
                if await self._store.session(name) is not None:
                    raise _exists(name)
                live, events = await self.make(row)
                batch = Batch()
                now = live.fold.tick(row.created_at)
                live.fold.put(batch, batch.of(live), events, now)
                news = batch.seal()
                await self.commit(batch.changes)
                for session, stored, chunks in news:
                    session.publish(stored, chunks)
                self.keep(live)
                return live
        finally:
            self._names.discard(name)

    async def apply(
        self, session: LiveSession, make: Callable[[Projector, int], list[UniversalEvent]]
    ) -> None:
        """Add events that no envelope makes, behind everything that is queued; stored on return.

        Args:
            session: whose.
            make: called with the projector and the time in milliseconds.

        Raises:
            ServerSessionNotFoundError: the session was deleted.
            PersistError: the store refuses; when it did so after the call the events are kept, and
                stored once it works again.
        """
        await self._do(lambda: self._worker.apply(session, make), session)

    async def update(self, session: LiveSession, **columns: Any) -> None:
        """Change columns of the session's row, behind everything that is queued; stored on return.

        Raises:
            ServerSessionNotFoundError: the session was deleted.
            PersistError: as of ``apply``.
        """
        await self._do(lambda: self._worker.update(session, columns), session)

    async def settle(self, session: LiveSession) -> None:
        """Return when everything is stored that was queued before.

        Raises:
            PersistError: the store refuses.
        """
        del session  # one queue for all
        await self._do(self._worker.nothing, None)

    async def forget(self, session: LiveSession) -> None:
        """Take no more events for a session, so that it can be deleted; its viewers end.

        Raises:
            PersistError: the store refuses; the session is as it was.
        """
        if session.finished:
            return
        await self._do(lambda: self._worker.forget(session), None)
        session.finish()

    async def delete(self, session: LiveSession) -> None:
        """Forget a session and erase it from the store.

        Raises:
            PersistError: the store refuses: the session is still there, and can be opened and deleted
                again.
        """
        await self.forget(session)
        try:
            await self._store.delete(session.row.key)
        except PersistError:
            self._forgotten.discard(session.row.key)
            raise

    async def expire(
        self, *, before: int | None = None, max_bytes: int | None = None
    ) -> Sequence[SessionRow]:
        """Erase what is older, or the oldest of what is too much (as SessionStore.expire).

        Raises:
            PersistError: the store failed.
        """
        if self.degraded is not None:
            raise PersistError(self.degraded)
        lost = await self._store.expire(before=before, max_bytes=max_bytes, retire=self._retire)
        for row in lost:
            live = self._live.get(row.session_id)
            if live is not None and live.row.key == row.key:
                live.fold.row.first_sequence = row.first_sequence
                shown = copy.copy(live.row)
                shown.first_sequence = row.first_sequence
                live.row = shown
        return lost

    async def _retire(self, row: SessionRow) -> bool:
        """Let go of a session that has no events any more, unless somebody goes on with it."""
        async with self._lock(row.session_id), self._committer.exclusive:
            live = self._live.get(row.session_id)
            if live is not None and live.row.key != row.key:
                return False
            if live is not None and (live.taps or live in self._committer.batch.events):
                return False
            now = await self._store.session(row.session_id)
            if now is None or now.key != row.key or now.first_sequence <= now.last_sequence:
                return False
            await self._store.hide(row.key)
            if live is not None:
                await self._worker.forget(live)
                live.finish()
            return True

    # What the worker asks of the recorder.

    async def open(self, row: SessionRow) -> LiveSession:
        """Return the session of a row that was found in the store."""
        return await self._open(row.session_id)

    async def make(self, row: SessionRow) -> tuple[LiveSession, list[UniversalEvent]]:
        """Return a new session under a new key, and its first event."""
        row = copy.copy(row)
        key = await self._store.next_key()
        row.key = self._last_key = max(key, self._last_key + 1)
        projector = Projector(row.session_id, native_session_id=row.native_session_id)
        live = LiveSession(row, Fold(row, projector), self._store, self.tails)
        live.row = copy.copy(row)
        events = projector.session_started(row.created_at, metadata=started_metadata(row))
        return live, events

    def keep(self, live: LiveSession) -> None:
        """Hold a session in memory for a while; others that nobody uses go."""
        name = live.session_id
        self._live[name] = live
        self._recent[name] = live
        self._recent.move_to_end(name)
        self._names.discard(name)
        row = live.fold.row
        if row.native_session_id is not None:
            self._natives[row.agent, row.native_session_id] = live
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    async def free_name(self, native: str) -> str:
        """Return a name for a session that the agent calls so."""
        name, number = native, 1
        while name in self._names or name in self._live or await self._store.session(name) is not None:
            number += 1
            name = f"{native}-{number}"
        self._names.add(name)
        return name

    def drop(self, live: LiveSession) -> None:
        """Let a session go for good."""
        self._forgotten.add(live.row.key)
        if self._live.get(live.session_id) is live:
            del self._live[live.session_id]
        self._recent.pop(live.session_id, None)
        for name in [name for name, held in self._natives.items() if held is live]:
            del self._natives[name]

    def is_forgotten(self, key: int) -> bool:
        """Whether that session is about to be deleted, or is."""
        return key in self._forgotten

    def find_native(self, agent: str, native: str) -> LiveSession | None:
        """Return the newest session in memory that the agent knows under that name."""
        return self._natives.get((agent, native))

    async def _open(self, session_id: str) -> LiveSession:
        live = self._live.get(session_id)
        if live is None:
            async with self._lock(session_id):
                live = self._live.get(session_id)
                if live is None:
                    live = await self._load(session_id)
        self.keep(live)
        return live

    def _lock(self, session_id: str) -> asyncio.Lock:
        lock = self._locks.get(session_id)
        if lock is None:
            lock = self._locks[session_id] = asyncio.Lock()
        return lock

    async def _load(self, session_id: str) -> LiveSession:
        row = await self._store.session(session_id)
        if row is None or row.key in self._forgotten:
            raise session_not_found(session_id)
        loaded = await load(self._store, row)
        live = LiveSession(row, loaded.fold, self._store, self.tails)
        live.torn = loaded.torn
        live.lost_turns = loaded.lost_turns
        return live

    async def _do(self, job: Callable[[], Awaitable[None]], session: LiveSession | None) -> None:
        """Run a job between two envelopes and wait until it is stored."""
        if self.degraded is not None:
            raise PersistError(self.degraded)
        if session is not None and session.row.key in self._forgotten:
            raise session_not_found(session.session_id)
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._committer.waiting.add(stored)
        stored.add_done_callback(self._committer.waiting.discard)
        self._intake.put(Job(lambda: self._worker.job(job, stored)))
        await stored

    def _recovered(self, sessions: Iterable[LiveSession], seconds: float) -> None:
        waiting = list(sessions)

        def make(projector: Projector, now: int) -> list[UniversalEvent]:
            return projector.error(
                now,
                message=f"the server's store took no events for {seconds:.1f} s; nothing was lost",
                code="store_degraded",
                details={"seconds": round(seconds, 3)},
            )

        async def tell() -> None:
            for session in waiting:
                if not self.is_forgotten(session.row.key):
                    await self._worker.apply(session, make)

        self._intake.put(Job(tell), first=True)

    async def _drain(self) -> None:
        """Wait until everything is stored, or the store takes nothing."""
        begun = time.monotonic()
        commits = self._committer.commits
        while len(self._intake) or self._worker.busy or not self._committer.idle:
            await anyio.sleep(0.005)
            now = time.monotonic()
            if self._committer.commits != commits:
                begun, commits = now, self._committer.commits
            if now - begun > (REFUSED_SECONDS if self.degraded is not None else STALLED_SECONDS):
                lost = self._intake.left() + self._committer.lost
                logger.error("the store takes nothing: %d envelopes are lost (%s)", lost, self.degraded)
                return


async def _within(scope: anyio.CancelScope, run: Callable[[], Awaitable[None]]) -> None:
    with scope:
        await run()


def _exists(name: str) -> SessionAlreadyExistsError:
    return SessionAlreadyExistsError(f"session '{name}' exists: use it, or choose another name")
