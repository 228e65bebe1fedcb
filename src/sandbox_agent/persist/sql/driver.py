"""The one driver over SQL; an engine gives it a database, its writers and a search."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from sandbox_agent.persist.base import (
    UNFENCED,
    Capability,
    Keyset,
    SessionPersistDriver,
    check_session,
    decode_cursor,
    encode_cursor,
    normalize_limit,
)
from sandbox_agent.persist.sql.log import Log, Writers
from sandbox_agent.persist.sql.work import Database
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

if TYPE_CHECKING:
    from sandbox_agent.wire.sessions import SearchHit


class SqlSessionPersistDriver(SessionPersistDriver):
    """Keeps sessions and events in the tables of the TypeScript SDK.

    Args:
        database: runs works.
        writers: decides which generation may write a session.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability)

    def __init__(self, database: Database, writers: Writers) -> None:
        self._database = database
        self._log = Log(writers)

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        """Return the record, or None."""
        return await self._database.read(partial(self._log.session, session_id))

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        """Return a page of records by (created_at, id), oldest first."""
        size = normalize_limit(limit)
        found = await self._database.read(partial(self._log.sessions, size, self._after(cursor)))
        last = found[size - 1] if len(found) > size else None
        return ListPage(found[:size], encode_cursor(last.created_at, last.id) if last else None)

    async def update_session(self, session: SessionRecord, /) -> None:
        """Insert the record, or replace the one of that id."""
        await self.save_session(session)

    async def claim_session(self, session_id: str, /) -> int:
        """Become the session's only writer and return the generation to write with."""
        claim = partial(self._log.writers.claim, session_id)
        return await self._database.write(claim, session_id=session_id)

    async def save_session(self, session: SessionRecord, /, *, generation: int = UNFENCED) -> None:
        """``update_session`` by the session's writer.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
            PersistError: the store failed.
        """
        await self._database.write(partial(self._log.save, session, generation), session_id=session.id)

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        """Return a page of a session's events by (event_index, id), oldest first."""
        size = normalize_limit(limit)
        found = await self._database.read(partial(self._log.events, session_id, size, self._after(cursor)))
        last = found[size - 1] if len(found) > size else None
        return ListPage(found[:size], encode_cursor(last.event_index, last.id) if last else None)

    def cursor_after(self, event_index: int, /) -> str:
        """Return the cursor of ``list_events`` after that index."""
        return encode_cursor(event_index + 1, "")

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert the event as it is, or replace the one of that id.

        Raises:
            PersistError: another event of the session has its index, or the store failed.
        """
        check_session(session_id, event)
        stored = event.copy()
        await self._database.write(partial(self._log.replace, session_id, stored), session_id=session_id)
        self._stored(session_id, [stored])

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        """Append the events and set their ``event_index``, in one transaction: all of them or none.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
            PersistError: an id is stored in another session, or the store failed.
        """
        for event in events:
            check_session(session_id, event)
        batch = list(events)
        for event, index in zip(batch, await self._append(session_id, batch, generation), strict=True):
            event.event_index = index
        self._stored(session_id, batch)

    async def last_event_index(self, session_id: str, /) -> int:
        """Return the highest event index of the session, 0 where it has none."""
        return await self._database.read(partial(self._log.last_index, session_id))

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        """Return the newest ``limit`` events, oldest of them first."""
        if limit < 1:
            return []
        return await self._database.read(partial(self._log.tail, session_id, limit))

    async def delete_session(self, session_id: str, /) -> None:
        """Erase the record and its events; nothing happens if there is none.

        A writer that claimed the session before is refused from now on.
        """
        await self._database.write(partial(self._log.writers.delete, session_id), session_id=session_id)

    @abstractmethod
    def follow_events(self, session_id: str, /, *, after: int = 0) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events after an index and those that are stored later, once each, in order."""

    async def search_events(
        self, query: str, /, *, session_id: str | None = None, limit: int | None = None
    ) -> list[SearchHit]:
        """Return where all words of the query occur, the newest first.

        The index is brought up to date first: the first search of a long history takes a while, some
        seconds for 100,000 events. Appends pay nothing for it.
        """
        return await self._search(query, session_id, normalize_limit(limit))

    async def _append(self, session_id: str, events: Sequence[SessionEvent], generation: int) -> list[int]:
        append = partial(self._log.append, session_id, events, generation)
        return (await self._database.write(append, session_id=session_id)).indexes

    @abstractmethod
    async def _search(self, query: str, session_id: str | None, limit: int) -> list[SearchHit]: ...

    def _stored(self, session_id: str, events: Sequence[SessionEvent]) -> None:
        """Notify the followers of events that this driver has stored."""

    def _after(self, cursor: str | None) -> Keyset | None:
        return decode_cursor(cursor)
