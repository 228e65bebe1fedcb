"""The texts of an SQLite store and their full-text index, in tables beside those of the TypeScript SDK.

The tables are made by the first search. The index has the texts from ``filled_from`` on: FTS5 keeps erased
words in its segments, so erasing a session empties the index, and the next search fills it from the newest
text down.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import msgspec

from sandbox_agent.persist.folding import Said
from sandbox_agent.persist.searching import SNIPPET_WORDS, parse_query
from sandbox_agent.persist.sql.texts import TextIndex, update_texts
from sandbox_agent.persist.sql.work import Database, Query, Work
from sandbox_agent.wire.records import SessionEvent
from sandbox_agent.wire.sessions import SearchHit

# Below the time in a text's id, so that the newest have the highest: texts of one millisecond.
_ID_BITS: Final = 21
_LATEST: Final = 2**41 - 1
_FULL: Final = -1
_EMPTY: Final = 2**62
# What one transaction indexes: some 100 ms.
_FILL_CHARS: Final = 1_000_000
_FILL_TEXTS: Final = 500

_TABLES: Final = (
    """
CREATE TABLE IF NOT EXISTS session_texts (
  id INTEGER PRIMARY KEY,
  session_id TEXT NOT NULL,
  event_index INTEGER NOT NULL,
  time INTEGER NOT NULL,
  text TEXT NOT NULL
)""",
    "CREATE INDEX IF NOT EXISTS idx_session_texts ON session_texts(session_id, event_index)",
    """
CREATE TABLE IF NOT EXISTS session_texts_extents (
  session_id TEXT PRIMARY KEY,
  resume_at INTEGER NOT NULL,
  last_index INTEGER NOT NULL,
  last_id TEXT NOT NULL
)""",
    "CREATE TABLE IF NOT EXISTS session_texts_state (filled_from INTEGER NOT NULL)",
    """
CREATE VIRTUAL TABLE IF NOT EXISTS session_texts_index
USING fts5(text, content='session_texts', content_rowid='id')""",
    f"INSERT INTO session_texts_state SELECT {_FULL} WHERE NOT EXISTS (SELECT 1 FROM session_texts_state)",
)
_HAS_TABLES: Final = "SELECT 1 FROM sqlite_master WHERE name = 'session_texts_extents'"
_INSERT: Final = """
INSERT INTO session_texts SELECT coalesce(max(id) + 1, $1), $3, $4, $5, $6 FROM session_texts
WHERE id >= $1 AND id < $2 RETURNING id
"""
_HITS: Final = f"""
SELECT texts.session_id, sessions.agent, texts.event_index, texts.time,
  snippet(session_texts_index, 0, '[', ']', '…', {SNIPPET_WORDS})
