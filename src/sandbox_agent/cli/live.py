"""The plan and the running tools of a turn, drawn by rich below the output and changed in place."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sandbox_agent.cli.output import Screen, printable, supports_colors

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

_PER_SECOND = 8


class LiveRegion:
    """The region. It is hidden while a line of output is incomplete.

    Args:
        console: rich's console of the terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._plan: Sequence[str] = ()
        self._tools: dict[str, tuple[str, float]] = {}

    def show_plan(self, entries: Sequence[str]) -> None:
        """Show the entries of the plan that are not completed."""
        self._plan = entries
        self._show()

    def show_tool(self, key: str, title: str | None) -> None:
        """Show a running tool; None if it has ended."""
        if title is None:
            self._tools.pop(key, None)
        else:
            self._tools[key] = (title, self._tools[key][1] if key in self._tools else time.monotonic())
        self._show()

    def clear(self) -> None:
        """Show nothing: the turn has ended."""
        self._plan, self._tools = (), {}
        self.hide()

    def hide(self) -> None:
        """Erase the region, so that something can be written."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self) -> None:
        from rich.live import Live

        if not self._plan and not self._tools:
            self.hide()
        elif self._live is None:
            self._live = Live(
                get_renderable=self._render,
                console=self._console,
                refresh_per_second=_PER_SECOND,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start(refresh=True)
        else:
            self._live.refresh()

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        now = time.monotonic()
        # Other threads draw while the loop's changes these.
        tools = [f"tool   {title}  {now - start:.0f} s" for title, start in list(self._tools.values())]
        lines = [*(f"plan   {entry}" for entry in self._plan), *tools]
        return Group(
            *(Text(printable(line), style="cyan", no_wrap=True, overflow="ellipsis") for line in lines)
        )


def live_region(screen: Screen) -> LiveRegion | None:
    """Add a region to the screen of a terminal; return None elsewhere, or if rich is not installed."""
    if not (supports_colors(sys.stdout) and supports_colors(sys.stderr)):
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    region = screen.region = LiveRegion(Console(stderr=True))
    return region
