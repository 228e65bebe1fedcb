"""What a terminal shows, for a viewer that joins later.

A terminal emulator takes a microsecond for each byte, and a process can print 50 MB in a second. So output is
kept as it is at first. A timer applies a little of it at a time to the emulator (pyte), and a viewer that
joins applies the rest. What a fast process prints beyond KEEP_BYTES is dropped from here, except for the
sequences that change how the terminal works; the output after it draws the screen again.
"""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Iterator
from copy import copy
from typing import Any, Final

import pyte
from pyte import graphics

# Output that has not been applied: dropped above KEEP_BYTES, applied by the timer above IDLE_BYTES.
KEEP_BYTES: Final = 256 * 1024
IDLE_BYTES: Final = 32 * 1024
# A slice takes about a millisecond, and the timer runs every 20 ms.
SLICE_BYTES: Final = 1024
TICK_SECONDS: Final = 0.02
# The emulator's size. A larger terminal is shown up to here.
MAX_COLS: Final = 1000
MAX_ROWS: Final = 500
# A longer string (a title, an image) is not waited for.
_MAX_STRING: Final = 64 * 1024

# Combining characters on one character.
MAX_MARKS: Final = 8

_CONTROLS = re.compile("[\x80-\x9f]")
_SEQUENCE = re.compile(rb"\x1b(?:\[([0-?]*)([ -/]*)([@-~])|[\]P_^X][^\x07\x1b]*(?:\x07|\x1b\\))")
_OPEN = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|[\]P_^X][^\x07\x1b]*\x1b?|[ -/]*)\Z")
_STRING_END = re.compile(rb"\x07|\x1b\\")
# What changes the state of the terminal rather than what is on it: modes, margins, reset.
_STATE = re.compile(rb"\x1b(?:\[\?[0-9;]*[hl]|\[[0-9;]*r|\[[0-9]*[hl]|c)")
_COLORS = re.compile(rb"\x1b\[[0-9;:]*m")
# One color, attribute or reset each: the last of them say how text is written.
_COLORS_KEPT: Final = 8
# Output that only adds lines at the end: text, and colors.
_LINES = re.compile(rb"(?:[^\x00-\x06\x0b\x0c\x0e-\x1f\x7f]|\x1b\[[0-9;:]*m)*")

_CLEAR: Final = b"\x1b[m\x1b[H\x1b[2J"
_ALTERNATE: Final = (47, 1047, 1049)
# The private modes that are set for a viewer, with whether they are set at first.
_MODES: Final = {
    1: False,  # cursor keys
    7: True,  # wrap
    25: True,  # cursor
    **dict.fromkeys((9, 1000, 1002, 1003, 1004, 1005, 1006, 1015, 2004), False),  # mouse, focus, paste
}
_ATTRIBUTES: Final = (
    ("bold", 1),
    ("italics", 3),
    ("underscore", 4),
    ("blink", 5),
    ("reverse", 7),
    ("strikethrough", 9),
)
_FOREGROUND: Final = {name: code for code, name in (graphics.FG_ANSI | graphics.FG_AIXTERM).items()}
_BACKGROUND: Final = {name: code for code, name in (graphics.BG_ANSI | graphics.BG_AIXTERM).items()}


class _Emulator(pyte.Screen):
    """pyte's screen with the alternate screen, on which programs such as editors draw."""

    primary: tuple[Any, Any] | None = None

    def draw(self, data: str) -> None:
        super().draw(data if data.isascii() else self._bounded(data))

    def _bounded(self, data: str) -> str:
        """Leave out combining characters beyond MAX_MARKS on one character: pyte keeps all of them."""
        column, row = self.cursor.x - 1, self.cursor.y
        if column < 0:
            column, row = self.columns - 1, max(row - 1, 0)
        count = len(self.buffer[row][min(column, self.columns - 1)].data) - 1
        kept: list[str] = []
        for char in data:
            count = count + 1 if unicodedata.combining(char) else 0
            if count <= MAX_MARKS:
                kept.append(char)
        return "".join(kept)

    def save_cursor(self) -> None:
        self.savepoints.clear()  # as terminals do, which keep one
        super().save_cursor()

    def reset(self) -> None:
        super().reset()
        self.primary = None

    def set_mode(self, *modes: int, **kwargs: Any) -> None:
        super().set_mode(*modes, **kwargs)
        if kwargs.get("private") and self.primary is None and any(mode in _ALTERNATE for mode in modes):
            self.primary = (self.buffer.copy(), copy(self.cursor))
            self.buffer.clear()
            self.cursor_position()

    def reset_mode(self, *modes: int, **kwargs: Any) -> None:
        super().reset_mode(*modes, **kwargs)
        if kwargs.get("private") and self.primary is not None and any(mode in _ALTERNATE for mode in modes):
            hidden = self.cursor.hidden
            self.buffer, self.cursor = self.primary
            self.cursor.hidden = hidden
            self.primary = None
            self.ensure_hbounds()
            self.ensure_vbounds()


