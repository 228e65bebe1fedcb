"""Progress of a long command on standard error: a bar or one changing line on a terminal, otherwise lines."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Final, Self

import click

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
