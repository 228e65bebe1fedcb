"""What waits for the recorder, in order, and how much that may be."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from sandbox_agent.wire.records import Sender

if TYPE_CHECKING:
    from sandbox_agent.server.recorder.tap import Tap

__all__ = ["Entry", "Intake", "Job"]

# How long the first envelope waits for others, and how often again while the loop has that much to do.
GATHER_SECONDS = 0.003
GATHERINGS = 32
BUSY = 0.4


class Entry(NamedTuple):
    """Envelopes of one read or write of a connection.

    Attributes:
        data: their lines; one piece, which costs no more than it holds.
        time_ms: when.
        client: who sent them; empty where they are the agent's, or the client has no name.
    """

    tap: Tap
    sender: Sender
    data: bytes
    time_ms: int
    client: str

    @property
    def size(self) -> int:
        """How many bytes it is."""
        return len(self.data)


class Job(NamedTuple):
    """Something to be done between two envelopes."""

    do: Callable[[], Awaitable[None]]


class Intake:
    """A queue that is bounded in bytes by those who fill it: it never refuses.

    Attributes:
        used: bytes of envelopes that are queued or not stored yet.
    """

    def __init__(self, max_bytes: int) -> None:
        self.used: int = 0
        self._max = max_bytes
        self._entries: deque[Entry | Job] = deque()
        self._sleeper: asyncio.Future[None] | None = None
        self._hurry: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def exceeded(self) -> bool:
        """Whether it holds more than it should."""
        return self.used > self._max

    def put(self, entry: Entry | Job, *, first: bool = False) -> None:
        """Append, and wake the worker if it sleeps."""
        if first:
            self._entries.appendleft(entry)
        else:
            self._entries.append(entry)
        if isinstance(entry, Entry):
            self.used += entry.size
        elif not self._hurry.done():
            self._hurry.set_result(None)
        sleeper = self._sleeper
        if sleeper is not None:
            self._sleeper = None
            if not sleeper.done():
                sleeper.set_result(None)

    def take(self) -> Entry | Job | None:
        """Return the oldest; its bytes count until they are given back."""
        return self._entries.popleft() if self._entries else None

    async def wait(self) -> None:
        """Return when there is something."""
        if not self._entries:
            self._sleeper = asyncio.get_running_loop().create_future()
            await self._sleeper

    async def gather(self) -> None:
        """Let what comes together be stored together.

        Small answers and the pieces of a text come one by one: a transaction for each would take the loop
        from those who wait for them. On a loop that is busy it is put off longer. Who wants something done
        is not kept waiting.
        """
        self._hurry = hurry = asyncio.get_running_loop().create_future()
        if any(isinstance(entry, Job) for entry in self._entries):
            return
        for _ in range(GATHERINGS):
            begun, worked = time.perf_counter(), time.thread_time()
            await asyncio.wait((hurry,), timeout=GATHER_SECONDS)
            share = (time.thread_time() - worked) / (time.perf_counter() - begun)
            if hurry.done() or share < BUSY or self.used > self._max * 0.9:
                return

    def give_back(self, size: int) -> None:
        """Envelopes of that many bytes are stored."""
        self.used -= size
        if self._waiters and not self.exceeded:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def relieve(self) -> None:
        """Return when it is below its bound."""
        while self.exceeded:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def left(self) -> int:
        """Return how many envelopes are queued."""
        return sum(entry.data.count(b"\n") + 1 for entry in self._entries if isinstance(entry, Entry))