FROM session_texts_index
JOIN session_texts AS texts ON texts.id = session_texts_index.rowid
JOIN sessions ON sessions.id = texts.session_id
WHERE session_texts_index MATCH $1 AND ($2 IS NULL OR texts.session_id = $2)
ORDER BY session_texts_index.rowid DESC LIMIT $3
"""


class FullTextIndex(NamedTuple):
    """An FTS5 index whose texts are in another table, and where it is noted from which text on it is filled.

    Attributes:
        name: the index's table.
        columns: the columns that it indexes.
        content: the texts' table.
        get_filled: a statement that returns from which id on the texts are indexed.
        set_filled: a statement that stores it.
    """

    name: str
    columns: str
    content: str
    get_filled: str
    set_filled: str

    def filled_from(self) -> Work[int]:
        """Return the id from which on the texts are indexed."""
        rows = yield Query(self.get_filled)
        return int(rows[0][0]) if rows else _FULL

    def is_full(self) -> Work[bool]:
        """Return whether the index has all texts."""
        return (yield from self.filled_from()) == _FULL

    def add(self, ids: Sequence[int]) -> Work[None]:
        """Index texts that were stored."""
        yield from self._change("rowid", "id", "AND id >= $2", ids)

    def remove(self, ids: Sequence[int]) -> Work[None]:
        """Take texts out of the index that are about to be removed; their words may stay in its segments."""
        yield from self._change(f"{self.name}, rowid", "'delete', id", "AND id >= $2", ids)

    def _change(self, into: str, chosen: str, where: str, ids: Sequence[int]) -> Work[None]:
        if ids:
            filled_from = yield from self.filled_from()
            yield Query(
                f"INSERT INTO {self.name} ({into}, {self.columns}) SELECT {chosen}, {self.columns} "
                f"FROM {self.content} WHERE id IN (SELECT value FROM json_each($1)) {where} ORDER BY id",
                (msgspec.json.encode(ids).decode(), filled_from),
            )

    def empty(self) -> Work[None]:
        """Erase all words, in the transaction that erases texts."""
        yield Query(f"INSERT INTO {self.name} ({self.name}) VALUES ('delete-all')")
        yield Query(self.set_filled, (_EMPTY,))

    def fill(self) -> Work[bool]:
        """Index some of the texts that are missing, newest first; True while there are more."""
        filled_from = yield from self.filled_from()
        if filled_from == _FULL:
            return False
        rows = yield Query(
            f"SELECT id, length(text) FROM {self.content} WHERE id < $1 ORDER BY id DESC LIMIT $2",
            (filled_from, _FILL_TEXTS),
        )
        ids: list[int] = []
        size = 0
        for text_id, length in rows:
            ids.append(text_id)
            size += length
            if size > _FILL_CHARS:
                break
        yield Query(self.set_filled, (ids[-1] if ids else _FULL,))
        yield from self.add(ids)
        return bool(ids)


_INDEX: Final = FullTextIndex(
    "session_texts_index",
    "text",
    "session_texts",
    "SELECT filled_from FROM session_texts_state",
    "UPDATE session_texts_state SET filled_from = $1",
)


class _Texts(TextIndex):
    """The texts in the tables of this file."""

    def lock(self, session_id: str) -> Work[None]:
        yield from _make_tables()

    def remove(self, session_id: str, first: int) -> Work[None]:
        values = (session_id, first)
        rows = yield Query("SELECT id FROM session_texts WHERE session_id = $1 AND event_index >= $2", values)
        yield from _INDEX.remove([row[0] for row in rows])
        yield Query("DELETE FROM session_texts WHERE session_id = $1 AND event_index >= $2", values)

    def add(self, session_id: str, texts: Sequence[Said]) -> Work[None]:
        ids: list[int] = []
        for text in texts:
            first = min(max(text.time, 0), _LATEST) << _ID_BITS
            values: tuple[Any, ...] = (first, first + (1 << _ID_BITS), session_id, *text)
            rows = yield Query(_INSERT, values)
            ids.append(rows[0][0])
        yield from _INDEX.add(ids)


async def search_events(
    database: Database, query: str, session_id: str | None, limit: int
) -> list[SearchHit]:
    """Return where all parts of the query are found, the newest first.

    Raises:
        PersistError: the store failed.
    """
    match = match_all(parse_query(query))
    if not match:
        return []
    await database.write(_make_tables)
    await update_texts(database, _Texts(), session_id)
    while True:
        while await database.write(_fill):
            pass
        rows = await database.read(partial(_find, match, session_id, limit))
        # Otherwise another process erased a session, and emptied the index.
        if rows is not None:
            return [
                SearchHit(session_id=row[0], agent=row[1], sequence=row[2], time=row[3], snippet=row[4])
                for row in rows
            ]


def match_all(parts: Sequence[str]) -> str:
    """Return an FTS5 query for texts that have all the words and phrases."""
    # In FTS5's quotes nothing has a meaning but the quote itself.
    return " AND ".join('"' + part.replace('"', '""') + '"' for part in parts)


def forget_extent(event: SessionEvent) -> Work[None]:
    """Have the texts derived again of a session in which an event is inserted or replaced."""
    if (yield Query(_HAS_TABLES)):
        yield Query(
            "DELETE FROM session_texts_extents WHERE session_id = $1 AND last_index >= $2",
            (event.session_id, event.event_index),
        )
        yield Query(
            "DELETE FROM session_texts_extents "
            "WHERE session_id IN (SELECT session_id FROM events WHERE id = $1)",
            (event.id,),
        )


def erase_texts(session_id: str) -> Work[None]:
    """Erase the texts of a session, and the index with all the words in it."""
    if not (yield Query(_HAS_TABLES)):
        return
    yield Query("DELETE FROM session_texts_extents WHERE session_id = $1", (session_id,))
    if (yield Query("DELETE FROM session_texts WHERE session_id = $1 RETURNING 1", (session_id,))):
        yield from _make_tables()
        yield from _INDEX.empty()


def _make_tables() -> Work[None]:
    for statement in _TABLES:
        yield Query(statement)


def _fill() -> Work[bool]:
    yield from _make_tables()  # another release may have dropped the index
    return (yield from _INDEX.fill())


def _find(match: str, session_id: str | None, limit: int) -> Work[list[Sequence[Any]] | None]:
    there = yield Query("SELECT 1 FROM sqlite_master WHERE name = 'session_texts_index'")
    if not there or not (yield from _INDEX.is_full()):
        return None
    return (yield Query(_HITS, (match, session_id, limit)))
