"""Output for users: streamed text, tables, progress, and files that appear only when they are complete."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Literal, Protocol, Self

import click

from sandbox_agent.errors import PersistError

Style = Literal["dim", "bold", "green", "red", "yellow", "cyan"]

# An agent's output must not control the terminal: no control characters but these pass.
_ALLOWED = {"\n", "\t"}
# These reorder text: a permission request could show another command than the one that it is for.
_REORDERING = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))
_STRIPPED = {code: None for code in (*range(32), *range(127, 160), *_REORDERING) if chr(code) not in _ALLOWED}


def printable(text: str) -> str:
    """Return the text without control characters other than newline and tab."""
    return text.translate(_STRIPPED)


def one_line(text: str) -> str:
    """Return the text in one line."""
    return " ".join(text.split())


def echo_document(document: bytes) -> None:
    """Write a document to stdout, and a newline if it has none; on a terminal without control characters."""
    if sys.stdout.isatty():
        document = printable(document.decode("utf-8", "replace")).encode()
    click.echo(document, nl=not document.endswith(b"\n"))


def echo_json(document: object) -> None:
    """Write a value as one line of JSON to stdout."""
    import msgspec

    echo_document(msgspec.json.encode(document))


# What the SDK calls its arguments, and the options of the command.
_OPTIONS: Final = (
    ("pass token=…", "pass --token TOKEN, or set SANDBOX_AGENT_TOKEN"),
    ("use that address as base_url", "use that address as --endpoint"),
    ("base_url must be", "--endpoint must be"),
)


def name_options(message: str) -> str:
    """Return an SDK's error message with the names of the command's options."""
    for argument, option in _OPTIONS:
        message = message.replace(argument, option)
    return message


class Stream(Protocol):
    """What a screen writes to, such as ``sys.stdout``."""

    def write(self, text: str, /) -> object:
        """Write a text."""

    def flush(self) -> object:
        """Show what was written."""

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        ...


class Region(Protocol):
    """What is drawn below the last line of a terminal."""

    def hide(self) -> None:
        """Erase it, so that something can be written."""


class Screen:
    """Writes streamed text, and whole lines between the pieces.

    Args:
        text: The stream for the agent's text.
        notes: The stream for notes. May be the same.

    Attributes:
        region: Hidden before anything is written.
    """

    def __init__(self, text: Stream, notes: Stream) -> None:
        self.region: Region | None = None
        self._text = text
        self._notes = notes
        self._colors = {stream: supports_colors(stream) for stream in (text, notes)}
        # The stream whose last line is incomplete.
        self._open: Stream | None = None

    def write_text(self, text: str) -> None:
        """Write a piece of the agent's text."""
        self._write(self._text, text, None)

    def write_thought(self, text: str) -> None:
        """Write a piece of the agent's thoughts."""
        self._write(self._notes, text, "dim")

    def note(self, line: str, style: Style | None = None) -> None:
        """Write a line about what happens."""
        self.end_line()
        self._write(self._notes, line + "\n", style)

    def ask(self, question: str) -> None:
        """Write a question. The user types the answer on the same line."""
        self.end_line()
        self._write(self._notes, question, "yellow")
        self._open = None

    def end_line(self) -> None:
        """End the incomplete line, if any."""
        if self._open is not None:
            if self.region is not None:
                self.region.hide()
            self._open.write("\n")
            self._open.flush()
            self._open = None

    def _write(self, stream: Stream, text: str, style: Style | None) -> None:
        if not text:
            return
        if self.region is not None:
            self.region.hide()
        if self._open is not None and self._open is not stream:
            self.end_line()
        shown = printable(text) if stream.isatty() else text
        stream.write(_styled(shown, style) if style is not None and self._colors[stream] else shown)
        stream.flush()
        self._open = None if text.endswith("\n") else stream


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: int | None = None) -> None:
    """Print a table: by rich on a terminal where rich is installed, otherwise as plain aligned columns.

    Args:
        header: The column titles.
        rows: The cells of each row.
        right: The index of a column to align right.
    """
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    if sys.stdout.isatty() and _print_rich_table(cells[0], cells[1:], right):
        return
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = [
            cell.rjust(width) if index == right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(padded).rstrip())


def _print_rich_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: int | None) -> bool:
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for index, title in enumerate(header):
        table.add_column(title, justify="right" if index == right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    Console(color_system="auto" if supports_colors(sys.stdout) else None).print(table)
    return True


def supports_colors(stream: Stream) -> bool:
    """Return whether a stream is a terminal that may be colored."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _styled(text: str, style: Style) -> str:
    if style in ("dim", "bold"):
        return click.style(text, dim=style == "dim" or None, bold=style == "bold" or None)
    return click.style(text, fg=style)


# Seconds between two updates on a terminal, and between two lines elsewhere.
_TERMINAL_INTERVAL: Final = 0.1
_LINE_INTERVAL: Final = 5.0


class ProgressBar:
    """Shows progress.

    Args:
        label: The name of the work.
        length: The final position, or None if it is not known.
    """

    def __init__(self, label: str, length: int | None = None) -> None:
        self._label = label
        self._length = length
        self._terminal = sys.stderr.isatty()
        self._bar: Any = None
        self._start = self._shown_at = time.monotonic()
        self._position = 0

    def __enter__(self) -> Self:
        """Draw the empty bar."""
        if self._terminal and self._length:
            self._bar = click.progressbar(length=self._length, label=self._label, file=sys.stderr)
            self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the bar, or clear the changing line."""
        if self._bar is not None:
            if error is None:
                self._bar.update(max(0, (self._length or 0) - self._position))
            self._bar.__exit__(kind, error, trace)
        elif self._terminal:
            click.echo("\r\x1b[K", err=True, nl=False)

    def update(self, position: int, counts: str) -> None:
        """Show a position. Without a bar, the counts are shown too."""
        now = time.monotonic()
        if now - self._shown_at < (_TERMINAL_INTERVAL if self._terminal else _LINE_INTERVAL):
            return
        self._shown_at = now
        if self._bar is not None:
            self._bar.update(position - self._position)
            self._position = position
            return
        share = f"{100 * position // self._length:>3} %  " if self._length else ""
        line = f"{self._label}: {share}{counts}, {now - self._start:.0f} s"
        click.echo(f"\r\x1b[K{line}" if self._terminal else line, err=True, nl=not self._terminal)


@contextlib.contextmanager
def open_output(path: Path | None) -> Generator[BinaryIO]:
    """Open a file for writing, or standard output if the path is None.

    The data goes to a temporary file in the same folder, which replaces the file at the end.

    Raises:
        PersistError: The file cannot be written.
    """
    if path is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    partial = path.with_name(path.name + ".partial")
    try:
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(partial.unlink, missing_ok=True)
            with partial.open("wb") as file:
                yield file
            partial.replace(path)
    except OSError as error:
        raise PersistError(f"'{path}' can't be written: {error.strerror}") from error
