"""Searching an SQLite store: its index is brought up to date, then asked."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from sandbox_agent.persist.folding import Folder
from sandbox_agent.persist.searching import SNIPPET_WORDS, parse_query
from sandbox_agent.persist.sqlite.texts import (
    Extent,
    Text,
    erase_texts,
    fill_index,
    is_filled,
    keep_texts,
    make_tables,
)
from sandbox_agent.wire.records import SessionEvent
from sandbox_agent.wire.sessions import SearchHit

__all__ = ["search"]

T = TypeVar("T")
# Events that are folded at one go, in the reader's thread.
_SLICE: Final = 1_000

_EVENTS: Final = """
SELECT id, event_index, session_id, created_at, connection_id, sender, CAST(payload_json AS BLOB)
FROM events WHERE session_id = ? AND event_index >= ? ORDER BY event_index LIMIT ?
"""
_STALE: Final = """
SELECT id, resume_at, last_index, last_id FROM (
  SELECT sessions.id AS id, resume_at, last_index, last_id,
    (SELECT MAX(event_index) FROM events WHERE session_id = sessions.id) AS newest,
    (SELECT events.id FROM events WHERE session_id = sessions.id AND event_index = last_index) AS at_last
  FROM sessions LEFT JOIN session_texts_extents AS extents ON extents.session_id = sessions.id
  WHERE ?1 IS NULL OR sessions.id = ?1
)
WHERE newest IS NOT last_index OR last_id IS NOT at_last
"""
_HITS: Final = f"""
SELECT texts.session_id, sessions.agent, texts.event_index, texts.time,
  snippet(session_texts_index, 0, '[', ']', '…', {SNIPPET_WORDS})
FROM session_texts_index
JOIN session_texts AS texts ON texts.id = session_texts_index.rowid
JOIN sessions ON sessions.id = texts.session_id
WHERE session_texts_index MATCH ?1 AND (?2 IS NULL OR texts.session_id = ?2)
ORDER BY session_texts_index.rowid DESC LIMIT ?3
"""  # noqa: S608 - constants only


class Run(Protocol):
    """Runs a function on a connection in its thread."""

    async def __call__(self, work: Callable[[sqlite3.Connection], T], /) -> T:
        """Return what the function returns."""
        ...


class _Stale(NamedTuple):
    session_id: str
    known: Extent | None


async def search(read: Run, write: Run, query: str, session_id: str | None, limit: int) -> list[SearchHit]:
    """Return where all parts of the query are found, the newest first.

    Args:
        read: runs beside the writer.
        write: runs in a transaction.
        query: as a user types it.
        session_id: search this session only.
        limit: how many hits at most.

    Raises:
        PersistError: the store failed.
    """
    parts = parse_query(query)
    if not parts:
        return []
    # In FTS5's quotes nothing has a meaning but the quote itself.
    match = " AND ".join('"' + part.replace('"', '""') + '"' for part in parts)
    await write(make_tables)
    for stale in await read(lambda connection: _stale(connection, session_id)):
        await _fold(read, write, stale)
    while True:
        while await write(fill_index):
            pass
        hits = await read(lambda connection: _hits(connection, match, session_id, limit))
        # Another process erased a session, and the index with it.
        if hits is not None:
            return hits


async def _fold(read: Run, write: Run, stale: _Stale) -> None:
    """Bring a session's texts up to date, or leave it where another search or a deletion was quicker."""
    session_id, known = stale
    if known is not None and not await read(_GoesOn(session_id, known)):
        # Made anew under the same id by a program that knows nothing of the texts.
        await write(lambda connection: erase_texts(connection, session_id))
        known = None
    folder = Folder()
    start = known.resume_at if known else 0
    replace = True
    while True:
        events = await read(lambda connection, start=start: _events(connection, session_id, start))
        is_end = len(events) <= _SLICE
        for event in events[:_SLICE]:
            folder.take(event)
        if not events:
            return
        last = events[:_SLICE][-1]
        said = [*folder.finished(), *(folder.unfinished() if is_end else ())]
        texts = [Text(*one) for one in said]
        extent = Extent(folder.resume_at, last.event_index, last.id)
        if not await write(_Keep(session_id, texts, known, extent, replace)) or is_end:
            return
        known, start, replace = extent, last.event_index + 1, False


class _GoesOn(NamedTuple):
    """Whether the event that the folding ended with is still there."""

    session_id: str
    known: Extent

    def __call__(self, connection: sqlite3.Connection) -> bool:
        query = "SELECT 1 FROM events WHERE session_id = ? AND event_index = ? AND id = ?"
        values = (self.session_id, self.known.last_index, self.known.last_id)
        return connection.execute(query, values).fetchone() is not None


class _Keep(NamedTuple):
    """A job that keeps a slice's texts."""

    session_id: str
    texts: list[Text]
    known: Extent | None
    extent: Extent
    replace: bool

    def __call__(self, connection: sqlite3.Connection) -> bool:
        return keep_texts(
            connection,
            self.session_id,
            self.texts,
            known=self.known,
            extent=self.extent,
            replace=self.replace,
        )


def _stale(connection: sqlite3.Connection, session_id: str | None) -> list[_Stale]:
    rows = connection.execute(_STALE, (session_id,)).fetchall()
    return [_Stale(row[0], None if row[1] is None else Extent(*row[1:])) for row in rows]


def _events(connection: sqlite3.Connection, session_id: str, start: int) -> list[SessionEvent]:
    return [SessionEvent(*row) for row in connection.execute(_EVENTS, (session_id, start, _SLICE + 1))]


def _hits(
    connection: sqlite3.Connection, match: str, session_id: str | None, limit: int
) -> list[SearchHit] | None:
    if not is_filled(connection):
        return None
    rows: list[tuple[Any, ...]] = connection.execute(_HITS, (match, session_id, limit)).fetchall()
    return [
        SearchHit(session_id=row[0], agent=row[1], sequence=row[2], time=row[3], snippet=row[4])
        for row in rows
    ]
