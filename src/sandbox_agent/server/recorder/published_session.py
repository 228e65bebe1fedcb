"""A session as viewers see it: what is committed, and nothing else."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from weakref import ref

from sandbox_agent.engine.feed import Chunk, Slice, collect
from sandbox_agent.engine.sse import encode_messages
from sandbox_agent.persist.store import SessionRow, SessionStore
from sandbox_agent.server.streams.session_views import read_stored
from sandbox_agent.server.streams.usage import Usage
from sandbox_agent.server.streams.viewers import Signal

# What a session's newest events may take in memory, and those of all sessions.
TAIL_BYTES = 256 * 1024
TAILS_BYTES = 16 * 1024 * 1024
# One write to a viewer holds at least so much.
CHUNK_BYTES = 64 * 1024


class TailMemory:
    """Bounds the tails of all sessions: those that were quiet longest are dropped first."""

    def __init__(self, limit: int = TAILS_BYTES) -> None:
        self.used: int = 0
        self._limit = limit
        # Held weakly: a session that nothing else uses goes, with its tail.
        self._tails: OrderedDict[int, tuple[ref[PublishedSession], int]] = OrderedDict()

    def count(self, session: PublishedSession, size: int) -> None:
        """Set the size of a session's tail, and drop other tails if all are too much."""
        number = id(session)
        self._remove(number)
        if size:
            self._tails[number] = (ref(session, lambda _: self._remove(number)), size)
            self.used += size
        while self.used > self._limit and self._tails:
            oldest = self._remove(next(iter(self._tails)))
            if oldest is not None:
                oldest.drop_tail()

    def _remove(self, number: int) -> PublishedSession | None:
        held = self._tails.pop(number, None)
        if held is None:
            return None
        self.used -= held[1]
        return held[0]()


class PublishedSession:
    """A session as viewers see it: what is committed, and nothing else.

    Attributes:
        signal: fires when there is more.
        usage: the open streams of its events.
        row: the session as it is stored.
        finished: the session was deleted; no event will follow.
    """

    def __init__(self, row: SessionRow, store: SessionStore, memory: TailMemory) -> None:
        self.signal: Signal = Signal()
        self.usage: Usage = Usage()
        self.row: SessionRow = row
        self.finished: bool = False
        self._store = store
        self._memory = memory
        self._tail: list[Chunk] = []
        self._tail_bytes = 0

    @property
    def session_id(self) -> str:
        """The session's name."""
        return self.row.session_id

    def publish(self, row: SessionRow, events: Sequence[bytes]) -> None:
        """Show what was committed: the row, and the JSON of the newest events up to its last sequence."""
        self.row = row
        if events:
            chunks = _chunks(row.last_sequence, events)
            tail = self._tail
            size = self._tail_bytes + sum(len(chunk.data) for chunk in chunks)
            dropped, known = 0, len(tail)
            tail.extend(chunks)
            # All new events stay, however many: viewers that wait read them from memory.
            while size > TAIL_BYTES and dropped < known:
                size -= len(tail[dropped].data)
                dropped += 1
            if dropped:
                del tail[:dropped]
            self._tail_bytes = size
            self._memory.count(self, size)
        self.signal.fire()

    def drop_tail(self) -> None:
        """Hold no events: viewers read the store."""
        self._tail.clear()
        self._tail_bytes = 0

    def finish(self) -> None:
        """End the viewers."""
        self.finished = True
        self.drop_tail()
        self._memory.count(self, 0)
        self.signal.fire()

    async def read(self, cursor: int, viewer: str = "", *, max_bytes: int) -> Slice:
        """Return events after the cursor from memory, or else from the store (see read_stored)."""
        row, tail = self.row, self._tail
        if tail and max(row.first_sequence, tail[0].first) <= cursor + 1 <= row.last_sequence:
            position = bisect_right(tail, cursor, key=_last)
            return collect(tail, position, cursor, viewer, max_bytes)
        return await read_stored(self, self._store, cursor, max_bytes)

    async def wait_beyond(self, sequence: int) -> None:
        """Return when an event after that sequence is stored, or none will be."""
        while self.row.last_sequence <= sequence and not self.finished and not self.signal.closed:
            await self.signal.wait()


def _chunks(last: int, events: Sequence[bytes]) -> list[Chunk]:
    first = last - len(events) + 1
    size = sum(map(len, events))
    # Of similar events each chunk holds about as many bytes: one write to a viewer is not much more.
    step = len(events) if size <= CHUNK_BYTES else max(1, CHUNK_BYTES * len(events) // size)
    chunks: list[Chunk] = []
    for start in range(0, len(events), step):
        part = events[start : start + step]
        begin = first + start
        chunks.append(Chunk(begin, begin + len(part) - 1, None, encode_messages(begin, part)))
    return chunks


def _last(chunk: Chunk) -> int:
    return chunk.last
