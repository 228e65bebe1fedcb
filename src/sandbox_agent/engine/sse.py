"""Server-sent events: encoding and decoding (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

# One event contains one envelope: the longest line of an agent, escaped, plus the fields around it.
MAX_EVENT_BYTES = 6 * 64 * 1024 * 1024 + 4096
_MESSAGE = b"event: message\nid: %d\ndata: %b\n\n"
# A stream may start with a byte order mark.
_BOM = b"\xef\xbb\xbf"


def encode_messages(first: int, lines: Sequence[bytes]) -> bytes:
    r"""Encode envelopes as ``message`` events with consecutive ids from ``first``.

    Each line is JSON. A raw ``\r`` in it can only be whitespace between tokens, but would end the SSE line:
    it is replaced by a space. All other bytes are unchanged.
    """
    encoded = b"".join([_MESSAGE % numbered for numbered in enumerate(lines, first)])
    if b"\r" in encoded:
        return encode_messages(first, [line.replace(b"\r", b" ") for line in lines])
    return encoded


def encode_event(event: str, data: bytes, *, event_id: int | str | None = None) -> bytes:
    """Encode one event of another type. ``data`` is one line."""
    id_line = b"" if event_id is None else b"id: %b\n" % str(event_id).encode()
    return b"event: %b\n%bdata: %b\n\n" % (event.encode(), id_line, data)


def encode_comment(text: str = "") -> bytes:
    """Encode a comment, which keeps the connection alive and is not an event."""
    return b":%b\n\n" % (f" {text}" if text else "").encode()


def encode_retry(milliseconds: int) -> bytes:
    """Encode the time that a client waits before it reconnects."""
    return b"retry: %d\n\n" % milliseconds


def cut_after(data: bytes, sequence: int) -> bytes:
    """Return the events after the one with this id. ``data`` is a result of encode_messages."""
    start = data.find(b"\nid: %d\n" % sequence)
    return data if start < 0 else data[data.find(b"\n\n", start) + 2 :]


class SseEvent(NamedTuple):
    """An event: its type, its id or None, and its data without the final newline."""

    event: str
    id: str | None
    data: bytes


class SseTooLargeError(ValueError):
    """An event is larger than the decoder's limit."""


class SseDecoder:
    """Decodes the bytes of a stream into events.

    Attributes:
        last_event_id: The id of the newest event that had one, for the next Last-Event-ID, or None.
        retry_ms: The newest reconnection time of the server in milliseconds, or None.
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
        """Add the next bytes and return the events that they complete.

        Raises:
            SseTooLargeError: An event is over the limit. The decoder can no longer be used.
        """
        data = self._normalize(data)
        if not data:
            return []
        last = self._parts[-1][-1:] if self._parts else b""
        if b"\n\n" not in data and not (last == b"\n" and data[:1] == b"\n"):
            self._append(data)
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
            self._append(rest)
        return events

    def _normalize(self, data: bytes) -> bytes:
        if self._start is not None:
            data = self._start + data
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._start = data
                return b""
            self._start = None
            data = data.removeprefix(_BOM)
        if self._after_cr and data:
            # The "\r" has already ended the line, so that the event did not wait for the next byte.
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return data

    def _append(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        if self._size > self._max:
            raise SseTooLargeError(f"an event is larger than {self._max} bytes: the stream cannot be decoded")

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
