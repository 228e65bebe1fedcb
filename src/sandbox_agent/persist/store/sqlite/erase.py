"""Erasing in slices: each is a short transaction, so commits go on between them.

What is erased is overwritten in the file (``secure_delete``). The full text index only notes an erasure;
its words go when it is cleaned (``sqlite_index``). Until that is done, and the log is cut, a mark in the
file says that it isn't.
"""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

import msgspec

from sandbox_agent.persist.store.sqlite.values import MAX_SEQUENCE, gather, row_id

__all__ = [
    "Aged",
    "Erased",
    "aged_sessions",
    "begin_delete",
    "clear_mark",
    "deleted_keys",
    "end_delete",
    "erase_slice",
    "get_mark",
    "oldest_of",
    "set_first_sequence",
    "set_mark",
    "used_bytes",
]

# A slice has no more rows, nor bytes if it has more than one row: it holds up commits for some 20 ms.
_SLICE_ROWS: Final = 2_000
_SLICE_BYTES: Final = 2 * 1024 * 1024
# Texts take longer: each of their words is looked up in the index.
_SLICE_TEXTS: Final = 200
_SLICE_CHARACTERS: Final = 256 * 1024
# Sessions that are looked at in one go.
_SESSIONS_PAGE: Final = 250

_BLANK_TURNS: Final = """
UPDATE store_turns SET prompt = x'5b5d'
WHERE key = ?1 AND prompt <> x'5b5d' AND state NOT IN ('accepted', 'running')
  AND last_sequence < (SELECT first_sequence FROM store_sessions WHERE key = ?1)
"""
_BLANK_PERMISSIONS: Final = """
UPDATE store_permissions SET metadata = x'7b7d', action = ''
WHERE key = ?1 AND metadata <> x'7b7d' AND answered IS NOT NULL
  AND sequence < (SELECT first_sequence FROM store_sessions WHERE key = ?1)
"""
_UNINDEX: Final = """
INSERT INTO store_text_index (store_text_index, rowid, text, scope)
SELECT 'delete', id, text, scope FROM store_texts WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id
"""
_sized: Final = msgspec.json.Decoder(list[tuple[int, int, int]])


class Aged(NamedTuple):
    """A session that may lose events, and when its oldest event or envelope is from."""

    oldest: int
    key: int


class Erased(NamedTuple):
    """How many rows a slice erased, and how much indexed text, in characters, was among them."""

    rows: int
    text: int = 0


def begin_delete(connection: sqlite3.Connection, key: int) -> bool:
    """Take the session out of sight: it has no name and no content any more, only what is to be erased.

    Returns:
        Whether there is one.
    """
    found = connection.execute(
        "UPDATE store_sessions SET deleted = 1, session_id = NULL, native_session_id = NULL, "
        "server_id = NULL, directory = NULL, title = NULL, model = NULL, variant = NULL, usage = NULL, "
        "settings = NULL WHERE key = ?",
        (key,),
    )
    connection.execute("DELETE FROM store_snapshots WHERE key = ?", (key,))
    connection.execute("DELETE FROM store_turns WHERE key = ?", (key,))
    connection.execute("DELETE FROM store_permissions WHERE key = ?", (key,))
    return found.rowcount > 0


def deleted_keys(connection: sqlite3.Connection) -> list[int]:
    """Return the sessions whose delete has not ended."""
    return [row[0] for row in gather(connection, ["key"], "FROM store_sessions WHERE deleted LIMIT -1")]


def end_delete(connection: sqlite3.Connection, key: int) -> None:
    """Forget that there was a session; nothing of it is left by now."""
    connection.execute("DELETE FROM store_sessions WHERE key = ? AND deleted", (key,))


def erase_slice(
    connection: sqlite3.Connection, key: int, *, before: int | None = None, max_bytes: int = _SLICE_BYTES
) -> Erased:
    """Erase some of a session's oldest events, texts and envelopes; no rows mean that it is done.

    Args:
        connection: in a transaction.
        key: the session's.
        before: erase only what is older; a row that isn't ends it, whatever comes behind that one.
        max_bytes: erase about as much.
    """
    last = _slice_end(connection, "store_events", key, before, max_bytes)
    if last is not None:
        texts = _erase_texts(connection, key, last & MAX_SEQUENCE)
        return texts if texts.rows else _erase_rows(connection, "store_events", key, last)
    last = _slice_end(connection, "store_envelopes", key, before, max_bytes)
    if last is not None:
        return _erase_rows(connection, "store_envelopes", key, last)
    return Erased(0) if before is not None else _erase_texts(connection, key, MAX_SEQUENCE)


def _slice_end(
    connection: sqlite3.Connection, table: str, key: int, before: int | None, max_bytes: int
) -> int | None:
    query = (
        "SELECT CAST(json_group_array(json_array(id, time, size)) AS BLOB) FROM "  # noqa: S608 - constants only
        f"(SELECT id, time, length(data) AS size FROM {table} WHERE id > ? AND id <= ? ORDER BY id LIMIT ?)"
    )
    extent = (row_id(key, 0), row_id(key, MAX_SEQUENCE), _SLICE_ROWS)
    last: int | None = None
    total = 0
    for found, time, size in _sized.decode(connection.execute(query, extent).fetchone()[0]):
        total += size
        too_much = last is not None and total > min(max_bytes, _SLICE_BYTES)
        if too_much or (before is not None and time >= before):
            break
        last = found
    return last