class _Stream(pyte.ByteStream):
    """pyte's parser without the 8-bit controls, which terminals ignore in UTF-8."""

    def feed(self, data: bytes) -> None:
        text = self.utf8_decoder.decode(data) if self.use_utf8 else data.decode("latin-1")
        pyte.Stream.feed(self, _CONTROLS.sub("", text))  # pyright: ignore[reportArgumentType] - pyte's has bytes


class Screen:
    """The screen of a terminal.

    Attributes:
        lock: held by a caller of draw().
        is_whole: whether all output since the start is still there as it was printed.
    """

    def __init__(self, cols: int, rows: int) -> None:
        self._emulator = _Emulator(*_clip(cols, rows))
        self._stream = _Stream(self._emulator)
        self._pending = bytearray()
        self._in_string = False
        self._timer: asyncio.TimerHandle | None = None
        self.lock: asyncio.Lock = asyncio.Lock()
        self.is_whole: bool = True

    @property
    def raw(self) -> bytes:
        """The output that has not been applied."""
        return bytes(self._pending)

    def feed(self, data: bytes) -> None:
        """Add output."""
        self._pending += data
        if len(self._pending) > KEEP_BYTES:
            self.is_whole = False
            self._pending = bytearray(_drop(self._pending, KEEP_BYTES // 2))
        if self._timer is None and len(self._pending) > IDLE_BYTES:
            self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def resize(self, cols: int, rows: int) -> None:
        """Change the size."""
        cols, rows = _clip(cols, rows)
        self._emulator.resize(rows, cols)

    def close(self) -> None:
        """Stop the timer. The screen can still be drawn."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def draw(self) -> bytes:
        """Return output that draws the screen on another terminal; empty for a blank one.

        Only one caller at a time, which holds the lock. Output that is added meanwhile is not drawn.
        """
        self.is_whole = False
        todo = bytes(self._pending)
        self._pending.clear()
        if self._emulator.margins is None:
            todo = _last_lines(todo, self._emulator.lines)
        rest, done = b"", 0
        try:
            while done < len(todo):
                rest = self._apply(rest + todo[done : done + SLICE_BYTES])
                done += SLICE_BYTES
                await asyncio.sleep(0)
        finally:  # also if the viewer leaves meanwhile
            self._pending[:0] = rest + todo[done:]
        return _draw(self._emulator)

    def _tick(self) -> None:
        self._timer = None
        if self.lock.locked() or len(self._pending) <= IDLE_BYTES:
            return
        self.is_whole = False
        # A sequence that is longer than a slice is applied whole.
        size = SLICE_BYTES
        rest = part = bytes(self._pending[:size])
        while rest is part and size < len(self._pending):
            part = bytes(self._pending[:size])
            rest = self._apply(part)
            size *= 2
        self._pending[: len(part)] = rest
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _apply(self, data: bytes) -> bytes:
        """Apply output, and return its end if that is the beginning of a sequence."""
        if self._in_string:
            end = _STRING_END.search(data)
            if end is None:
                return data[-1:]  # the terminator has two bytes
            data = data[end.end() :]
            self._in_string = False
        opened = _OPEN.search(data)
        rest = b""
        if opened is not None:
            rest = data[opened.start() :]
            if opened.start() == 0 and len(rest) <= _MAX_STRING:
                return data
            data = data[: opened.start()]
            if len(rest) > _MAX_STRING:
                self._in_string, rest = True, b""
        try:
            self._stream.feed(_SEQUENCE.sub(_supported, data))
        except Exception:  # noqa: BLE001 - pyte raises errors of any kind for sequences with unusual parameters
            self._stream = _Stream(self._emulator)
        return rest


def _clip(cols: int, rows: int) -> tuple[int, int]:
    return min(max(cols, 1), MAX_COLS), min(max(rows, 1), MAX_ROWS)


def _drop(data: bytes | bytearray, keep: int) -> bytes:
    """Drop all but about the last ``keep`` bytes, except for what changes the state of the terminal."""
    cut = len(data) - keep
    for mark in (b"\n", b"\x1b"):
        found = data.rfind(mark, 0, cut)
        if found >= cut // 2:
            cut = found
            break
    dropped = bytes(data[:cut])
    colors = _COLORS.findall(dropped)[-_COLORS_KEPT:]
    # The same modes may have been changed any number of times: the last value of each counts.
    states = dict.fromkeys(reversed(_STATE.findall(dropped)))
    return b"".join([*reversed(states), *colors, data[cut:]])


def _last_lines(data: bytes, rows: int) -> bytes:
    """Leave out lines that scroll off the screen, if the output does nothing but add lines."""
    cut = len(data)
    for _ in range(rows + 1):
        cut = data.rfind(b"\n", 0, cut)
        if cut < 0:
            return data
    # The start may be the end of what a program draws.
    plain = _LINES.fullmatch(data)
    if plain is None:
        return data
    colors = _COLORS.findall(data, 0, cut)[-_COLORS_KEPT:]
    return b"".join([*colors, b"\x1b[2J\r", data[cut + 1 :]])


def _supported(match: re.Match[bytes]) -> bytes:
    """Return a sequence as pyte understands it; empty if it does not."""
    parameters, intermediates, final = match.groups()
    if final is None or intermediates or parameters[:1] in (b"<", b"=", b">"):
        return b""
    if parameters[:1] == b"?":
        return match[0] if final in b"hl" else b""
    if final == b"m":
        return b"\x1b[%sm" % b";".join(map(_attribute, parameters.split(b";")))
    if b":" in parameters:
        return b""
    most = 2 if final in b"Hfr" else 16 if final in b"hl" else 1
    return b"\x1b[%s%s" % (b";".join(parameters.split(b";")[:most]), final)


def _attribute(parameter: bytes) -> bytes:
    """Return an attribute whose values are separated by colons (ISO 8613-6) with semicolons."""
    kind, *values = parameter.split(b":")
    if not values:
        return kind
    if kind in (b"38", b"48"):
        numbers = [value for value in values if value]
        size = 4 if numbers[:1] == [b"2"] else 2
        # With four numbers after the 2, the first is the color space.
        return b";".join([kind, *numbers[:1], *numbers[len(numbers) - size + 1 :]])
    return b"24" if values[0] == b"0" else kind if kind == b"4" else b""


def _draw(emulator: _Emulator) -> bytes:
    rows = [*_rows(emulator, emulator.buffer)]
    modes = [_mode(emulator, number, at_first=at_first) for number, at_first in _MODES.items()]
    cursor = emulator.cursor
    if not (emulator.primary or emulator.margins or any(modes) or rows or cursor.x or cursor.y):
        return b""
    parts: list[bytes] = []
    if emulator.primary is not None:
        buffer, at = emulator.primary
        parts += [_CLEAR, *_rows(emulator, buffer), _move(emulator, at), b"\x1b[?1049h"]
    parts += [_CLEAR, *rows]
    if emulator.margins is not None:
        parts.append(b"\x1b[%d;%dr" % (emulator.margins.top + 1, emulator.margins.bottom + 1))
    return b"".join([*parts, _move(emulator, cursor), *modes, _graphics(cursor.attrs)])


def _move(emulator: _Emulator, cursor: pyte.screens.Cursor) -> bytes:
    return b"\x1b[%d;%dH" % (cursor.y + 1, min(cursor.x, emulator.columns - 1) + 1)


def _mode(emulator: _Emulator, number: int, *, at_first: bool) -> bytes:
    is_set = number << 5 in emulator.mode
    return b"" if is_set == at_first else b"\x1b[?%d%s" % (number, b"h" if is_set else b"l")


def _rows(emulator: _Emulator, buffer: Any) -> Iterator[bytes]:
    blank = emulator.default_char
    for y in sorted(y for y in buffer if y < emulator.lines):
        cells = [buffer[y][x] for x in range(emulator.columns)]
        while cells and cells[-1] == blank:
            cells.pop()
        if not cells:
            continue
        line = [b"\x1b[%d;1H" % (y + 1)]
        before = blank
        for cell in cells:
            if cell[1:] != before[1:]:
                line.append(_graphics(cell))
                before = cell
            line.append(cell.data.encode("utf-8", "replace"))
        yield b"".join([*line, b"\x1b[m"])


def _graphics(cell: Any) -> bytes:
    codes = [0, *(code for name, code in _ATTRIBUTES if getattr(cell, name))]
    for color, names, extended in ((cell.fg, _FOREGROUND, 38), (cell.bg, _BACKGROUND, 48)):
        if color in names:
            if color != "default":
                codes.append(names[color])
        else:
            codes += [extended, 2, *bytes.fromhex(color)]
    return b"\x1b[%sm" % ";".join(map(str, codes)).encode()
