"""Server-sent events: encoding and decoding (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = [
    "MAX_EVENT_BYTES",
    "SseDecoder",
    "SseEvent",
    "SseTooLargeError",
    "cut_after",
    "encode_comment",
    "encode_event",
    "encode_messages",
    "encode_retry",
]

# One event carries one envelope: the longest line an agent may write, escaped, and room for its frame.
MAX_EVENT_BYTES = 6 * 64 * 1024 * 1024 + 4096
_MESSAGE = b"event: message\nid: %d\ndata: %b\n\n"
# A byte order mark may stand at the beginning of a stream.
_BOM = b"\xef\xbb\xbf"


def encode_messages(first: int, lines: Sequence[bytes]) -> bytes:
    r"""Encode envelopes as ``message`` events with ids counting up from ``first``.

    The lines are one-line JSON: a raw ``\r`` can only be whitespace between its tokens, where it would
    end the SSE line, so it becomes a space; every other byte stays.
    """
    encoded = b"".join([_MESSAGE % numbered for numbered in enumerate(lines, first)])
    if b"\r" in encoded:
        return encode_messages(first, [line.replace(b"\r", b" ") for line in lines])
    return encoded


def encode_event(event: str, data: bytes, *, event_id: int | None = None) -> bytes:
    """Encode one event of another kind; ``data`` is one line."""
    id_line = b"" if event_id is None else b"id: %d\n" % event_id
    return b"event: %b\n%bdata: %b\n\n" % (event.encode(), id_line, data)


def encode_comment(text: str = "") -> bytes:
    """Encode a comment: it keeps the connection alive and is no event."""
    return b":%b\n\n" % (f" {text}" if text else "").encode()


def encode_retry(milliseconds: int) -> bytes:
    """Encode how long a client waits before it connects again."""
    return b"retry: %d\n\n" % milliseconds


def cut_after(data: bytes, sequence: int) -> bytes:
    """Return what follows the event of that id in bytes made by encode_messages."""
    start = data.find(b"\nid: %d\n" % sequence)
    return data if start < 0 else data[data.find(b"\n\n", start) + 2 :]


class SseEvent(NamedTuple):
    """One event: its name, its id where it carried one, and its data without the last newline."""

    event: str
    id: str | None
    data: bytes


class SseTooLargeError(ValueError):
    """An event is larger than the decoder's limit."""


class SseDecoder:
    """Bytes of a stream in, events out.

    Attributes:
        last_event_id: the id of the newest event that had one, as the next Last-Event-ID.
        retry_ms: what the server asked for last, or None.
    """

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.last_event_id: str | None = None
        self.retry_ms: int | None = None
        self._max = max_event_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._start: bytes | None = b""
        self._after_cr = False

    def feed(self, data: bytes) -> list[SseEvent]:
        """Take the next bytes and return the events that they complete.

        Raises:
            SseTooLargeError: an event is over the limit; the decoder can't be used any more.
        """
        data = self._normalise(data)
        if not data:
            return []
        last = self._parts[-1][-1:] if self._parts else b""
        if b"\n\n" not in data and not (last == b"\n" and data[:1] == b"\n"):
            self._keep(data)
            return []
        if self._parts:
            data = b"".join([*self._parts, data])
        self._parts, self._size = [], 0
        blocks = data.split(b"\n\n")
        rest = blocks.pop()
        events: list[SseEvent] = []
        for block in blocks:
            event = self._parse(block)
            if event is not None:
                events.append(event)
        if rest:
            self._keep(rest)
        return events

    def _normalise(self, data: bytes) -> bytes:
        if self._start is not None:
            data = self._start + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._start = data
                return b""
            self._start = None
            data = data.removeprefix(_BOM)
        if self._after_cr and data:
            # the line has ended at the "\r", so that its event did not wait for what follows
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    def _keep(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._max:
            raise SseTooLargeError(f"an event is over {self._max} bytes: the stream can't be read on")

    def _parse(self, block: bytes) -> SseEvent | None:
        name = ""
        event_id: str | None = None
        data: list[bytes] = []
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            if value[:1] == b" ":
                value = value[1:]
            if field == b"data":
                data.append(value)
            elif field == b"event":
                name = value.decode("utf-8", "replace")
            elif field == b"id":
                if b"\0" not in value:
                    event_id = self.last_event_id = value.decode("utf-8", "replace")
            elif field == b"retry" and value.isdigit() and len(value) < 10:
                self.retry_ms = int(value)
        if not data:
            return None
        return SseEvent(name or "message", event_id, data[0] if len(data) == 1 else b"\n".join(data))
