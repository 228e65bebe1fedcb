"""A reader's place in a session's events: stored history first, then live, gapless and once each."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.wire.records import SessionEvent

__all__ = ["NOTICE_INDEX", "Viewer"]

# A reader that is further behind gives its backlog up and reads from the store instead.
MAX_BACKLOG = 16_384
MAX_BACKLOG_BYTES = 16 * 1024 * 1024
PAGE = 500
# What is told to readers and is not part of the history (a failing store) has this index.
NOTICE_INDEX = 0


class Viewer:
    """An async iterator of events with ``event_index`` over ``position``.

    Args:
        driver: where the history is.
        session_id: whose.
        position: the index after which it begins.
        live: the history up to ``position`` is all there is: begin with what is pushed.
    """

    def __init__(self, driver: SessionPersistDriver, session_id: str, position: int, *, live: bool) -> None:
        self._driver = driver
        self._session_id = session_id
        self._position = position
        self._unplaced = live
        self._behind = not live
        self._fell_behind = False
        self._cursor: str | None = None
        self._backlog: deque[SessionEvent] = deque()
        self._backlog_bytes = 0
        self._page: deque[SessionEvent] = deque()
        self._wakeup = asyncio.Event()
        self._closed = False

    def push(self, events: Sequence[SessionEvent]) -> None:
        """Give it events that are stored, or a notice."""
        if self._unplaced and events[0].event_index != NOTICE_INDEX:
            # It began live: where, the first event says.
            self._unplaced = False
            self._position = events[0].event_index - 1
        if not self._fell_behind:
            self._backlog.extend(events)
            self._backlog_bytes += sum(len(event.payload_json) for event in events)
            if len(self._backlog) > MAX_BACKLOG or self._backlog_bytes > MAX_BACKLOG_BYTES:
                self._backlog.clear()
                self._backlog_bytes = 0
                self._fell_behind = self._behind = True
                self._cursor = None
        self._wakeup.set()

    def close(self) -> None:
        """End the iteration once what was pushed is read."""
        self._closed = True
        self._wakeup.set()

    def __aiter__(self) -> Viewer:
        return self

    async def __anext__(self) -> SessionEvent:
        """Return the next event."""
        while True:
            if self._page:
                event = self._page.popleft()
            elif self._behind:
                await self._read_page()
                continue
            elif self._backlog:
                event = self._backlog.popleft()
                self._backlog_bytes -= len(event.payload_json)
            elif self._closed:
                raise StopAsyncIteration
            else:
                self._wakeup.clear()
                await self._wakeup.wait()
                continue
            if event.event_index == NOTICE_INDEX:
                return event
            if event.event_index > self._position:
                self._position = event.event_index
                return event

    async def _read_page(self) -> None:
        # From here on pushes are kept again: the store holds all that was pushed before.
        caught_up_from_overflow, self._fell_behind = self._fell_behind, False
        cursor = self._cursor
        if cursor is None and self._position > 0:
            cursor = self._driver.cursor_after(self._position)
        page = await self._driver.list_events(self._session_id, limit=PAGE, cursor=cursor)
        fresh = [event for event in page.items if event.event_index > self._position]
        if caught_up_from_overflow and fresh and fresh[0].event_index != self._position + 1:
            raise SandboxAgentError(
                f"events {self._position + 1} to {fresh[0].event_index - 1} of session "
                f"'{self._session_id}' are no longer in the store: read faster, or keep more"
            )
        self._page.extend(fresh)
        self._cursor = page.next_cursor
        if page.next_cursor is None and not self._fell_behind:
            self._behind = False
