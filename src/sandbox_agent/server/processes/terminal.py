"""A terminal of a process: its output for any number of viewers, none of whom misses a byte.

Output is read only while there is room for it at the slowest viewer, so a process that prints faster than its
viewers read waits. Without viewers, it does not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

DEFAULT_COLS: Final = 80
DEFAULT_ROWS: Final = 24
# How far the slowest viewer may be behind before no more is read.
BEHIND_BYTES: Final = 256 * 1024
# A viewer receives output in pieces of about this size.
PIECE_BYTES: Final = 64 * 1024


class TerminalClosedError(Exception):
    """The server is shutting down: viewers are disconnected before the processes end."""


class Viewer:
    """What one viewer has not received yet.

    Attributes:
        behind: how many bytes that is.
    """

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self._parts: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self.behind: int = 0

    def add(self, data: bytes) -> None:
        """Add output."""
        self._parts.append(data)
        self.behind += len(data)
        self.wake()

    def add_first(self, data: bytes) -> None:
        """Add what comes before all output."""
        self._parts.appendleft(data)
        self.behind += len(data)

    def wake(self) -> None:
        """Let read() look for what has changed."""
        self._changed.set()

    async def read(self) -> bytes:
        """Wait for output and return it; empty when the terminal has ended and all of it was returned.

        Raises:
            TerminalClosedError: the server is shutting down.
        """
        while not self._parts or self._terminal.closed:
            if self._terminal.closed:
                raise TerminalClosedError
            if self._terminal.ended:
                return b""
            self._changed.clear()
            await self._changed.wait()
        parts = [self._parts.popleft()]
        size = len(parts[0])
        while self._parts and size + len(self._parts[0]) <= PIECE_BYTES:
            parts.append(self._parts.popleft())
            size += len(parts[-1])
        self.behind -= size
        self._terminal.check_room()
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Terminal:
    """The terminal of one process, which stays the same when the process is restarted.

    Attributes:
        cols: the width in characters.
        rows: the height.
        ended: whether there will be no more output.
        closed: whether viewers are disconnected, because the server is shutting down.
        on_resize: called with the new width and height; the running child sets it.
    """

    def __init__(self, cols: int = DEFAULT_COLS, rows: int = DEFAULT_ROWS) -> None:
        from sandbox_agent.server.processes.screen import Screen  # its library takes long to import

        self.cols: int = cols
        self.rows: int = rows
        self.ended: bool = False
        self.closed: bool = False
        self.on_resize: Callable[[int, int], None] | None = None
        self._screen = Screen(cols, rows)
        self._viewers: set[Viewer] = set()
        self._room = asyncio.Event()
        self._room.set()

    def feed(self, data: bytes) -> bool:
        """Add output, and return whether there is room for more."""
        self._screen.feed(data)
        for viewer in self._viewers:
            viewer.add(data)
        self.check_room()
        return self._room.is_set()

    async def wait_room(self) -> None:
        """Wait until there is room for more output."""
        await self._room.wait()

    def check_room(self) -> None:
        """Look whether the slowest viewer is too far behind."""
        if any(viewer.behind >= BEHIND_BYTES for viewer in self._viewers):
            self._room.clear()
        else:
            self._room.set()

    def resize(self, cols: int, rows: int) -> None:
        """Change the size, for the process and all viewers."""
        self.cols = cols
        self.rows = rows
        self._screen.resize(cols, rows)
        if self.on_resize is not None:
            self.on_resize(cols, rows)

    def end(self) -> None:
        """There will be no more output: viewers receive what there is, and then the end."""
        self.ended = True
        self._screen.close()
        self._wake()

    def close(self) -> None:
        """Disconnect the viewers; also those that join later."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        for viewer in self._viewers:
            viewer.wake()

    @asynccontextmanager
    async def join(self) -> AsyncGenerator[Viewer]:
        """Receive the output as a viewer.

        The first viewer receives all output since the start, if there was little. The process may have asked
        the terminal something there, which the first viewer's terminal then answers. Other viewers receive
        output that draws the screen. Output after that is received as it is, without a gap.
        """
        viewer = Viewer(self)
        try:
            async with self._screen.lock:
                is_first = self._screen.is_whole
                self._viewers.add(viewer)
                if is_first:
                    self._screen.is_whole = False
                    shown = self._screen.raw
                else:
                    shown = await self._screen.draw()
            if shown:
                viewer.add_first(shown)
            yield viewer
        finally:
            self._viewers.discard(viewer)
            self.check_room()
