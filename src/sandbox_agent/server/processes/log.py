"""The output of a process: what is kept of it, and the events of those who follow it."""

from __future__ import annotations

import time
from binascii import b2a_base64
from collections.abc import Callable, Generator
from typing import Final, NamedTuple

from sandbox_agent.engine.feed import Slice
from sandbox_agent.engine.sse import encode_event
from sandbox_agent.server import metrics
from sandbox_agent.server.streams.usage import Usage
from sandbox_agent.server.streams.viewers import Signal
from sandbox_agent.wire.jsonrpc import dumps

COMBINED: Final = "combined"
# A larger piece of output becomes several entries.
ENTRY_BYTES = 64 * 1024
# Small entries take more memory than their bytes: there are at most as many as if each had so many bytes.
_SMALL_BYTES = 64
_LEAST_ENTRIES = 256
# One write to a follower. More than one read of the output, so that a follower that was behind catches up.
_SLICE_BYTES = 512 * 1024
# Dropped entries are removed from the list when there are so many.
_SPARE = 1024


class Entry(NamedTuple):
    """A piece of output, as bytes."""

    stream: str
    timestamp_ms: int
    data: bytes


_DROPPED = Entry("", 0, b"")


class ProcessLog:
    """The newest output of a process. The oldest is dropped first.

    Args:
        limit: returns how many bytes are kept.

    Attributes:
        first: the sequence of the oldest entry that is kept; that of the next one if none is.
        signal: fires when there is more; closed when nothing will follow.
        usage: the followers.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._entries: list[Entry] = []
        self._start = 0
        self.size: int = 0
        self.first: int = 1
        self.signal: Signal = Signal()
        self.usage: Usage = Usage()

    @property
    def last(self) -> int:
        """The sequence of the newest entry; 0 if there was none."""
        return self.first + len(self._entries) - self._start - 1

    def append(self, stream: str, data: bytes) -> None:
        """Add output, and drop the oldest output that is too much."""
        limit = self._limit()
        now = time.time_ns() // 1_000_000
        most = min(ENTRY_BYTES, limit)
        if len(data) <= most:
            self._entries.append(Entry(stream, now, data))
        else:
            self._entries += [
                Entry(stream, now, data[start : start + most]) for start in range(0, len(data), most)
            ]
        self.size += len(data)
        self._drop(limit)
        self.signal.fire()

    def _drop(self, limit: int) -> None:
        most = max(_LEAST_ENTRIES, limit // _SMALL_BYTES)
        while self.size > limit or len(self._entries) - self._start > most:
            self.size -= len(self._entries[self._start].data)
            self._entries[self._start] = _DROPPED
            self._start += 1
            self.first += 1
        if self._start > _SPARE and self._start * 2 > len(self._entries):
            del self._entries[: self._start]
            self._start = 0

    def after(self, cursor: int) -> list[Entry]:
        """Return the entries after a sequence that are kept."""
        return self._entries[self._start + max(0, cursor + 1 - self.first) :]

    def tail(self, count: int, stream: str) -> int:
        """Return the sequence after which there are the last ``count`` entries of a stream, or fewer."""
        sequence = self.last
        while count and sequence >= self.first:
            if stream in (COMBINED, self._at(sequence).stream):
                count -= 1
            sequence -= 1
        return sequence

    def _at(self, sequence: int) -> Entry:
        return self._entries[self._start + sequence - self.first]

    def read(self, cursor: int, stream: str) -> Slice:
        """Return the events after a sequence, and the cursor after them.

        An event ``gap`` has the range of the entries that are dropped.
        """
        if cursor + 1 < self.first:
            metrics.GAPS.add("process_logs")
            return Slice(encode_gap(cursor + 1, self.first - 1), self.first - 1)
        size = 0
        parts: list[bytes] = []
        last = self.last
        while cursor < last and size < _SLICE_BYTES:
            cursor += 1
            entry = self._at(cursor)
            if stream in (COMBINED, entry.stream):
                parts.append(b"event: log\nid: %d\ndata: %b\n\n" % (cursor, encode_entry(cursor, entry)))
                size += len(entry.data)
        return Slice(b"".join(parts), cursor)


class Follower:
    """What one client reads of a log: the entries of a stream, and finally an event ``exit``.

    Args:
        log: the log.
        describe: returns the process as JSON, for the last event.
    """

    def __init__(self, log: ProcessLog, describe: Callable[[], bytes]) -> None:
        self._log = log
        self._describe = describe
        self.signal: Signal = log.signal
        self.usage: Usage = log.usage
        self.finished: bool = False

    async def read(self, cursor: int, viewer: str, *, max_bytes: int) -> Slice:
        """Return the events after the cursor; ``viewer`` is the stream."""
        del max_bytes  # our own limit counts what is read, not what is sent
        part = self._log.read(cursor, viewer)
        if part.cursor == cursor and self.signal.closed and not self.finished:
            self.finished = True
            return Slice(encode_event("exit", self._describe()), cursor + 1)
        return part


def encode_gap(first: int, last: int) -> bytes:
    """Return the event for entries that are dropped."""
    return encode_event("gap", dumps({"from": first, "to": last}), event_id=last)


def encode_entry(sequence: int, entry: Entry) -> bytes:
    """Return an entry as JSON."""
    return b'{"sequence":%d,"stream":"%b","timestampMs":%d,"data":"%b","encoding":"base64"}' % (
        sequence,
        entry.stream.encode(),
        entry.timestamp_ms,
        b2a_base64(entry.data, newline=False),
    )


def encode_logs(head: bytes, first: int, entries: list[Entry], stream: str, tail: bytes) -> Generator[bytes]:
    """Yield a document in pieces: its head, the entries of a stream, separated by commas, and its tail.

    Args:
        head: what comes before the entries.
        first: the sequence of the first entry.
        entries: the entries.
        stream: the stream whose entries are wanted.
        tail: what comes after the entries.
    """
    parts, size, comma = [head], 0, b""
    for sequence, entry in enumerate(entries, first):
        if stream in (COMBINED, entry.stream):
            parts += (comma, encode_entry(sequence, entry))
            comma = b","
            size += len(entry.data)
            if size >= _SLICE_BYTES:
                yield b"".join(parts)
                parts, size = [], 0
    yield b"".join((*parts, tail))
