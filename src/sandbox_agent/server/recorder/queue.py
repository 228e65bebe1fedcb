"""The queue in front of the recorder: everything that passes through connections, in order.

The recorder shares the event loop with the clients: it waits a moment for more entries (``gather``), and
works on them in slices (``Pace``).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from sandbox_agent.server.log_context import current_request_id
from sandbox_agent.wire.records import Sender

if TYPE_CHECKING:
    from sandbox_agent.server.recorder.registry import RecordedSession

# How long the first envelope waits for others: small responses and pieces of a text arrive one by one, and a
# transaction for each would take the event loop from the clients.
GATHER_SECONDS = 0.003
# So often again while the loop is that busy: it then gets fewer and larger transactions.
GATHERINGS = 32
BUSY_SHARE = 0.4

# The recorder works this long at once: other tasks wait no longer for it.
SLICE_SECONDS = 0.0005
# For each second that other tasks work, the recorder works a quarter of one: a fifth of a busy loop.
SHARE = 0.25
# An iteration of the loop in which nothing else worked takes less.
IDLE_SECONDS = 0.00004


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
            request_id = current_request_id() or ""
            self._queue.enqueue(Envelopes(self, "client", line, self._clock(), client, request_id))

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
        request_id: the id of the request that had them, for the log; empty without one.
    """

    tap: Tap
    sender: Sender
    data: bytes
    time_ms: int
    client: str
    request_id: str = ""


class Binding(NamedTuple):
    """The sessions that the connection opens next are recorded as that one."""

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

    async def wait(self, seconds: float | None = None) -> bool:
        """Return whether there is an entry, as soon as there is one or the time is over."""
        if not self._entries:
            self._consumer = asyncio.get_running_loop().create_future()
            if seconds is None:
                await self._consumer
            else:
                await asyncio.wait({self._consumer}, timeout=seconds)
        return bool(self._entries)

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
        """Let other tasks work for their share of the time, and start a slice."""
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


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
