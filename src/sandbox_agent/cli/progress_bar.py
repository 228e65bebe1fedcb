"""How far a long command is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Final, Self

import click

__all__ = ["Bar"]

# Between two lines where there is no terminal, in seconds.
_LINES_EVERY: Final = 5.0
_DRAWN_EVERY: Final = 0.1


class Bar:
    """Shows progress on standard error.

    Args:
        label: what goes on.
        length: how much there is; None where that isn't known.
    """

    def __init__(self, label: str, length: int | None) -> None:
        self._label = label
        self._length = length
        self._bar: Any = None
        self._began = self._told = time.monotonic()
        self._drawn = 0.0
        self._position = 0

    def __enter__(self) -> Self:
        """Draw it, empty."""
        if sys.stderr.isatty() and self._length:
            self._bar = click.progressbar(length=self._length, label=self._label, file=sys.stderr)
            self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End its line."""
        if self._bar is not None:
            if error is None:
                self._bar.update(max(0, (self._length or 0) - self._position))
            self._bar.__exit__(kind, error, trace)

    def reach(self, position: int, said: str) -> None:
        """Show a position; ``said`` are the counts."""
        now = time.monotonic()
        if self._bar is not None:
            if now - self._drawn >= _DRAWN_EVERY:
                self._drawn = now
                self._bar.update(position - self._position)
                self._position = position
        elif now - self._told >= _LINES_EVERY:
            self._told = now
            share = f"{100 * position // self._length:>3} %  " if self._length else ""
            click.echo(f"{self._label}: {share}{said}, {now - self._began:.0f} s", err=True)
