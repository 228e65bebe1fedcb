"""Store-allocated indexes on top of a driver's five methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import anyio

from sandbox_agent.wire.records import ListPage, SessionEvent

# Sessions whose numbering is remembered; one that is forgotten is read again.
_REMEMBERED = 64


class EventStore(Protocol):
    """The two methods that numbering needs."""

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        """Return a page of a session's events by (event_index, id), oldest first."""
        ...

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert the event as it is, or replace the one of that id."""
        ...


class Numbering:
    """Numbers one session's events, and knows which ids are stored.

    It reads the whole session once, and again after a failure, when it can't know what was stored. It
    assumes that no other writer appends to the session.
    """

    def __init__(self) -> None:
        self.lock: anyio.Lock = anyio.Lock()
        self._indexes: dict[str, int] | None = None
        self._last = 0

    async def append(self, store: EventStore, session_id: str, events: Sequence[SessionEvent]) -> None:
        """Set each event's index and insert it, one at a time; an id that is stored keeps its index."""
        async with self.lock:
            indexes = self._indexes or await self._read(store, session_id)
            # Until all of them are stored, what is stored is not known.
            self._indexes = None
            for event in events:
                if event.id in indexes:
                    event.event_index = indexes[event.id]
                    continue
                event.event_index = self._last + 1
                await store.insert_event(session_id, event)
                self._last = indexes[event.id] = event.event_index
            self._indexes = indexes

    async def _read(self, store: EventStore, session_id: str) -> dict[str, int]:
        indexes: dict[str, int] = {}
        cursor: str | None = None
        while True:
            page = await store.list_events(session_id, cursor=cursor)
            indexes.update((event.id, event.event_index) for event in page.items)
            cursor = page.next_cursor
            if cursor is None:
                self._last = max(indexes.values(), default=0)
                return indexes


class Numberings:
    """The numbering of each session, for the sessions used last."""

    def __init__(self) -> None:
        self._by_session: dict[str, Numbering] = {}

    def of(self, session_id: str) -> Numbering:
        """Return the session's numbering; one that is in use is never forgotten."""
        numbering = self._by_session.pop(session_id, None) or Numbering()
        self._by_session[session_id] = numbering
        if len(self._by_session) > _REMEMBERED:
            idle = next((key for key, value in self._by_session.items() if not value.lock.locked()), None)
            if idle not in (None, session_id):
                del self._by_session[idle]
        return numbering

    def forget(self, session_id: str) -> None:
        """Read the session again before it is appended to."""
        self._by_session.pop(session_id, None)
