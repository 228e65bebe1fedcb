"""The feed: every envelope of a connection, numbered; viewers are cursors into it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

from sandbox_agent.engine.sse import cut_after, encode_messages

__all__ = ["Chunk", "Feed", "FeedMemory", "Position", "Slice", "collect"]


class Chunk(NamedTuple):
    """Consecutive events of one audience, encoded once for all viewers.

    Attributes:
        first: sequence of its first event.
        last: sequence of its last event.
        audience: the client it is for, UNNAMED, or EVERYONE (None).
        data: the events as server-sent events.
    """

    first: int
    last: int
    audience: str | None
    data: bytes

    def visible_to(self, viewer: str) -> bool:
        """Whether a viewer of that name sees it."""
        return self.audience is None or self.audience == viewer

    def after(self, sequence: int) -> bytes:
        """Return the encoded events behind that sequence."""
        return self.data if sequence < self.first else cut_after(self.data, sequence)


class Slice(NamedTuple):
    """What a viewer reads at once: bytes to send (maybe none) and its new cursor."""

    data: bytes
    cursor: int


class Position(NamedTuple):
    """Where a viewer begins, and whether it must be told that the feed is not the one it knew."""

    cursor: int
    reset: bool


class FeedMemory:
    """The bytes that all feeds of a server hold together, against one bound."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used: int = 0
        self._feeds: set[Feed] = set()

    @property
    def exceeded(self) -> bool:
        """Whether something is to be spilled."""
        return self.used > self.limit

    def largest(self) -> Feed | None:
        """Return the feed that holds the most, the one to spill from."""
        return max(self._feeds, key=lambda feed: feed.held_bytes, default=None)

    def join(self, feed: Feed) -> None:
        """Count a feed in."""
        self._feeds.add(feed)

    def leave(self, feed: Feed) -> None:
        """Count a feed out, with all it holds."""
        self._feeds.discard(feed)
        self.used -= feed.held_bytes


class Feed:
    """The numbered log of one connection.

    Sequences are contiguous from 1. The newest events are held in memory; older ones may have been
    spilled, oldest first, and are then read elsewhere by sequence.

    Args:
        epoch: names this feed: another connection under the same server id has another one.
        memory: the bound that this feed shares.
    """

    def __init__(self, epoch: str, memory: FeedMemory) -> None:
        self.epoch = epoch
        self.last: int = 0
        self.held_bytes: int = 0
        self._memory = memory
        self._chunks: list[Chunk] = []
        self._start = 0
        memory.join(self)

    def append(self, lines: Sequence[bytes], audience: str | None) -> None:
        """Number the envelopes and hold them for viewers."""
        first = self.last + 1
        chunk = Chunk(first, self.last + len(lines), audience, encode_messages(first, lines))
        self.last = chunk.last
        self._chunks.append(chunk)
        self.held_bytes += len(chunk.data)
        self._memory.used += len(chunk.data)

    @property
    def held_from(self) -> int:
        """The first sequence that memory holds; one past the last when it holds none."""
        return self._chunks[self._start].first if self._start < len(self._chunks) else self.last + 1

    def begin(self, last_event_id: int, epoch: str | None) -> Position:
        """Return where a viewer goes on that has read up to ``last_event_id`` of ``epoch``."""
        if (epoch is not None and epoch != self.epoch) or last_event_id > self.last:
            return Position(0, reset=True)
        return Position(last_event_id, reset=False)

    def read(self, cursor: int, viewer: str, *, max_bytes: int) -> Slice | None:
        """Return what memory holds behind the cursor, up to about ``max_bytes``.

        Returns:
            A slice, without data when the viewer is at the end or nothing was for it; None when the
            events behind the cursor have been spilled.
        """
        if cursor >= self.last:
            return Slice(b"", cursor)
        if cursor + 1 < self.held_from:
            return None
        position = max(self._start, bisect_right(self._chunks, cursor, key=_last))
        return collect(self._chunks, position, cursor, viewer, max_bytes)

    def oldest(self, max_bytes: int) -> list[Chunk]:
        """Return the oldest chunks in memory, about ``max_bytes`` of them, at least one."""
        size = 0
        end = self._start
        while end < len(self._chunks) and size < max_bytes:
            size += len(self._chunks[end].data)
            end += 1
        return self._chunks[self._start : end]

    def forget(self, last: int) -> None:
        """Drop from memory what has been spilled, up to and including sequence ``last``."""
        freed = 0
        while self._start < len(self._chunks) and self._chunks[self._start].last <= last:
            freed += len(self._chunks[self._start].data)
            self._chunks[self._start] = _DROPPED
            self._start += 1
        if self._start > len(self._chunks) // 2:
            del self._chunks[: self._start]
            self._start = 0
        self.held_bytes -= freed
        self._memory.used -= freed

    def close(self) -> None:
        """Give the memory back; the feed can't be read any more."""
        self._memory.leave(self)
        self._chunks.clear()
        self._start = 0
        self.held_bytes = 0


# keeps the list's positions while it lets the bytes go
_DROPPED = Chunk(0, 0, None, b"")


def _last(chunk: Chunk) -> int:
    return chunk.last


def collect(chunks: Sequence[Chunk], position: int, cursor: int, viewer: str, max_bytes: int) -> Slice:
    """Gather the events behind the cursor that the viewer sees, from ``chunks[position]`` on."""
    parts: list[bytes] = []
    size = 0
    for index in range(position, len(chunks)):
        chunk = chunks[index]
        if chunk.visible_to(viewer):
            part = chunk.after(cursor)
            parts.append(part)
            size += len(part)
        cursor = chunk.last
        if size >= max_bytes:
            break
    return Slice(parts[0] if len(parts) == 1 else b"".join(parts), cursor)
