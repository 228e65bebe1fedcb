"""An iterator over a session's events: stored history first, then live events, without gaps or repeats."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.wire.records import SessionEvent

# A viewer with a larger backlog drops it and reads from the store instead.
MAX_BACKLOG = 16_384
MAX_BACKLOG_BYTES = 16 * 1024 * 1024
PAGE = 500
# Events that are not part of the history, such as the notice of a failing store, have this index.
NOTICE_INDEX = 0


class Viewer:
    """An async iterator over events with an index above ``position``.

    Args:
        driver: stores the history.
        session_id: the session.
        position: the index after which the iteration begins.
        live: skip the history: begin with the first event that is pushed.
        check: raises if the caller must not iterate.
    """

    def __init__(
        self,
        driver: SessionPersistDriver,
        session_id: str,
        position: int,
        *,
        live: bool,
        check: Callable[[], None] | None = None,
    ) -> None:
        self._check = check
        self._driver = driver
        self._session_id = session_id
        self._position = position
        self._unplaced = live
        self._behind = not live
        self._overflowed = False
        self._cursor: str | None = None
        self._backlog: deque[SessionEvent] = deque()
        self._backlog_bytes = 0
        self._page: deque[SessionEvent] = deque()
        self._wakeup = asyncio.Event()
        self._closed = False
        self._checked = 0

    def push(self, events: Sequence[SessionEvent]) -> None:
        """Add events that are stored, or a notice."""
        if self._unplaced and events[0].event_index != NOTICE_INDEX:
            # The first event of a live viewer determines its position.
            self._unplaced = False
            self._position = events[0].event_index - 1
        if not self._overflowed:
            self._backlog.extend(events)
            self._backlog_bytes += sum(len(event.payload_json) for event in events)
            if len(self._backlog) > MAX_BACKLOG or self._backlog_bytes > MAX_BACKLOG_BYTES:
                self._backlog.clear()
                self._backlog_bytes = 0
                self._overflowed = self._behind = True
                self._cursor = None
        self._wakeup.set()

    def close(self) -> None:
        """End the iteration after the events that were pushed."""
        self._closed = True
        self._wakeup.set()

    def __aiter__(self) -> Viewer:
        return self

    async def __anext__(self) -> SessionEvent:
        """Return the next event.

        Raises:
            SandboxAgentError: the caller is in another event loop or process than the client.
        """
        if self._check is not None:
            self._check()
        while True:
            if self._page:
                event = self._page.popleft()
            elif self._behind:
                await self._read_page()
                continue
            elif self._backlog:
                event = self._backlog[0]
                if event.event_index > max(self._position, self._checked) + 1 and not self._unplaced:
                    # Another process stored events before this one, which were not pushed.
                    self._checked, self._behind, self._cursor = event.event_index - 1, True, None
                    continue
                self._backlog.popleft()
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
        # Pushed events are kept again from here on: the store has everything that was pushed before.
        after_overflow, self._overflowed = self._overflowed, False
        cursor = self._cursor
        if cursor is None and self._position > 0:
            cursor = self._driver.cursor_after(self._position)
        page = await self._driver.list_events(self._session_id, limit=PAGE, cursor=cursor)
        new = [event for event in page.items if event.event_index > self._position]
        if after_overflow and new and new[0].event_index != self._position + 1:
            raise SandboxAgentError(
                f"events {self._position + 1} to {new[0].event_index - 1} of session "
                f"'{self._session_id}' are no longer in the store: read faster, or keep more events"
            )
        self._page.extend(new)
        self._cursor = page.next_cursor
        if page.next_cursor is None and not self._overflowed:
            self._behind = False
