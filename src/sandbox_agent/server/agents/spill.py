"""Where a feed's oldest events go when memory is full, and come back from for a late viewer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import anyio

from sandbox_agent.engine.feed import Chunk, FeedMemory, Slice, collect
from sandbox_agent.errors import PersistError

__all__ = ["MemorySpill", "Spill", "Spiller"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# One transaction: large enough to be cheap, small against the bound on memory.
SPILL_BYTES = 2 * 1024 * 1024
# How soon a store that refused is tried again.
RETRY_SECONDS = 0.5


class Spill(Protocol):
    """Keeps chunks of feeds by epoch and sequence. A feed's chunks come in order, without holes."""

    async def write(self, epoch: str, chunks: Sequence[Chunk]) -> None:
        """Keep the chunks. They may come again, and more with them, when the writer was cancelled.

        Raises:
            PersistError: the store failed; nothing of them is kept.
        """
        ...

    async def read(self, epoch: str, cursor: int, max_bytes: int) -> list[Chunk]:
        """Return the chunks behind the cursor, about ``max_bytes`` of them, at least one if any.

        Raises:
            PersistError: the store failed.
        """
        ...

    async def drop(self, epoch: str) -> None:
        """Forget a feed."""
        ...


class MemorySpill:
    """The in-memory twin of a store's spill."""

    def __init__(self) -> None:
        self._chunks: dict[str, list[Chunk]] = {}

    async def write(self, epoch: str, chunks: Sequence[Chunk]) -> None:
        """Keep the chunks."""
        kept = self._chunks.setdefault(epoch, [])
        known = kept[-1].last if kept else 0
        kept.extend(chunk for chunk in chunks if chunk.last > known)

    async def read(self, epoch: str, cursor: int, max_bytes: int) -> list[Chunk]:
        """Return the chunks behind the cursor."""
        found: list[Chunk] = []
        for chunk in self._chunks.get(epoch, []):
            if chunk.last > cursor and sum(len(held.data) for held in found) < max_bytes:
                found.append(chunk)
        return found

    async def drop(self, epoch: str) -> None:
        """Forget a feed."""
        self._chunks.pop(epoch, None)


class Spiller:
    """Keeps the feeds' memory within its bound.

    While the store refuses, relieve() waits and tries again: whoever fills the feeds waits with it, so
    the agents' pipes are not read on, nothing is dropped and memory does not grow.

    Attributes:
        degraded: why the store refuses, in one line; None while it works.
    """

    def __init__(self, memory: FeedMemory, spill: Spill) -> None:
        self.memory = memory
        self.degraded: str | None = None
        self._spill = spill
        self._turn = anyio.Lock()

    async def relieve(self) -> None:
        """Return when memory is within its bound."""
        if not self.memory.exceeded:
            return
        async with self._turn:
            while self.memory.exceeded and (feed := self.memory.largest()) is not None:
                chunks = feed.oldest(SPILL_BYTES)
                try:
                    await self._spill.write(feed.epoch, chunks)
                except PersistError as error:
                    self._refused(error)
                    await anyio.sleep(RETRY_SECONDS)
                    continue
                self._works()
                feed.forget(chunks[-1].last)
            self._works()  # also where the feeds that were too much are gone: nobody waits any more

    async def read(self, epoch: str, cursor: int, viewer: str, max_bytes: int) -> Slice:
        """Return what was spilled behind the cursor.

        Raises:
            PersistError: the store failed.
        """
        chunks = await self._spill.read(epoch, cursor, max_bytes)
        return collect(chunks, 0, cursor, viewer, max_bytes)

    async def drop(self, epoch: str) -> None:
        """Forget what was spilled of a feed."""
        try:
            await self._spill.drop(epoch)
        except PersistError as error:
            # no event is lost and nobody waits: what stays behind goes when the store is opened next
            logger.warning("a feed that ended stays in the store until the next start (%s)", error)

    def _refused(self, error: PersistError) -> None:
        if self.degraded is None:
            logger.error("the store refuses: agents wait until it takes events again (%s)", error)
        self.degraded = str(error)

    def _works(self) -> None:
        if self.degraded is not None:
            logger.warning("the store takes events again")
        self.degraded = None
