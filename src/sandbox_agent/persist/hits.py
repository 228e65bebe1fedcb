"""Searching a store by reading it: every event of every session, newest hits kept."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import AsyncIterator, Iterable
from typing import Protocol

from sandbox_agent.persist.folding import Folder, Said
from sandbox_agent.persist.searching import Query
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord
from sandbox_agent.wire.sessions import SearchHit

# A number before the hit: where indexes are not unique the heap must still order hits.
_Ranked = tuple[int, str, int, int, SearchHit]


class ReadableStore(Protocol):
    """The three methods that a search needs."""

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        """Return the record, or None."""
        ...

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        """Return a page of records, oldest first."""
        ...

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        """Return a page of a session's events, oldest first."""
        ...


class Hits:
    """The newest hits, of which there are at most ``limit``."""

    def __init__(self, query: Query, limit: int) -> None:
        self._query = query
        self._limit = limit
        self._newest: list[_Ranked] = []
        self._numbers = itertools.count()

    def add_texts(self, record: SessionRecord, texts: Iterable[Said]) -> None:
        """Look through texts of a session."""
        for said in texts:
            rank = (said.time, record.id, said.first)
            full = len(self._newest) == self._limit
            if full and rank <= self._newest[0][:3]:
                continue
            snippet = self._query.snippet(said.text)
            if snippet is not None:
                hit = SearchHit(
                    session_id=record.id,
                    agent=record.agent,
                    sequence=said.first,
                    time=said.time,
                    snippet=snippet,
                )
                (heapq.heapreplace if full else heapq.heappush)(
                    self._newest, (*rank, next(self._numbers), hit)
                )

    def newest_first(self) -> list[SearchHit]:
        """Return them by (time, session id, sequence), backwards."""
        return [hit for *_, hit in sorted(self._newest, reverse=True)]


async def search_by_reading(
    store: ReadableStore, query: str, session_id: str | None, limit: int
) -> list[SearchHit]:
    """Return the newest hits, whole histories read for it."""
    wanted = Query(query)
    hits = Hits(wanted, limit)
    if wanted:
        async for record in _records(store, session_id):
            await _look(store, record, hits)
    return hits.newest_first()


async def _records(store: ReadableStore, session_id: str | None) -> AsyncIterator[SessionRecord]:
    if session_id is not None:
        record = await store.get_session(session_id)
        if record is not None:
            yield record
        return
    cursor: str | None = None
    while True:
        page = await store.list_sessions(cursor=cursor)
        for record in page.items:
            yield record
        cursor = page.next_cursor
        if cursor is None:
            return


async def _look(store: ReadableStore, record: SessionRecord, hits: Hits) -> None:
    folder = Folder()
    cursor: str | None = None
    while True:
        page = await store.list_events(record.id, cursor=cursor)
        for event in page.items:
            folder.add(event)
        hits.add_texts(record, folder.finished())
        cursor = page.next_cursor
        if cursor is None:
            hits.add_texts(record, folder.unfinished())
            return
