"""A session as viewers see it: what is committed, and nothing else."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import ref

from sandbox_agent.engine.feed import Chunk, Slice, collect
from sandbox_agent.engine.sse import encode_event, encode_messages
from sandbox_agent.persist.store import SessionRow
from sandbox_agent.server.streams.viewers import Bell
from sandbox_agent.wire.jsonrpc import dumps

if TYPE_CHECKING:
    from sandbox_agent.persist.store import SessionStore
    from sandbox_agent.server.recorder.projection import Fold
    from sandbox_agent.server.recorder.tap import Tap

__all__ = ["LiveSession", "TailMemory"]

# What a session's newest events may take in memory, and those of all sessions.
TAIL_BYTES = 256 * 1024
TAILS_BYTES = 16 * 1024 * 1024
# A page of a late viewer.
PAGE_EVENTS = 1000


class TailMemory:
    """The newest events of the sessions that were busy last."""

    def __init__(self, limit: int = TAILS_BYTES) -> None:
        self.used: int = 0
        self._limit = limit
        # A session in whose tail nobody is interested may go: it is held weakly.
        self._tails: OrderedDict[int, tuple[ref[LiveSession], int]] = OrderedDict()

    def count(self, session: LiveSession, size: int) -> None:
        """A session's tail has that size now; the tails that were quiet longest make room for it."""
        number = id(session)
        self._release(number)
        if size:
            self._tails[number] = (ref(session, lambda _: self._release(number)), size)
            self.used += size
        while self.used > self._limit and self._tails:
            oldest = self._release(next(iter(self._tails)))
            if oldest is not None:
                oldest.drop_tail()

    def _release(self, number: int) -> LiveSession | None:
        held = self._tails.pop(number, None)
        if held is None:
            return None
        self.used -= held[1]
        return held[0]()


class LiveSession:
    """A session that someone uses.

    Attributes:
        bell: rings when there is more.
        row: the session as it is stored; its columns change by the recorder only.
        finished: it was deleted; nothing will come any more.
        fold: what the recorder makes of its envelopes; the recorder's.
        taps: the connections that have it open, and its name there; the recorder's.
        torn: whether what was open when the server ended is still to be closed; the recorder's.
        lost_turns: turns of then that only their rows know; the recorder's.
    """

    def __init__(self, row: SessionRow, fold: Fold, store: SessionStore, memory: TailMemory) -> None:
        self.bell: Bell = Bell()
        self.row: SessionRow = row
        self.finished: bool = False
        self.fold = fold
        self.taps: set[tuple[Tap, str]] = set()
        self.torn: bool = False
        self.lost_turns: list[str] = []
        self._store = store
        self._memory = memory
        self._tail: list[Chunk] = []
        self._tail_bytes = 0

    @property
    def session_id(self) -> str:
        """The session's name."""
        return self.row.session_id

    def publish(self, row: SessionRow, chunks: Sequence[Chunk]) -> None:
        """Show what was committed."""
        self.row = row
        if chunks:
            tail = self._tail
            size = self._tail_bytes + sum(len(chunk.data) for chunk in chunks)
            dropped, known = 0, len(tail)
            tail.extend(chunks)
            # The newest are kept however many they are, for who is awake; the others' memory is used up then.
            while size > TAIL_BYTES and dropped < known:
                size -= len(tail[dropped].data)
                dropped += 1
            if dropped:
                del tail[:dropped]
            self._tail_bytes = size
            self._memory.count(self, size)
        self.bell.ring()

    def drop_tail(self) -> None:
        """Hold no events: who wants them reads the store."""
        self._tail.clear()
        self._tail_bytes = 0

    def finish(self) -> None:
        """End the viewers."""
        self.finished = True
        self.drop_tail()
        self._memory.count(self, 0)
        self.bell.ring()

    async def read(self, cursor: int, viewer: str = "", *, max_bytes: int) -> Slice:
        """Return events behind the cursor as server-sent events, each with its sequence as its id.

        What retention has erased is told by one ``gap`` event: the first and last sequence of it.

        Raises:
            PersistError: the store can't be read.
        """
        row = self.row
        if self.finished or cursor >= row.last_sequence:
            return Slice(b"", cursor)
        if cursor + 1 < row.first_sequence:
            return _gap(cursor + 1, row.first_sequence - 1)
        tail = self._tail
        if tail and cursor + 1 >= tail[0].first:
            position = bisect_right(tail, cursor, key=_last)
            return collect(tail, position, cursor, viewer, max_bytes)
        events = await self._store.events(row.key, after=cursor, limit=PAGE_EVENTS, max_bytes=max_bytes)
        if not events:
            # Deleted, or expired since the row was looked at.
            return Slice(b"", cursor) if self.finished else _gap(cursor + 1, row.last_sequence)
        first = events[0].sequence
        if first > cursor + 1:
            return _gap(cursor + 1, first - 1)
        return Slice(encode_messages(first, [event.data for event in events]), events[-1].sequence)

    async def wait_beyond(self, sequence: int) -> None:
        """Return when an event behind that sequence is stored, or none will be."""
        while self.row.last_sequence <= sequence and not self.finished and not self.bell.closed:
            await self.bell.wait()


def _gap(first: int, last: int) -> Slice:
    return Slice(encode_event("gap", dumps({"from": first, "to": last}), event_id=last), last)


def _last(chunk: Chunk) -> int:
    return chunk.last
