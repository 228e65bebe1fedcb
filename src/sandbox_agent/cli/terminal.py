"""Two streams for people: what the agent says on one, what it does on the other."""

from __future__ import annotations

import os
from typing import Literal, TextIO

import click

__all__ = ["Screen", "Style", "printable"]

Style = Literal["dim", "bold", "green", "red", "yellow", "cyan"]

# What an agent says must not steer the terminal: of the control characters only these pass.
_ALLOWED = {"\n", "\t"}
_STRIPPED = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in _ALLOWED}


def printable(text: str) -> str:
    """Return the text without control characters other than newline and tab."""
    return text.translate(_STRIPPED)


class Screen:
    """Writes text as it comes, and lines between it.

    Args:
        text: where the agent's words go.
        notes: where lines about what it does go; may be the same stream.
    """

    def __init__(self, text: TextIO, notes: TextIO) -> None:
        self._text = text
        self._notes = notes
        self._colours = {stream: _takes_colours(stream) for stream in (text, notes)}
        # The stream that is in the middle of a line.
        self._open: TextIO | None = None

    def say(self, text: str) -> None:
        """Write a piece of the agent's words."""
        self._write(self._text, text, None)

    def think(self, text: str) -> None:
        """Write a piece of its thoughts."""
        self._write(self._notes, text, "dim")

    def note(self, line: str, style: Style | None = None) -> None:
        """Write a line about what happens."""
        self.end_line()
        self._write(self._notes, line + "\n", style)

    def ask(self, question: str) -> None:
        """Write a question; its answer is typed behind it."""
        self.end_line()
        self._write(self._notes, question, "yellow")
        self._open = None

    def end_line(self) -> None:
        """End the line that is open, where one is."""
        if self._open is not None:
            self._open.write("\n")
            self._open.flush()
            self._open = None

    def _write(self, stream: TextIO, text: str, style: Style | None) -> None:
        if not text:
            return
        if self._open is not None and self._open is not stream:
            self.end_line()
        shown = printable(text) if stream.isatty() else text
        stream.write(_styled(shown, style) if style is not None and self._colours[stream] else shown)
        stream.flush()
        self._open = None if text.endswith("\n") else stream


def _takes_colours(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _styled(text: str, style: Style) -> str:
    if style in ("dim", "bold"):
        return click.style(text, dim=style == "dim" or None, bold=style == "bold" or None)
    return click.style(text, fg=style)
