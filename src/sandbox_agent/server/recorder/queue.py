"""The queue in front of the recorder: everything that passes through connections, in order."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from sandbox_agent.wire.records import Sender

if TYPE_CHECKING:
    from sandbox_agent.server.recorder.registry import RecordedSession

# How long the first envelope waits for others: small responses and pieces of a text arrive one by one, and a
# transaction for each would take the event loop from the clients.
GATHER_SECONDS = 0.003
# So often again while the loop is that busy: it then gets fewer and larger transactions.
GATHERINGS = 32
BUSY_SHARE = 0.4


class Tap:
    """The end of the queue that one connection writes to. Its calls only enqueue, in the order they are made.

    Attributes:
        connection_id: the epoch of the connection's feed.
        server_id: the connection's name.
        agent: the agent's id.
        wait_stored: returns once everything that was enqueued before is stored, however long the store fails.
    """

    def __init__(
        self,
        queue: RecorderQueue,
        *,
        connection_id: str,
        server_id: str,
        agent: str,
        wait_stored: Callable[[], Awaitable[None]],
        clock: Callable[[], int],
    ) -> None:
        self.connection_id = connection_id
        self.server_id = server_id
        self.agent = agent
        self.wait_stored = wait_stored
        self._queue = queue
        self._clock = clock
        self._closed = False

    def sent(self, line: bytes, client: str) -> None:
        """Record what a client sent, as the agent reads it."""
        if not self._closed:
            self._queue.enqueue(Envelopes(self, "client", line, self._clock(), client))

    def received(self, lines: Sequence[bytes]) -> None:
        """Record what the agent wrote."""
        if lines and not self._closed:
            self._queue.enqueue(Envelopes(self, "agent", b"\n".join(lines), self._clock(), ""))

    def bind(self, session: RecordedSession) -> None:
        """Record the sessions that this connection creates or loads from now on as that one."""
        self._queue.enqueue(Binding(self, session))

    def stop(self) -> None:
        """Record that the agent is ended on purpose, so that its exit is not an error."""
        if not self._closed:
            self._queue.enqueue(Stopping(self))

    def close(self) -> None:
        """Record that the connection has ended."""
        if not self._closed:
            self._closed = True
            self._queue.enqueue(Closing(self))


class Envelopes(NamedTuple):
    """Envelopes of one read or write of a connection.

    Attributes:
        data: the lines, joined: one object costs no more than the bytes that it holds.
        time_ms: when they were read or written.
        client: the client's name; empty for the agent's envelopes and those of an unnamed client.
    """

    tap: Tap
    sender: Sender
    data: bytes
    time_ms: int
    client: str


class Binding(NamedTuple):
    """The connection's next sessions are that one."""

    tap: Tap
    session: RecordedSession


class Stopping(NamedTuple):
    """The connection's agent was ended on purpose."""

    tap: Tap


class Closing(NamedTuple):
    """The connection has ended."""

    tap: Tap


class Job(NamedTuple):
    """Work to be done between two envelopes."""

    run: Callable[[], Awaitable[None]]


Entry: TypeAlias = Envelopes | Binding | Stopping | Closing | Job


class RecorderQueue:
    """A queue that is bounded in bytes by its producers: it never refuses an entry.

    Attributes:
        used: bytes of envelopes that are queued or not stored yet.
    """

    def __init__(self, max_bytes: int) -> None:
        self.used: int = 0
        self._max = max_bytes
        self._entries: deque[Entry] = deque()
        self._jobs = 0
        self._consumer: asyncio.Future[None] | None = None
        self._urgent: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._producers: list[asyncio.Future[None]] = []

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def over_limit(self) -> bool:
        """Whether it holds more than it should."""
        return self.used > self._max

    @property
    def unstored(self) -> int:
        """How many envelopes are queued."""
        return sum(entry.data.count(b"\n") + 1 for entry in self._entries if isinstance(entry, Envelopes))

    def enqueue(self, entry: Entry, *, first: bool = False) -> None:
        """Append an entry, or put it before all others, and wake the consumer."""
        if first:
            self._entries.appendleft(entry)
        else:
            self._entries.append(entry)
        if isinstance(entry, Envelopes):
            self.used += len(entry.data)
        elif isinstance(entry, Job):
            self._jobs += 1
            _resolve(self._urgent)
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            _resolve(consumer)

    def pop(self) -> Entry | None:
        """Remove and return the oldest entry; its bytes count until they are released."""
        if not self._entries:
            return None
        entry = self._entries.popleft()
        if isinstance(entry, Job):
            self._jobs -= 1
        return entry

    async def wait(self) -> None:
        """Return when there is an entry."""
        if not self._entries:
            self._consumer = asyncio.get_running_loop().create_future()
            await self._consumer

    async def gather(self) -> None:
        """Wait a moment for more entries, so that they are stored together; a job does not wait.

        Two rows of ``python -m benchmarks`` need it: keep-alive requests "answered by two updates and a line"
        take 1.8 times as long without it, those "answered by one line" 1.3 times.
        """
        loop = asyncio.get_running_loop()
        for _ in range(GATHERINGS):
            if self._jobs or self.used > self._max * 0.9:
                return
            begun, worked = time.perf_counter(), time.thread_time()
            self._urgent = loop.create_future()
            timer = loop.call_later(GATHER_SECONDS, _resolve, self._urgent)
            await self._urgent
            timer.cancel()
            if time.thread_time() - worked < BUSY_SHARE * (time.perf_counter() - begun):
                return

    def release(self, size: int) -> None:
        """Count that many bytes as stored."""
        self.used -= size
        if self._producers and not self.over_limit:
            producers, self._producers = self._producers, []
            for producer in producers:
                _resolve(producer)

    async def wait_below_limit(self) -> None:
        """Return when it holds no more than it should."""
        while self.over_limit:
            producer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._producers.append(producer)
            await producer


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