def _erase_rows(connection: sqlite3.Connection, table: str, key: int, last: int) -> Erased:
    query = f"DELETE FROM {table} WHERE id > ? AND id <= ?"  # noqa: S608 - constants only
    return Erased(connection.execute(query, (row_id(key, 0), last)).rowcount)


def _erase_texts(connection: sqlite3.Connection, key: int, last: int) -> Erased:
    tail = "FROM store_texts WHERE key = ? AND sequence <= ? ORDER BY sequence LIMIT ?"
    found: list[int] = []
    total = 0
    for text_id, size in gather(connection, ["id", "length(text)"], tail, (key, last, _SLICE_TEXTS)):
        if found and total + size > _SLICE_CHARACTERS:
            break
        total += size
        found.append(text_id)
    if found:
        ids = msgspec.json.encode(found).decode()
        connection.execute(_UNINDEX, (ids,))
        connection.execute("DELETE FROM store_texts WHERE id IN (SELECT value FROM json_each(?))", (ids,))
    return Erased(len(found), total)


def set_first_sequence(connection: sqlite3.Connection, key: int) -> None:
    """Note from where the session has its events, and blank the ended turns and answers before that."""
    row = connection.execute(
        "SELECT id & 4294967295 FROM store_events WHERE id > ? AND id <= ? ORDER BY id LIMIT 1",
        (row_id(key, 0), row_id(key, MAX_SEQUENCE)),
    ).fetchone()
    connection.execute(
        "UPDATE store_sessions SET first_sequence = coalesce(?, last_sequence + 1) WHERE key = ?",
        (row[0] if row else None, key),
    )
    # The rows stay: they number the turns, and tell a repeated message.
    connection.execute(_BLANK_TURNS, (key,))
    connection.execute(_BLANK_PERMISSIONS, (key,))


def set_mark(connection: sqlite3.Connection) -> None:
    """Note that the file holds traces of what was erased, in the transaction that erases it."""
    connection.execute(
        "INSERT INTO store_meta (name, value) VALUES ('traces', 1) "
        "ON CONFLICT (name) DO UPDATE SET value = value + 1"
    )


def get_mark(connection: sqlite3.Connection) -> int:
    """Return the mark; another one each time that something was erased, 0 while there are no traces."""
    found = connection.execute("SELECT value FROM store_meta WHERE name = 'traces'").fetchone()
    return int(found[0]) if found else 0


def clear_mark(connection: sqlite3.Connection, mark: int) -> None:
    """Note that what was erased up to that mark has left no traces."""
    connection.execute("UPDATE store_meta SET value = 0 WHERE name = 'traces' AND value = ?", (mark,))


def aged_sessions(connection: sqlite3.Connection, after: int) -> tuple[list[Aged], int | None]:
    """Return those of some sessions that may lose events, and the key to go on behind; None at the end.

    The key 0 is among them: the connections' own envelopes.

    Args:
        connection: it only reads, but a page at a time, as others read beside it.
        after: the key behind which to look; -1 at first.
    """
    keys = "SELECT key FROM (SELECT 0 AS key UNION ALL SELECT key FROM store_sessions WHERE NOT deleted)"
    chosen = f"{keys} WHERE key > ? ORDER BY key LIMIT {_SESSIONS_PAGE}"
    found = gather(connection, ["key"], f"FROM ({chosen})", (after,))
    last = int(found[-1][0]) if len(found) == _SESSIONS_PAGE else None
    return _aged(connection, chosen, (after,)), last


def oldest_of(connection: sqlite3.Connection, key: int) -> Aged | None:
    """Return it for one session; None where it has nothing left, or a turn of it is open."""
    found = _aged(connection, "SELECT ? AS key", (key,))
    return found[0] if found else None


def _aged(connection: sqlite3.Connection, sessions: str, values: tuple[int, ...]) -> list[Aged]:
    columns = ["s.key", _oldest("store_events"), _oldest("store_envelopes")]
    tail = (
        f"FROM ({sessions}) AS s WHERE NOT EXISTS "  # noqa: S608 - constants only
        "(SELECT 1 FROM store_turns AS t WHERE t.key = s.key AND t.state IN ('accepted', 'running')) LIMIT -1"
    )
    found: list[Aged] = []
    for key, *times in gather(connection, columns, tail, values):
        known = [time for time in times if time is not None]
        if known:
            found.append(Aged(min(known), key))
    return found


def _oldest(table: str) -> str:
    return (
        f"(SELECT time FROM {table} WHERE id > s.key << 32 AND id <= (s.key << 32 | 4294967295) "  # noqa: S608
        "ORDER BY id LIMIT 1)"
    )


def used_bytes(connection: sqlite3.Connection) -> int:
    """Return the size of the file without its free pages."""
    pages, free, size = (
        connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size
