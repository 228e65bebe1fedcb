"""Shares the event loop's time, and a bound of memory, between connections that have not authenticated.

A thousand clients that each send a large chunk at once would hold up every other request until all of it was
parsed. Here they wait in a queue, and a round of the event loop spends a limited time on them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

# How long a round of the event loop works for connections that send much.
ROUND_SECONDS = 0.005
# A smaller chunk is parsed at once: a request of an ordinary client, with its headers.
SMALL_BYTES = 1024
# Bound on what all connections together have sent of heads that are not complete, or wait for their turn.
MAX_HELD_BYTES = 8 * 1024 * 1024


class Turns:
    """Decides who may parse now; one per server.

    Attributes:
        held: bytes of incomplete heads, and of chunks that wait.
    """

    def __init__(self) -> None:
        self.held: int = 0
        self._spent: float = 0.0
        self._queue: deque[Callable[[], None]] = deque()
        self._is_scheduled: bool = False

    def run(self, size: int, work: Callable[[], None]) -> bool:
        """Do work on a chunk now; or enqueue it, and return False, if this round has no time left."""
        if size > SMALL_BYTES and (self._queue or self._spent >= ROUND_SECONDS):
            self._queue.append(work)
            return False
        self._work(work)
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._next_round)
        return True

    def _work(self, work: Callable[[], None]) -> None:
        began = time.perf_counter()
        try:
            work()
        finally:
            self._spent += time.perf_counter() - began

    def _next_round(self) -> None:
        self._spent = 0.0
        try:
            while self._queue and self._spent < ROUND_SECONDS:
                self._work(self._queue.popleft())
        finally:
            # Also if one of them fails: the others must not wait forever.
            self._is_scheduled = bool(self._queue) or self._spent > 0
            if self._is_scheduled:
                asyncio.get_running_loop().call_soon(self._next_round)
