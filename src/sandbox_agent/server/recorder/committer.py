"""Stores batches, one at a time and in order; then they are shown."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store import Changes, PermissionRow, SessionStore
from sandbox_agent.server.recorder.batch import Batch, News
from sandbox_agent.server.recorder.published_session import LiveSession

__all__ = ["RETRY_SECONDS", "Committer"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How soon a store that refused is tried again.
RETRY_SECONDS = 0.5


class Committer:
    """Owns the batch that is being filled, and the one commit that is in flight.

    Attributes:
        batch: what the next commit stores.
        degraded: why the store refuses, in one line; None while it works.
        exclusive: held while the store commits; whoever else changes rows of sessions takes it.
        complete: cleared while a batch may not be taken because it holds half of something.
        commits: how many were made.
        waiting: of those who wait until something is stored; they are told when the store refuses.
    """

    def __init__(
        self,
        store: SessionStore,
        give_back: Callable[[int], None],
        on_recovery: Callable[[Iterable[LiveSession], float], None],
        listeners: Sequence[Callable[[LiveSession, PermissionRow], None]],
        aside: Callable[[float], None],
    ) -> None:
        self.batch: Batch = Batch()
        self.degraded: str | None = None
        self.exclusive: asyncio.Lock = asyncio.Lock()
        self.complete: bool = True
        self.commits: int = 0
        self.waiting: set[asyncio.Future[None]] = set()
        self._store = store
        self._give_back = give_back
        self._on_recovery = on_recovery
        self._listeners = listeners
        self._aside = aside
        self._in_flight: Batch | None = None
        self._wake: asyncio.Event = asyncio.Event()
        self._taken: asyncio.Event = asyncio.Event()
        self._suspected: asyncio.Event = asyncio.Event()
        self._refused_at = 0.0

    @property
    def idle(self) -> bool:
        """Whether nothing is left to store."""
        return self._in_flight is None and not self.batch

    @property
    def lost(self) -> int:
        """How many envelopes would be lost now."""
        pending = [self.batch] if self._in_flight is None else [self._in_flight, self.batch]
        return sum(len(batch.changes.envelopes) for batch in pending)

    def offer(self) -> None:
        """Say that the batch may be stored."""
        if self.complete and self.batch:
            self._wake.set()

    async def taken(self) -> None:
        """Return when the batch of now is in flight."""
        self._taken.clear()
        self.offer()
        await self._taken.wait()

    async def run(self) -> None:
        """Store batches for ever."""
        while True:
            while not (self.complete and self.batch):
                self._wake.clear()
                await self._wake.wait()
            async with self.exclusive:
                batch, self.batch = self.batch, Batch()
                self._in_flight = batch
                begun = time.thread_time()
                news = batch.seal()
                self._aside(time.thread_time() - begun)
                self._taken.set()
                refused = await self._try(batch)
                while refused:
                    await anyio.sleep(RETRY_SECONDS)
                    refused = await self._try(batch)
            self._in_flight = None
            self.commits += 1
            begun = time.thread_time()
            for session, row, chunks in news:
                session.publish(row, chunks)
            if batch.changes.permissions and self._listeners:
                self._tell(batch, news)
            for waiter in batch.waiters:
                if not waiter.done():
                    waiter.set_result(None)
            self._give_back(batch.held)
            self._aside(time.thread_time() - begun)
            if self._refused_at:
                self._works(batch)

    async def commit(self, changes: Changes) -> None:
        """Store rows at once, beside the batches.

        Raises:
            PersistError: the store refuses; nothing of them is stored.
        """
        try:
            await self._store.commit(changes)
        except PersistError as error:
            self.refused(error)
            self._suspected.set()
            raise

    async def probe(self) -> None:
        """Find out, for ever, when a store works again that refused while no batch was to be stored."""
        while True:
            await self._suspected.wait()
            self._suspected.clear()
            while self.degraded is not None:
                await anyio.sleep(RETRY_SECONDS)
                if self._in_flight is not None:
                    continue  # it finds out by itself
                try:
                    await self._store.commit(Changes())
                except PersistError as error:
                    self.refused(error)
                else:
                    if self._in_flight is None and self._refused_at:
                        self._works(Batch())

    def _tell(self, batch: Batch, news: Sequence[News]) -> None:
        sessions = {row.key: session for session, row, _ in news}
        for permission in batch.changes.permissions:
            for listener in self._listeners:
                try:
                    listener(sessions[permission.key], permission)
                except Exception:  # the boundary: a listener's bug must not end the recorder
                    logger.exception("who listens for permissions failed")

    async def _try(self, batch: Batch) -> bool:
        if not batch.has_rows:
            return False
        try:
            await self._store.commit(batch.changes)
        except PersistError as error:
            self.refused(error)
            return True
        return False

    def refused(self, error: PersistError) -> None:
        """Note that the store refused."""
        if self.degraded is None:
            self._refused_at = time.monotonic()
            logger.error("the store refuses: nothing is shown until it takes events again (%s)", error)
        self.degraded = str(error)
        for waiter in list(self.waiting):
            if not waiter.done():
                waiter.set_exception(PersistError(str(error)))

    def _works(self, batch: Batch) -> None:
        seconds = time.monotonic() - self._refused_at
        self._refused_at = 0.0
        self.degraded = None
        logger.warning("the store takes events again, after %.1f s", seconds)
        self._on_recovery(list({**batch.events, **self.batch.events}), seconds)
