"""Line framing: bytes of a pipe in, lines out, memory bounded by the longest line allowed."""

from __future__ import annotations

__all__ = ["MAX_LINE_BYTES", "LineFramer", "OversizedLine"]

# An agent may send a file's whole content in one envelope; anything above this is a runaway.
MAX_LINE_BYTES = 64 * 1024 * 1024
# How much of a line that is too long is kept to show what it was.
OVERSIZED_PREFIX_BYTES = 4096


class OversizedLine(bytes):
    """The beginning of a line that was longer than allowed; the rest was dropped.

    Attributes:
        size: the length of the whole line in bytes.
    """

    size: int


class LineFramer:
    r"""Splits a byte stream into lines at ``\n``; a ``\r`` before it belongs to the line end.

    Blank lines are skipped. A line over ``max_line_bytes`` comes out as an OversizedLine, once, at its
    place among the others, and costs no more memory than the limit.
    """

    def __init__(self, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        self._held = bytearray()  # one buffer: a list of tiny reads would cost many times their bytes
        self._size = 0
        self._overflowing = False

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes and return the lines that they complete."""
        pieces = data.split(b"\n")
        tail = pieces.pop()
        lines: list[bytes] = []
        if pieces and self._held:
            self._hold(pieces.pop(0))
            lines = self._checked([self._take()])
        if b"\r" in data or len(data) > self._max:
            lines += self._checked(pieces)
        else:
            lines += [piece for piece in pieces if piece and not piece.isspace()]
        if tail:
            self._hold(tail)
        return lines

    def _checked(self, pieces: list[bytes]) -> list[bytes]:
        """Take carriage returns and lines that are too long into account, which most data has none of."""
        lines: list[bytes] = []
        for piece in pieces:
            if isinstance(piece, OversizedLine):
                lines.append(piece)
                continue
            line = piece[:-1] if piece[-1:] == b"\r" else piece
            if len(line) > self._max:
                lines.append(_oversized(line, len(line)))
            elif line and not line.isspace():
                lines.append(line)
        return lines

    def finish(self) -> list[bytes]:
        """Return what stands after the last newline, at the end of the stream."""
        return self.feed(b"\n") if self._held else []

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._overflowing:
            return
        self._held += piece
        # one more byte than allowed may be the "\r" of the line's end
        if self._size > self._max + 1:
            self._overflowing = True
            self._held = self._held[:OVERSIZED_PREFIX_BYTES]

    def _take(self) -> bytes:
        line = bytes(self._held)
        if self._overflowing:
            line = _oversized(line, self._size)
        self._held, self._size, self._overflowing = bytearray(), 0, False
        return line


def _oversized(line: bytes, size: int) -> OversizedLine:
    # without a "}" at its end it is no whole object, whatever the rest was
    cut = OversizedLine(line[:OVERSIZED_PREFIX_BYTES].rstrip(b"}"))
    cut.size = size
    return cut
