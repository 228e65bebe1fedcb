"""Spills the oldest events of feeds when memory is full, and reads them back for late viewers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

import anyio

from sandbox_agent.engine.feed import Chunk, FeedMemory, Slice, collect
from sandbox_agent.errors import PersistError

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# One transaction: large enough to be cheap, small compared with the bound on memory.
SPILL_BYTES = 2 * 1024 * 1024
# How soon a store that failed is tried again.
RETRY_SECONDS = 0.5


class Spill(Protocol):
    """Keeps chunks of feeds by epoch and sequence. A feed's chunks come in order, without holes."""

    async def write(self, epoch: str, chunks: Sequence[Chunk]) -> None:
        """Store chunks. After a cancelled write the same ones may come again, with more.

        Raises:
            PersistError: the store failed; none of them is stored.
        """
        ...

    async def read(self, epoch: str, cursor: int, max_bytes: int) -> list[Chunk]:
        """Return the chunks after the cursor, about ``max_bytes`` of them, at least one if any.

        Raises:
            PersistError: the store failed.
        """
        ...

    async def drop(self, epoch: str) -> None:
        """Forget a feed."""
        ...


class Spiller:
    """Keeps the feeds' memory within its bound.

    While the store fails, spill_excess() waits and retries. Its callers wait with it, so the agents' pipes
    are not read, nothing is dropped and memory does not grow.

    Attributes:
        degraded: why the store fails, in one line; None while it works.
    """

    def __init__(self, memory: FeedMemory, spill: Spill) -> None:
        self.memory = memory
        self.degraded: str | None = None
        self._spill = spill
        self._turn = anyio.Lock()

    async def spill_excess(self) -> None:
        """Return when memory is within its bound."""
        if not self.memory.over_limit:
            return
        async with self._turn:
            while self.memory.over_limit and (feed := self.memory.largest()) is not None:
                chunks = feed.oldest(SPILL_BYTES)
                try:
                    await self._spill.write(feed.epoch, chunks)
                except PersistError as error:
                    self._report_failure(error)
                    await anyio.sleep(RETRY_SECONDS)
                    continue
                self._report_success()
                feed.forget(chunks[-1].last)
            self._report_success()  # also if the feeds that were too large are gone

    async def read(self, epoch: str, cursor: int, viewer: str, max_bytes: int) -> Slice:
        """Return what was spilled after the cursor."""
        chunks = await self._spill.read(epoch, cursor, max_bytes)
        return collect(chunks, 0, cursor, viewer, max_bytes)

    async def drop(self, epoch: str) -> None:
        """Forget what was spilled of a feed."""
        try:
            await self._spill.drop(epoch)
        except PersistError as error:
            # No event is lost: the rest is removed when the store is opened next.
            logger.warning("an ended feed stays in the store until the next start (%s)", error)

    def _report_failure(self, error: PersistError) -> None:
        if self.degraded is None:
            logger.error("the store failed: agents wait until it works again (%s)", error)
        self.degraded = str(error)

    def _report_success(self) -> None:
        if self.degraded is not None:
            logger.warning("the store works again")
        self.degraded = None
