"""Splits the bytes of a pipe into lines. Memory is bounded by the maximum length of a line."""

from __future__ import annotations

# An agent may send the content of a whole file in one envelope. A longer line is an error.
MAX_LINE_BYTES = 64 * 1024 * 1024
# How many bytes of an oversized line are kept, to show what it was.
OVERSIZED_PREFIX_BYTES = 4096


class OversizedLine(bytes):
    """The start of a line that was longer than allowed. The rest was dropped.

    Attributes:
        size: The length of the whole line in bytes.
    """

    size: int


class LineFramer:
    r"""Splits a byte stream into lines at ``\n`` or ``\r\n``.

    Blank lines are skipped. A line over ``max_line_bytes`` becomes one OversizedLine, in order with the other
    lines, and needs no more memory than the limit.
    """

    def __init__(self, *, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        # The incomplete line. One buffer: a list of tiny reads would need many times their size.
        self._partial = bytearray()
        self._size = 0
        self._oversized = False

    def feed(self, data: bytes) -> list[bytes]:
        """Add the next bytes and return the lines that they complete."""
        pieces = data.split(b"\n")
        tail = pieces.pop()
        lines: list[bytes] = []
        if pieces and self._partial:
            self._append_partial(pieces.pop(0))
            lines = self._clean([self._pop_partial()])
        if b"\r" in data or len(data) > self._max:
            lines += self._clean(pieces)
        else:
            lines += [piece for piece in pieces if piece and not piece.isspace()]
        if tail:
            self._append_partial(tail)
        return lines

    def _clean(self, pieces: list[bytes]) -> list[bytes]:
        """Handle carriage returns and oversized lines. Most data has neither and skips this."""
        lines: list[bytes] = []
        for piece in pieces:
            if isinstance(piece, OversizedLine):
                lines.append(piece)
                continue
            line = piece[:-1] if piece[-1:] == b"\r" else piece
            if len(line) > self._max:
                lines.append(_cut(line, len(line)))
            elif line and not line.isspace():
                lines.append(line)
        return lines

    def finish(self) -> list[bytes]:
        """Return the text after the last newline, at the end of the stream."""
        return self.feed(b"\n") if self._partial else []

    def _append_partial(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._oversized:
            return
        self._partial += piece
        # One byte over the limit may be the "\r" of the line end.
        if self._size > self._max + 1:
            self._oversized = True
            self._partial = self._partial[:OVERSIZED_PREFIX_BYTES]

    def _pop_partial(self) -> bytes:
        line = bytes(self._partial)
        if self._oversized:
            line = _cut(line, self._size)
        self._partial, self._size, self._oversized = bytearray(), 0, False
        return line


def _cut(line: bytes, size: int) -> OversizedLine:
    # Without the final "}" the prefix cannot be mistaken for a complete object.
    cut = OversizedLine(line[:OVERSIZED_PREFIX_BYTES].rstrip(b"}"))
    cut.size = size
    return cut
