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
    """Lets the loop turn between slices of work.

    What it and the others took is the thread's own time: a busy machine, or the store's thread, is
    nobody's work.
    """

    def __init__(self) -> None:
        self._until = 0.0
        self._begun = 0.0
        self._credit = SLICE_SECONDS
        self._aside = 0.0

    def begin(self) -> None:
        """The recorder was asleep and begins to work."""
        self._begun = time.thread_time()
        self._until = time.perf_counter() + SLICE_SECONDS

    @property
    def over(self) -> bool:
        """Whether the slice is used up."""
        return time.perf_counter() >= self._until

    def aside(self, seconds: float) -> None:
        """The recorder took that much of the thread's time in another task, between its slices."""
        self._aside += seconds

    async def turn(self) -> None:
        """Let the others work, as long as they are owed."""
        ended = time.thread_time()
        self._credit -= ended - self._begun
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            aside, self._aside = self._aside, 0.0
            others = now - ended - aside
            ended = now
            if others < IDLE_SECONDS:
                self._credit = SLICE_SECONDS
                break
            self._credit = min(self._credit + others * SHARE - aside, SLICE_SECONDS)
            if self._credit > 0:
                break
        self._begun = now
        self._until = time.perf_counter() + max(self._credit, 0.0)
