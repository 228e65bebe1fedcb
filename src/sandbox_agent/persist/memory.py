"""The in-memory driver: bounded, for local use and tests. It allocates each ``event_index`` itself."""

from __future__ import annotations

import copy
from bisect import bisect_left, insort
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from itertools import islice
from typing import ClassVar, Final

from sandbox_agent.errors import SessionFencedError
from sandbox_agent.persist.base import (
    UNFENCED,
    Capability,
    NotLastError,
    check_session,
    slice_page,
    taken_id_error,
    taken_index_error,
)
from sandbox_agent.persist.follow import FollowedDriver, Mark
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

_Position = tuple[int, str]

_MAX_SESSIONS: Final = 1_024
_MAX_EVENTS_PER_SESSION: Final = 500


class InMemorySessionPersistDriver(FollowedDriver):
    """Keeps the newest sessions, and the newest events of each, in this object.

    Records and events are copied in and out. Beyond the limits, the oldest are dropped: sessions by
    (created_at, id) with their events, events by (event_index, id). Indexes continue after the last stored
    event, even if it was dropped.

    Args:
        max_sessions: how many sessions are kept.
        max_events_per_session: how many events of each session are kept.

    Raises:
        ValueError: a limit is below 1.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability)
    drops_oldest: ClassVar[bool] = True
    appends_head: ClassVar[bool] = True

    def __init__(
        self,
        *,
        max_sessions: int = _MAX_SESSIONS,
        max_events_per_session: int = _MAX_EVENTS_PER_SESSION,
    ) -> None:
        if max_sessions < 1 or max_events_per_session < 1:
            raise ValueError("max_sessions and max_events_per_session must be at least 1")
        self._max_sessions = max_sessions
        self._max_events = max_events_per_session
        self._sessions: dict[str, SessionRecord] = {}
        self._order: list[_Position] = []
        self._histories: dict[str, _History] = {}
        # The session of each event id: ids are unique within the store.
        self._owners: dict[str, str] = {}
        # One counter for all sessions, so that a forgotten generation is never used again.
        self._generations: dict[str, int] = {}
        self._last_generation = UNFENCED
        super().__init__()

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        return copy.deepcopy(self._sessions.get(session_id))

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        page = slice_page(self._order, _itself, limit, cursor)
        return ListPage([copy.deepcopy(self._sessions[at[1]]) for at in page.items], page.next_cursor)

    async def update_session(self, session: SessionRecord, /) -> None:
        """Insert the record, or replace the one with its id. Drops the oldest session beyond the limit."""
        known = self._sessions.get(session.id)
        if known is not None:
            _remove(self._order, (known.created_at, known.id))
        self._sessions[session.id] = copy.deepcopy(session)
        insort(self._order, (session.created_at, session.id))
        while len(self._sessions) > self._max_sessions:
            self._drop(self._order[0][1])

    async def claim_session(self, session_id: str, /) -> int:
        return self._raise_generation(session_id)

    async def save_session(self, session: SessionRecord, /, *, generation: int = UNFENCED) -> None:
        self._check_generation(session.id, generation)
        await self.update_session(session)

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        history = self._histories.get(session_id, _EMPTY)
        page = slice_page(history.order, _itself, limit, cursor)
        return ListPage([history.events[at[1]].copy() for at in page.items], page.next_cursor)

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert a copy of the event, or replace the one with its id.

        Raises:
            PersistError: another event of the session has its index.
        """
        check_session(session_id, event)
        self._replace(event.copy())
        self._following.stored(session_id, [event])

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        """Append copies of the events and set their ``event_index``: all of them or none.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
            PersistError: another session has an event with one of the ids.
        """
        self._check_generation(session_id, generation)
        for event in events:
            check_session(session_id, event)
            self._check_owner(event)
        history = self._history(session_id)
        indexes: dict[str, int] = {}
        fresh: list[SessionEvent] = []
        for event in events:
            stored = history.events.get(event.id)
            if stored is not None:
                indexes[event.id] = stored.event_index
            elif event.id not in indexes:
                indexes[event.id] = event.event_index = history.last_index + 1
                self._store(event.copy())
                fresh.append(event)
        for event in events:
            event.event_index = indexes[event.id]
        self._following.stored(session_id, fresh)

    async def append_sealed(
        self,
        session_id: str,
        events: Sequence[SessionEvent],
        head: SessionEvent,
        /,
        *,
        after: int,
        generation: int = UNFENCED,
    ) -> None:
        self._check_generation(session_id, generation)
        history = self._histories.get(session_id, _EMPTY)
        owners = self._owners
        for event in events:
            check_session(session_id, event)
            if event.id in owners:
                raise self._known_error(session_id, events)
        if history.last_index != after:
            raise NotLastError(session_id)
        for event in events:
            self._store(event)
        self._following.stored(session_id, events)
        self._replace(head)

    async def last_event_index(self, session_id: str, /) -> int:
        """Return the highest event index of the session, including dropped events."""
        return self._histories.get(session_id, _EMPTY).last_index

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        history = self._histories.get(session_id, _EMPTY)
        start = max(0, len(history.order) - max(0, limit))
        return [history.events[row_id].copy() for _, row_id in islice(history.order, start, None)]

    async def delete_session(self, session_id: str, /) -> None:
        """Drop the record and its events. Its writer is refused from then on."""
        self._drop(session_id)
        if session_id in self._generations:
            self._raise_generation(session_id)
        self._following.deleted(session_id)

    def follow_events(self, session_id: str, /, *, after: int = 0) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events after an index, then over new events, each once and in order.

        It ends when the driver is closed or the session is deleted. A follower misses events that are
        dropped before it reads them (at its start, or when it is 10,000 events behind).
        """
        return super().follow_events(session_id, after=after)

    async def marks(self, session_ids: Collection[str], /) -> Mapping[str, Mark]:
        return {one: Mark(self._histories.get(one, _EMPTY).last_index) for one in session_ids}

    def _check_generation(self, session_id: str, generation: int) -> None:
        if generation != UNFENCED and generation < self._generations.get(session_id, UNFENCED):
            raise SessionFencedError(session_id, generation)

    def _check_owner(self, event: SessionEvent) -> None:
        owner = self._owners.get(event.id, event.session_id)
        if owner != event.session_id:
            raise taken_id_error(event.id, event.session_id, owner)

    def _known_error(self, session_id: str, events: Sequence[SessionEvent]) -> NotLastError:
        """Return the error for events of which some are stored; raise that of an id of another session."""
        for event in events:
            self._check_owner(event)
        history = self._histories.get(session_id, _EMPTY)
        known = [history.events[one.id] for one in events if one.id in history.events]
        return NotLastError(session_id, {one.id: one.event_index for one in known})

    def _raise_generation(self, session_id: str) -> int:
        self._last_generation += 1
        # Keep the order of the claims.
        self._generations.pop(session_id, None)
        self._generations[session_id] = self._last_generation
        if len(self._generations) > 4 * self._max_sessions:
            del self._generations[next(iter(self._generations))]
        return self._last_generation

    def _drop(self, session_id: str) -> None:
        record = self._sessions.pop(session_id, None)
        if record is not None:
            _remove(self._order, (record.created_at, record.id))
        history = self._histories.pop(session_id, None)
        if history is not None:
            for event_id in history.events:
                del self._owners[event_id]

    def _history(self, session_id: str) -> _History:
        history = self._histories.get(session_id)
        if history is None:
            self._drop_orphan()
            history = self._histories[session_id] = _History()
        return history

    def _replace(self, event: SessionEvent) -> None:
        history = self._history(event.session_id)
        old = history.events.get(event.id)
        if old is not None and old.event_index == event.event_index:
            history.events[event.id] = event
        else:
            at = bisect_left(history.order, (event.event_index, ""))
            found = history.order[at] if at < len(history.order) else None
            if found is not None and found[0] == event.event_index and found[1] != event.id:
                raise taken_index_error(event)
            owner = self._owners.get(event.id)
            if owner is not None:
                self._histories[owner].remove(event.id)
            self._store(event)

    def _drop_orphan(self) -> None:
        """Limit the histories without a record: their session was dropped, but is still written."""
        if len(self._histories) < 2 * self._max_sessions:
            return
        orphan = next(session_id for session_id in self._histories if session_id not in self._sessions)
        for event_id in self._histories.pop(orphan).events:
            del self._owners[event_id]

    def _store(self, event: SessionEvent) -> None:
        history = self._history(event.session_id)
        history.add(event)
        self._owners[event.id] = event.session_id
        while len(history.order) > self._max_events:
            oldest = history.order[0][1]
            history.remove(oldest)
            del self._owners[oldest]


class _History:
    """A session's events, by id and in order."""

    __slots__ = ("events", "last_index", "order")

    def __init__(self) -> None:
        self.events: dict[str, SessionEvent] = {}
        self.order: list[_Position] = []
        self.last_index = 0

    def add(self, event: SessionEvent) -> None:
        self.events[event.id] = event
        insort(self.order, (event.event_index, event.id))
        self.last_index = max(self.last_index, event.event_index)

    def remove(self, event_id: str) -> None:
        event = self.events.pop(event_id)
        _remove(self.order, (event.event_index, event.id))


_EMPTY: Final = _History()


def _remove(order: list[_Position], position: _Position) -> None:
    del order[bisect_left(order, position)]


def _itself(position: _Position) -> _Position:
    return position
