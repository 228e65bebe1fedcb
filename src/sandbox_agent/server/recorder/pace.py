"""How much of the event loop the recorder takes."""

from __future__ import annotations

import asyncio
import time

# The recorder works this long at once: other tasks wait no longer for it.
SLICE_SECONDS = 0.0005
# For each second that other tasks work, the recorder works a quarter of one: a fifth of a busy loop.
SHARE = 0.25
# An iteration of the loop in which nothing else worked takes less.
IDLE_SECONDS = 0.00004


class Pace:
    """Lets other tasks work between slices of the recorder's work.

    It counts the thread's own time: a busy machine and the store's thread are not other tasks.

    Two rows of ``python -m benchmarks`` need it: "agent's write to viewer's read, 100 viewers, 200/s" (p50 is
    1.3 times as long without it, p99 1.4 times), and "20,000 x 200 B, 10 readers, recorder on and off".
    """

    def __init__(self) -> None:
        self._until = 0.0
        self._begun = 0.0
        self._credit = SLICE_SECONDS

    def start_slice(self) -> None:
        """Start a slice after the recorder had nothing to do."""
        self._begun = time.thread_time()
        self._until = time.perf_counter() + SLICE_SECONDS

    @property
    def is_over(self) -> bool:
        """Whether the slice is used up."""
        return time.perf_counter() >= self._until

    async def wait_turn(self) -> None:
        """Let other tasks work as long as they are owed, and start a slice."""
        ended = time.thread_time()
        self._credit -= ended - self._begun
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            others = now - ended
            ended = now
            if others < IDLE_SECONDS:
                self._credit = SLICE_SECONDS
                break
            self._credit = min(self._credit + others * SHARE, SLICE_SECONDS)
            if self._credit > 0:
                break
        self._begun = now
        self._until = time.perf_counter() + max(self._credit, 0.0)
