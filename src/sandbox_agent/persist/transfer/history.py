"""Read a session's history in pages, and write it into another store with its own indexes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import aclosing, contextmanager
from typing import Final, NamedTuple, Self

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import Capability, SessionPersistDriver
from sandbox_agent.wire.records import SessionEvent, SessionRecord

# The size of a page of events in memory, in bytes and events.
_PAGE_BYTES: Final = 4 * 1024 * 1024
_PAGE_EVENTS: Final = 2_000
_FIRST_PAGE: Final = 200


async def read_pages(
    driver: SessionPersistDriver, session_id: str, cursor: str | None = None
) -> AsyncGenerator[list[SessionEvent]]:
    """Iterate over pages of a session's events, of some megabytes each, whatever the size of the events."""
    size = _FIRST_PAGE
    while True:
        page = await driver.list_events(session_id, limit=size, cursor=cursor)
        yield page.items
        cursor = page.next_cursor
        if cursor is None:
            return
        length = sum(len(event.payload_json) for event in page.items)
        size = max(1, min(_PAGE_EVENTS, _PAGE_BYTES * len(page.items) // max(1, length)))


async def read_events(driver: SessionPersistDriver, session_id: str) -> AsyncGenerator[SessionEvent]:
    """Iterate over a session's events."""
    async with aclosing(read_pages(driver, session_id)) as pages:
        async for page in pages:
            for event in page:
                yield event


async def for_each_page(
    source: SessionPersistDriver,
    session_id: str,
    use: Callable[[list[SessionEvent]], Awaitable[None]],
    *,
    cursor: str | None = None,
) -> None:
    """Await ``use`` for each page of a session's events, while the next page is read.

    At most three pages are in memory.
    """
    send, receive = anyio.create_memory_object_stream[list[SessionEvent]](0)

    async def read() -> None:
        async with send, aclosing(read_pages(source, session_id, cursor)) as pages:
            async for page in pages:
                await send.send(page)

    with raise_first_error(), receive:
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            async for page in receive:
                await use(page)


@contextmanager
def raise_first_error() -> Generator[None]:
    """Raise the first error of a task group, instead of an exception group."""
    error: Exception | None = None
    try:
        yield
    except ExceptionGroup as group:
        error = group.exceptions[0]
    if error is not None:
        raise error


class Place(NamedTuple):
    """The index and the id of an event."""

    event_index: int
    id: str


class SessionWriter:
    """Stores the events of one session in order, each with its id and index.

    Events that the store has are not stored again, so an interrupted transfer continues, and two concurrent
    transfers produce one history: events are recognized by id, and an index is never used twice. If the store
    has another history of the session, or fails, the methods raise PersistError.

    Attributes:
        session_id: the session.
        last: the index up to which the store has the history; None if it has none.
        stored: how many events were stored.
        given: the last event that was passed in, or that was stored before.
    """

    def __init__(self, target: SessionPersistDriver, session_id: str, newest: SessionEvent | None) -> None:
        self._target = target
        self.session_id: str = session_id
        # The last event of the store at the beginning. The history that is passed in must contain it.
        self._newest = newest
        self._met = newest is None
        self._begun: SessionRecord | None = None
        self.last: int | None = None if newest is None else newest.event_index
        self.stored: int = 0
        self.given: Place | None = None

    @classmethod
    async def open(cls, target: SessionPersistDriver, session_id: str, given: Place | None = None) -> Self:
        """Return a writer that continues the store's history.

        ``given`` is the last event of an earlier writer, if this one continues its work.
        """
        tail = await target.tail_events(session_id, limit=1)
        writer = cls(target, session_id, tail[-1] if tail else None)
        if tail and given == (tail[-1].event_index, tail[-1].id):
            writer._met = True
        return writer

    async def begin(self, record: SessionRecord) -> None:
        """Store the record of a new session, so that a session whose transfer is interrupted is visible."""
        if self.last is None and await self._target.get_session(record.id) is None:
            await self._target.update_session(record)
            self._begun = record

    async def write(self, events: Sequence[SessionEvent]) -> None:
        """Store the next events of the history, in ascending order of their indexes."""
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
        self.given = _place(events[-1])

    async def finish(self, record: SessionRecord | None) -> None:
        """Store the record, unless the store's history is longer than the one that was passed in."""
        if self._newest is not None and not self._met:
            await self._compare_end(self._newest)
        if record is None or record is self._begun:
            return
        known = await self._target.get_session(record.id)
        if known is None or (known != record and self._met):
            await self._target.update_session(record)

    async def _store(self, events: list[SessionEvent]) -> None:
        start = 0
        while start < len(events):
            run = self._run(events[start:])
            if Capability.APPEND in self._target.capabilities and self._follows(run[0]):
                await self._append(run)
            else:
                # The history does not begin at 1, or has a gap here. Later events can be appended.
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
                    f"session '{self.session_id}' has another writer in the target store: event '{event.id}' "
                    f"got index {copy.event_index} there and has {event.event_index} here; stop the writer, "
                    "delete the session there and start again",
                    session_id=self.session_id,
                )

    def _compare(self, here: Place, there: SessionEvent) -> None:
        if here != (there.event_index, there.id):
            raise PersistError(
                f"session '{self.session_id}' is in both stores with different histories: event "
                f"{there.event_index} is '{there.id}' in the target, and event {here.event_index} is "
                f"'{here.id}' here; nothing of it was changed, delete the session in one of them",
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
