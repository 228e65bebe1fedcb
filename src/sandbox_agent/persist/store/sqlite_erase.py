"""Erasing in slices: each is a short transaction, so commits go on between them.

What is erased is overwritten in the file (``secure_delete``). The full text index only notes an erasure;
its words go when its pieces are merged, which is done in slices too.
"""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

import msgspec

from sandbox_agent.persist.store.sqlite_values import MAX_SEQUENCE, gather, row_id

__all__ = [
    "Aged",
    "aged_sessions",
    "begin_delete",
    "deleted_keys",
    "end_delete",
    "erase_slice",
    "merge_index",
    "set_first_sequence",
    "used_bytes",
]

# A slice has no more rows, nor bytes if it has more than one row: it holds up commits for some 20 ms.
_SLICE_ROWS: Final = 2_000
_SLICE_BYTES: Final = 2 * 1024 * 1024
# Pages of the index that one slice of merging writes.
_MERGE_PAGES: Final = 250

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
_sized: Final = msgspec.json.Decoder(list[tuple[int, int, int]])


class Aged(NamedTuple):
    """A session that may lose events, and when its oldest event or envelope is from."""

    oldest: int
    key: int


def begin_delete(connection: sqlite3.Connection, key: int) -> None:
    """Take the session out of sight: it has no name and no content any more, only what is to be erased."""
    connection.execute(
        "UPDATE store_sessions SET deleted = 1, session_id = NULL, native_session_id = NULL, "
        "server_id = NULL, directory = NULL, title = NULL, model = NULL, variant = NULL, usage = NULL, "
        "settings = NULL WHERE key = ?",
        (key,),
    )
    connection.execute("DELETE FROM store_snapshots WHERE key = ?", (key,))
    connection.execute("DELETE FROM store_turns WHERE key = ?", (key,))
    connection.execute("DELETE FROM store_permissions WHERE key = ?", (key,))


def deleted_keys(connection: sqlite3.Connection) -> list[int]:
    """Return the sessions whose delete has not ended."""
    return [row[0] for row in gather(connection, ["key"], "FROM store_sessions WHERE deleted LIMIT -1")]


def end_delete(connection: sqlite3.Connection, key: int) -> None:
    """Forget that there was a session; nothing of it is left by now."""
    connection.execute("DELETE FROM store_sessions WHERE key = ? AND deleted", (key,))


def erase_slice(connection: sqlite3.Connection, key: int, before: int | None = None) -> int:
    """Erase some of a session's oldest events, texts and envelopes; return how many rows are gone.

    Args:
        connection: in a transaction.
        key: the session's.
        before: erase only what is older; a row that isn't ends it, whatever comes behind that one.
    """
    last = _slice_end(connection, "store_events", key, before)
    if last is not None:
        texts = _erase_texts(connection, key, last & MAX_SEQUENCE)
        if texts:
            return texts
        return connection.execute(
            "DELETE FROM store_events WHERE id > ? AND id <= ?", (row_id(key, 0), last)
        ).rowcount
    last = _slice_end(connection, "store_envelopes", key, before)
    if last is None:
        return 0 if before is not None else _erase_texts(connection, key, MAX_SEQUENCE)
    return connection.execute(
        "DELETE FROM store_envelopes WHERE id > ? AND id <= ?", (row_id(key, 0), last)
    ).rowcount


def _slice_end(connection: sqlite3.Connection, table: str, key: int, before: int | None) -> int | None:
    query = (
        "SELECT CAST(json_group_array(json_array(id, time, size)) AS BLOB) FROM "  # noqa: S608 - constants only
        f"(SELECT id, time, length(data) AS size FROM {table} WHERE id > ? AND id <= ? ORDER BY id LIMIT ?)"
    )
    extent = (row_id(key, 0), row_id(key, MAX_SEQUENCE), _SLICE_ROWS)
    last: int | None = None
    total = 0
    for found, time, size in _sized.decode(connection.execute(query, extent).fetchone()[0]):
        total += size
        if (before is not None and time >= before) or (last is not None and total > _SLICE_BYTES):
            break
        last = found
    return last


def _erase_texts(connection: sqlite3.Connection, key: int, last: int) -> int:
    tail = "FROM store_texts WHERE key = ? AND sequence <= ? ORDER BY sequence LIMIT ?"
    found: list[int] = []
    total = 0
    for text_id, size in gather(connection, ["id", "length(text)"], tail, (key, last, _SLICE_ROWS // 4)):
        total += size
        if found and total > _SLICE_BYTES // 4:
            break
        found.append(text_id)
    if found:
        ids = msgspec.json.encode(found).decode()
        connection.execute(
            "INSERT INTO store_text_index (store_text_index, rowid, text, scope) SELECT 'delete', id, text, "
            "scope FROM store_texts WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id",
            (ids,),
        )
        connection.execute("DELETE FROM store_texts WHERE id IN (SELECT value FROM json_each(?))", (ids,))
    return len(found)


def merge_index(connection: sqlite3.Connection, *, begin: bool) -> bool:
    """Merge some of the index; True while there is more to do.

    Args:
        connection: in a transaction.
        begin: take all that is there now; what is written meanwhile stays for the next time.
    """
    before = connection.total_changes
    pages = -_MERGE_PAGES if begin else _MERGE_PAGES
    connection.execute("INSERT INTO store_text_index (store_text_index, rank) VALUES ('merge', ?)", (pages,))
    # https://www.sqlite.org/fts5.html#the_merge_command
    return connection.total_changes - before >= 2


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


def aged_sessions(connection: sqlite3.Connection) -> list[Aged]:
    """Return the sessions that may lose events, with the connections' own envelopes, oldest first."""
    columns = ["s.key", _oldest("store_events"), _oldest("store_envelopes")]
    tail = (
        "FROM (SELECT key FROM store_sessions WHERE NOT deleted UNION ALL SELECT 0) AS s WHERE NOT EXISTS "
        "(SELECT 1 FROM store_turns AS t WHERE t.key = s.key AND t.state IN ('accepted', 'running')) LIMIT -1"
    )
    found: list[Aged] = []
    for key, *times in gather(connection, columns, tail):
        known = [time for time in times if time is not None]
        if known:
            found.append(Aged(min(known), key))
    return sorted(found)


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
