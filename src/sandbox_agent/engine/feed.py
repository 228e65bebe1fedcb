"""The feed: the numbered envelopes of a connection. A viewer is a cursor into it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final, NamedTuple

from sandbox_agent.engine.sse import cut_after, encode_event, encode_messages

# Of the audiences below, one is no client's: what clients sent. Names come from headers, without control
# characters. A viewer of everything has it, and the responses to all clients.
SENT: Final = "\x01sent"
EVERYTHING: Final = "\x01everything"
# The type of its events; those of all other audiences are messages.
SENT_EVENT: Final = "sent"


class Chunk(NamedTuple):
    """Consecutive events for one audience, encoded once for all viewers.

    Attributes:
        first: The sequence of the first event.
        last: The sequence of the last event.
        audience: The name of a client, UNNAMED, SENT, or EVERYONE (None).
        data: The events, encoded as server-sent events.
    """

    first: int
    last: int
    audience: str | None
    data: bytes

    def visible_to(self, viewer: str) -> bool:
        """Return whether the viewer with this name receives the chunk."""
        return self.audience is None or self.audience == viewer or viewer == EVERYTHING

    def after(self, sequence: int) -> bytes:
        """Return the encoded events after this sequence."""
        return self.data if sequence < self.first else cut_after(self.data, sequence)


class Slice(NamedTuple):
    """The result of one read: bytes to send (maybe none) and the viewer's new cursor."""

    data: bytes
    cursor: int


class Position(NamedTuple):
    """The start position of a viewer, and whether it must be notified that the feed is a different one."""

    cursor: int
    reset: bool


class FeedMemory:
    """The total memory of all feeds of a server, and its limit in bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used: int = 0
        self._feeds: set[Feed] = set()

    @property
    def over_limit(self) -> bool:
        """Whether events must be spilled."""
        return self.used > self.limit

    def largest(self) -> Feed | None:
        """Return the feed that uses the most memory. Events are spilled from it first."""
        return max(self._feeds, key=lambda feed: feed.held_bytes, default=None)

    def join(self, feed: Feed) -> None:
        """Add a feed."""
        self._feeds.add(feed)

    def leave(self, feed: Feed) -> None:
        """Remove a feed and its memory."""
        self._feeds.discard(feed)
        self.used -= feed.held_bytes


class Feed:
    """The numbered log of one connection.

    Sequences are contiguous integers from 1. The newest events are in memory. Older events may have been
    spilled, oldest first; they are then read elsewhere by their sequence.

    Args:
        epoch: Identifies this feed. Another connection with the same server id has another epoch.
        memory: The memory limit that all feeds share.
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
        """Assign the next sequences to the envelopes and keep them in memory."""
        first = self.last + 1
        if audience == SENT:
            data = b"".join(
                encode_event(SENT_EVENT, line, event_id=at) for at, line in enumerate(lines, first)
            )
        else:
            data = encode_messages(first, lines)
        chunk = Chunk(first, self.last + len(lines), audience, data)
        self.last = chunk.last
        self._chunks.append(chunk)
        self.held_bytes += len(chunk.data)
        self._memory.used += len(chunk.data)

    @property
    def held_from(self) -> int:
        """The first sequence in memory, or the last sequence + 1 if memory is empty."""
        return self._chunks[self._start].first if self._start < len(self._chunks) else self.last + 1

    def begin(self, last_event_id: int, epoch: str | None) -> Position:
        """Return the start position of a viewer that has read up to ``last_event_id`` of ``epoch``."""
        if (epoch is not None and epoch != self.epoch) or last_event_id > self.last:
            return Position(0, reset=True)
        return Position(last_event_id, reset=False)

    def read(self, cursor: int, viewer: str, *, max_bytes: int) -> Slice | None:
        """Read the events in memory after the cursor, up to about ``max_bytes``.

        Returns:
            A slice, without data if the viewer is at the end or no event is for it. None if the events after
            the cursor have been spilled.
        """
        if cursor >= self.last:
            return Slice(b"", cursor)
        if cursor + 1 < self.held_from:
            return None
        position = max(self._start, bisect_right(self._chunks, cursor, key=_last))
        return collect(self._chunks, position, cursor, viewer, max_bytes)

    def oldest(self, max_bytes: int) -> list[Chunk]:
        """Return the oldest chunks in memory: about ``max_bytes``, at least one chunk."""
        size = 0
        end = self._start
        while end < len(self._chunks) and size < max_bytes:
            size += len(self._chunks[end].data)
            end += 1
        return self._chunks[self._start : end]

    def forget(self, last: int) -> None:
        """Drop spilled events from memory, up to and including sequence ``last``."""
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
        """Release the memory. The feed can no longer be read."""
        self._memory.leave(self)
        self._chunks.clear()
        self._start = 0
        self.held_bytes = 0


# Replaces dropped chunks, so that the positions in the list stay valid.
_DROPPED = Chunk(0, 0, None, b"")


def _last(chunk: Chunk) -> int:
    return chunk.last


def collect(chunks: Sequence[Chunk], position: int, cursor: int, viewer: str, max_bytes: int) -> Slice:
    """Collect the viewer's events after the cursor, starting at ``chunks[position]``."""
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
