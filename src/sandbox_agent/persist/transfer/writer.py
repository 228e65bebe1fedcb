"""A session's history into a store, with the indexes that it has: it goes on where the store ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Self

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import Capability, SessionPersistDriver
from sandbox_agent.wire.records import SessionEvent, SessionRecord

__all__ = ["Place", "SessionWriter"]


class Place(NamedTuple):
    """Where an event stands, and which it is."""

    event_index: int
    id: str


class SessionWriter:
    """Stores the events of one session in their order, each with its id and index.

    What the store has of it already is not stored again, so a transfer that was interrupted goes on, and
    two at once end up with one history: events are recognised by id, and an index is never given twice.

    Attributes:
        session_id: whose.
        last: the index up to which the store has the history; None where it has none.
        stored: how many events were stored.
        seen: how many events were given, those that were there already included.
        given: the last of them.
    """

    def __init__(self, target: SessionPersistDriver, session_id: str, newest: SessionEvent | None) -> None:
        self._target = target
        self.session_id: str = session_id
        # What the store had when this began: the event that the history given has to have, too.
        self._newest = newest
        self._met = newest is None
        self.last: int | None = None if newest is None else newest.event_index
        self.stored: int = 0
        self.seen: int = 0
        self.given: Place | None = None

    @classmethod
    async def open(cls, target: SessionPersistDriver, session_id: str, given: Place | None = None) -> Self:
        """Look how much of the session the store has.

        Args:
            target: the store.
            session_id: whose.
            given: what an earlier writer ended with, where this one is given what comes behind it.

        Raises:
            PersistError: the store failed.
        """
        tail = await target.tail_events(session_id, limit=1)
        writer = cls(target, session_id, tail[-1] if tail else None)
        if tail and given == (tail[-1].event_index, tail[-1].id):
            writer._met = True
        return writer

    @property
    def is_behind(self) -> bool:
        """Whether the history that was given ended before that of the store."""
        return not self._met

    async def put(self, events: Sequence[SessionEvent]) -> None:
        """Store the next events of the history; ascending by index.

        Raises:
            PersistError: the store has another history of that session, or failed.
        """
        if not events:
            return
        fresh = list(events)
        if self._newest is not None and not self._met:
            fresh = [event for event in events if event.event_index > self._newest.event_index]
            known = events[: len(events) - len(fresh)]
            if known and known[-1].event_index == self._newest.event_index:
                self._compare(_place(known[-1]), self._newest)
                self._met = True
            elif fresh:
                self._compare(_place(fresh[0]), self._newest)
        await self._store(fresh)
        self.seen += len(events)
        self.given = _place(events[-1])

    async def finish(self, record: SessionRecord | None) -> None:
        """Store the record, unless the store's history is longer than the one that was given.

        Raises:
            PersistError: the store has another history of that session, or failed.
        """
        if self._newest is not None and not self._met:
            await self._compare_end(self._newest)
        if record is None:
            return
        known = await self._target.get_session(record.id)
        if known is None or (known != record and not self.is_behind):
            await self._target.update_session(record)

    async def _store(self, events: list[SessionEvent]) -> None:
        start = 0
        while start < len(events):
            run = self._run(events[start:])
            if Capability.APPEND in self._target.capabilities and self._follows(run[0]):
                await self._append(run)
            else:
                # A history that doesn't begin at 1, or has a hole here; after it, it can be appended to.
                run = run[:1]
                await self._target.insert_event(self.session_id, run[0])
            self.last = run[-1].event_index
            self.stored += len(run)
            start += len(run)

    def _follows(self, event: SessionEvent) -> bool:
        return event.event_index == (self.last or 0) + 1 and (self.last is None or self.last >= 0)

    def _run(self, events: list[SessionEvent]) -> list[SessionEvent]:
        end = 1
        while end < len(events) and events[end].event_index == events[end - 1].event_index + 1:
            end += 1
        return events[:end]

    async def _append(self, events: list[SessionEvent]) -> None:
        copies = [event.copy() for event in events]
        await self._target.append_events(self.session_id, copies)
        for event, copy in zip(events, copies, strict=True):
            if copy.event_index != event.event_index:
                raise PersistError(
                    f"session '{self.session_id}' is written by somebody else in the store that it goes "
                    f"into: event '{event.id}' became number {copy.event_index} there and is "
                    f"{event.event_index} here; stop the writer, delete the session there and begin again",
                    session_id=self.session_id,
                )

    def _compare(self, here: Place, there: SessionEvent) -> None:
        if here != (there.event_index, there.id):
            raise PersistError(
                f"session '{self.session_id}' is in both stores with different histories: event "
                f"{there.event_index} is '{there.id}' in the store that it goes into, and here event "
                f"{here.event_index} is '{here.id}'; nothing of it was changed, delete the session in one of "
                "them",
                session_id=self.session_id,
            )

    async def _compare_end(self, newest: SessionEvent) -> None:
        given = self.given
        if given is None:
            return
        cursor = self._target.cursor_after(given.event_index - 1)
        while True:
            page = await self._target.list_events(self.session_id, limit=1 if cursor else None, cursor=cursor)
            for event in page.items:
                if event.event_index >= given.event_index:
                    self._compare(given, event)
                    return
            cursor = page.next_cursor
            if cursor is None:
                self._compare(given, newest)


def _place(event: SessionEvent) -> Place:
    return Place(event.event_index, event.id)
