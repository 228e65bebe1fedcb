"""Publishes what an agent sends, and what its clients send, in the feed of its connection."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import anyio

from sandbox_agent.engine.feed import Feed, Slice
from sandbox_agent.server.agents.spill import Spiller
from sandbox_agent.server.streams.viewers import Signal

# A store that hangs must not hold up a DELETE; the feed is dropped when the store works again.
DROP_SECONDS = 0.3


class Publication:
    """The feed of a connection and its viewers. It outlives the agent until it is closed.

    Args:
        spiller: keeps the feed within its memory.

    Attributes:
        feed: the feed.
        signal: wakes the viewers.
        closed: whether the feed has ended.
    """

    def __init__(self, spiller: Spiller) -> None:
        self.feed: Feed = Feed(uuid.uuid4().hex, spiller.memory)
        self.signal: Signal = Signal()
        self.closed: bool = False
        self._spiller = spiller
        self._unnumbered: list[tuple[Sequence[bytes], str | None]] = []

    def add(self, lines: Sequence[bytes], audience: str | None) -> None:
        """Add lines that the next publish() appends to the feed, in order."""
        self._unnumbered.append((lines, audience))

    def publish(self) -> None:
        """Append what was added to the feed, and wake the viewers."""
        unnumbered, self._unnumbered = self._unnumbered, []
        if not self.closed:
            for lines, audience in unnumbered:
                if lines:
                    self.feed.append(lines, audience)
        self.signal.fire()

    async def read(self, cursor: int, viewer: str, *, max_bytes: int) -> Slice:
        """Return what is in the feed after the cursor, from memory or from the spill."""
        if self.closed:
            return Slice(b"", cursor)
        part = self.feed.read(cursor, viewer, max_bytes=max_bytes)
        if part is None:
            part = await self._spiller.read(self.feed.epoch, cursor, viewer, max_bytes)
        return part

    async def close(self) -> None:
        """End the feed and its viewers."""
        if not self.closed:
            self.closed = True
            self.feed.close()
            self.signal.fire()
            with anyio.move_on_after(DROP_SECONDS):
                await self._spiller.drop(self.feed.epoch)
