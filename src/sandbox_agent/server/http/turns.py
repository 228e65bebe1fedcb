"""Shares the event loop's time, and a bound of memory, between connections that have not authenticated.

A thousand clients that each send a large chunk at once would hold up every other request until all of it was
parsed. Here they wait in a queue, and a round of the event loop spends a limited time on them.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Protocol

# How long a round of the event loop works for connections that send much.
ROUND_SECONDS = 0.005
# A smaller chunk is parsed at once: a request of an ordinary client, with its headers.
SMALL_BYTES = 1024
# Bound on what all connections together have sent of heads that are not complete, or wait for their turn.
MAX_HELD_BYTES = 8 * 1024 * 1024
# How many connections may go on to send the body of a request that was refused; then the oldest is closed.
MAX_DISCARDING = 32
# From how many of them a round reads, a chunk each.
DISCARDED_CHUNKS = 4


class Discarding(Protocol):
    """A connection that sends the body of a request that was refused."""

    def read_on(self) -> None:
        """Read the next chunk."""
        ...

    def drop(self) -> None:
        """Close the connection."""
        ...


class Turns:
    """Decides who may parse now; one per server.

    Attributes:
        held: bytes of incomplete heads, and of chunks that wait.
    """

    def __init__(self) -> None:
        self.held: int = 0
        self._spent: float = 0.0
        self._queue: deque[Callable[[], None]] = deque()
        # The oldest first.
        self._discarding: OrderedDict[Discarding, None] = OrderedDict()
        self._waiting: deque[Discarding] = deque()
        self._is_scheduled: bool = False

    def run(self, size: int, work: Callable[[], None]) -> bool:
        """Do work on a chunk now; or enqueue it, and return False, if this round has no time left."""
        if size > SMALL_BYTES and (self._queue or self._spent >= ROUND_SECONDS):
            self._queue.append(work)
            return False
        self._work(work)
        self._schedule()
        return True

    def discard(self, connection: Discarding) -> None:
        """Let a connection send another chunk of a body that is not used, in a later round."""
        self._discarding[connection] = None
        self._waiting.append(connection)
        if len(self._discarding) > MAX_DISCARDING:
            oldest, _ = self._discarding.popitem(last=False)
            oldest.drop()
        self._schedule()

    def end_discarding(self, connection: Discarding) -> None:
        """Note that a body is complete, or its connection lost."""
        self._discarding.pop(connection, None)

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._next_round)

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
            for _ in range(min(len(self._waiting), DISCARDED_CHUNKS)):
                connection = self._waiting.popleft()
                if connection in self._discarding:
                    connection.read_on()
        finally:
            # Also if one of them fails: the others must not wait forever.
            self._is_scheduled = False
            if self._queue or self._waiting or self._spent > 0:
                self._schedule()
