"""How much of the event loop the recorder takes."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Pace"]

# What the recorder does at once: the others wait that long at most.
SLICE_SECONDS = 0.0005
# For each second that the others work, the recorder works a quarter of one: a fifth of a busy loop.
SHARE = 0.25
# A turn of the loop in which nobody else did anything takes less.
IDLE_SECONDS = 0.00004


class Pace:
    """Lets the loop turn between slices of work."""

    def __init__(self) -> None:
        self._until = 0.0
        self._begun = 0.0
        self._credit = SLICE_SECONDS

    def begin(self) -> None:
        """The recorder was asleep and begins to work."""
        self._begun = time.perf_counter()
        self._until = self._begun + SLICE_SECONDS

    @property
    def over(self) -> bool:
        """Whether the slice is used up."""
        return time.perf_counter() >= self._until

    async def turn(self) -> None:
        """Let the others work, as long as they are owed."""
        ended = time.perf_counter()
        self._credit -= ended - self._begun
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            others = now - ended
            ended = now
            if others < IDLE_SECONDS:
                self._credit = SLICE_SECONDS
                break
            self._credit = min(self._credit + others * SHARE, SLICE_SECONDS)
            if self._credit > 0:
                break
        self._begun = now
        self._until = now + max(self._credit, 0.0)
