"""The texts that a search looks through, kept in an SQLite store beside seed 002's tables.

The tables are made by the first search. Appends never touch them: a search folds what came since the last
one (``session_texts_extents`` says how far each session is) and indexes it. The full text index has the
texts from ``filled_from`` on; erasing a session drops the index, as FTS5 keeps erased words in its segments,
and the next search fills a new one from the newest text down.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from sandbox_agent.wire.records import SessionEvent

__all__ = [
    "Extent",
    "Text",
    "erase_texts",
    "fill_index",
    "forget_texts",
    "has_texts",
    "is_filled",
    "keep_texts",
    "make_tables",
]

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
)
# Below the time in a text's id, so that the newest have the highest: texts of one millisecond.
_ID_BITS: Final = 21
_LATEST: Final = 2**41 - 1
_FULL: Final = -1
_EMPTY: Final = 2**62
# Characters of text that one transaction indexes: some 100 ms.
_FILL_CHARS: Final = 1_000_000
_FILL_TEXTS: Final = 500


class Extent(NamedTuple):
    """How much of a session was folded; see ``Folder.resume_at``. The last event's id tells re-made ones."""

    resume_at: int
    last_index: int
    last_id: str


class Text(NamedTuple):
    """A text of a session."""

    event_index: int
    time: int
    text: str


def has_texts(connection: sqlite3.Connection) -> bool:
    """Whether anybody ever searched the store."""
    query = "SELECT 1 FROM sqlite_master WHERE name = 'session_texts_extents'"
    return connection.execute(query).fetchone() is not None


def make_tables(connection: sqlite3.Connection) -> None:
    """Make the tables where they are missing; another process may have dropped the index."""
    for table in _TABLES:
        connection.execute(table)
    connection.execute(
        "INSERT INTO session_texts_state SELECT ? WHERE NOT EXISTS (SELECT 1 FROM session_texts_state)",
        (_FULL,),
    )


def keep_texts(
    connection: sqlite3.Connection,
    session_id: str,
    texts: Sequence[Text],
    *,
    known: Extent | None,
    extent: Extent,
    replace: bool,
) -> bool:
    """Keep texts that were folded, and how far; False where the session is another one meanwhile.

    Args:
        connection: in a transaction.
        session_id: whose.
        texts: the new ones.
        known: the extent that the folding went on from.
        extent: what it is now.
        replace: forget the texts from ``known.resume_at`` on first.
    """
    make_tables(connection)
    query = "SELECT resume_at, last_index, last_id FROM session_texts_extents WHERE session_id = ?"
    row = connection.execute(query, (session_id,)).fetchone()
    query = "SELECT 1 FROM events WHERE session_id = ? AND event_index = ? AND id = ?"
    last = connection.execute(query, (session_id, extent.last_index, extent.last_id)).fetchone()
    if last is None or (None if row is None else Extent(*row)) != known:
        return False
    if replace:
        _remove(connection, session_id, known.resume_at if known else 0)
    connection.execute(
        "INSERT OR REPLACE INTO session_texts_extents VALUES (?, ?, ?, ?)", (session_id, *extent)
    )
    _add(connection, session_id, texts)
    return True


def fill_index(connection: sqlite3.Connection) -> bool:
    """Index some of the texts that the index misses; True while there are more."""
    make_tables(connection)
    filled_from = _filled_from(connection)
    if filled_from == _FULL:
        return False
    query = "SELECT id, length(text) FROM session_texts WHERE id < ? ORDER BY id DESC LIMIT ?"
    ids: list[int] = []
    size = 0
    for text_id, length in connection.execute(query, (filled_from, _FILL_TEXTS)).fetchall():
        ids.append(text_id)
        size += length
        if size > _FILL_CHARS:
            break
    _index(connection, ids)
    connection.execute("UPDATE session_texts_state SET filled_from = ?", (ids[-1] if ids else _FULL,))
    return bool(ids)


def is_filled(connection: sqlite3.Connection) -> bool:
    """Whether the index has all texts."""
    query = "SELECT 1 FROM sqlite_master WHERE name = 'session_texts_index'"
    return connection.execute(query).fetchone() is not None and _filled_from(connection) == _FULL


def forget_texts(connection: sqlite3.Connection, event: SessionEvent) -> None:
    """Have a session folded anew that an event is put into, or replaced in, where it was folded already."""
    if has_texts(connection):
        connection.execute(
            "DELETE FROM session_texts_extents WHERE session_id = ? AND last_index >= ?",
            (event.session_id, event.event_index),
        )
        connection.execute(
            "DELETE FROM session_texts_extents "
            "WHERE session_id IN (SELECT session_id FROM events WHERE id = ?)",
            (event.id,),
        )


def erase_texts(connection: sqlite3.Connection, session_id: str) -> None:
    """Erase the texts of a session, and the index with all the words in it."""
    if not has_texts(connection):
        return
    connection.execute("DELETE FROM session_texts_extents WHERE session_id = ?", (session_id,))
    erased = connection.execute("DELETE FROM session_texts WHERE session_id = ?", (session_id,)).rowcount
    if erased:
        connection.execute("DROP TABLE IF EXISTS session_texts_index")
        connection.execute("UPDATE session_texts_state SET filled_from = ?", (_EMPTY,))


def _filled_from(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT filled_from FROM session_texts_state").fetchone()[0])


def _remove(connection: sqlite3.Connection, session_id: str, event_index: int) -> None:
    where = "WHERE session_id = ? AND event_index >= ?"
    connection.execute(
        "INSERT INTO session_texts_index (session_texts_index, rowid, text) "  # noqa: S608 - constants only
        f"SELECT 'delete', id, text FROM session_texts {where} AND id >= ?",
        (session_id, event_index, _filled_from(connection)),
    )
    connection.execute(f"DELETE FROM session_texts {where}", (session_id, event_index))  # noqa: S608


def _add(connection: sqlite3.Connection, session_id: str, texts: Sequence[Text]) -> None:
    filled_from = _filled_from(connection)
    insert = (
        "INSERT INTO session_texts SELECT COALESCE(MAX(id) + 1, ?1), ?3, ?4, ?5, ?6 FROM session_texts "
        "WHERE id >= ?1 AND id < ?2 RETURNING id"
    )
    ids: list[int] = []
    for text in texts:
        first = min(max(text.time, 0), _LATEST) << _ID_BITS
        values: tuple[Any, ...] = (first, first + (1 << _ID_BITS), session_id, *text)
        ((text_id,),) = connection.execute(insert, values).fetchall()
        if text_id >= filled_from:
            ids.append(text_id)
    _index(connection, ids)


def _index(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    if ids:
        connection.execute(
            "INSERT INTO session_texts_index (rowid, text) "
            "SELECT id, text FROM session_texts WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id",
            (msgspec.json.encode(ids).decode(),),
        )
