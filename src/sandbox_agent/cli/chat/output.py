"""Output above the line that the user types on."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence

from click import unstyle
from prompt_toolkit.application.run_in_terminal import in_terminal
from prompt_toolkit.utils import get_cwidth

# Of an incomplete line, this many lines of the terminal are shown.
_SHOWN_LINES = 6


class PromptOutput:
    """A stream whose complete lines are written above the prompt. The prompt shows the incomplete one.

    Args:
        on_change: called when the incomplete line has changed.
    """

    def __init__(self, on_change: Callable[[], object]) -> None:
        self._on_change = on_change
        self._lines: list[str] = []
        self._ready = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()
        self.partial: str = ""

    def write(self, text: str, /) -> object:
        """Add a text."""
        before, newline, after = (self.partial + text).rpartition("\n")
        self.partial = after
        if newline:
            self._lines.append(before + newline)
            self._written.clear()
            self._ready.set()
        self._on_change()
        return None

    def flush(self) -> object:
        """Do nothing: complete lines are written by ``run``."""
        return None

    def isatty(self) -> bool:
        """Return True."""
        return True

    async def run(self) -> None:
        """Write complete lines until the task is cancelled."""
        try:
            while True:
                await self._ready.wait()
                async with in_terminal():
                    self._write_lines()
                self._written.set()
        finally:
            self._written.set()  # nothing may wait for a writer that has ended

    async def drain(self) -> None:
        """Wait until all complete lines are written."""
        await self._written.wait()

    def close(self) -> None:
        """Write what is left, without a prompt."""
        if self.partial:
            self.write("\n")
        self._write_lines()

    def _write_lines(self) -> None:
        lines, self._lines = self._lines, []
        self._ready.clear()
        sys.stdout.write("".join(lines))
        sys.stdout.flush()


class LiveLines:
    """The plan and the running tools, as lines that the prompt shows.

    Args:
        on_change: called when they have changed.
    """

    def __init__(self, on_change: Callable[[], object]) -> None:
        self._on_change = on_change
        self._plan: Sequence[str] = ()
        self._tools: dict[str, str] = {}

    def show_plan(self, entries: Sequence[str]) -> None:
        """Show the entries of the plan that are not completed."""
        self._plan = entries
        self._on_change()

    def show_tool(self, key: str, title: str | None) -> None:
        """Show a running tool; None if it has ended."""
        if title is None:
            self._tools.pop(key, None)
        else:
            self._tools[key] = title
        self._on_change()

    def clear(self) -> None:
        """Show nothing: the turn has ended."""
        self._plan, self._tools = (), {}
        self._on_change()

    def lines(self) -> list[str]:
        """Return the lines."""
        return [
            *(f"plan   {entry}" for entry in self._plan),
            *(f"tool   {each}" for each in self._tools.values()),
        ]


def wrap(text: str, columns: int) -> list[str]:
    """Return the last lines of a text on a terminal with that many columns."""
    lines, width = [""], 0
    for character in unstyle(text)[-_SHOWN_LINES * columns :]:
        size = get_cwidth(character)
        if width + size > columns:
            lines.append("")
            width = 0
        lines[-1] += character
        width += size
    return lines[-_SHOWN_LINES:]
