"""Writing a commit's rows: the same rows again change nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store.rows import Changes, EnvelopeRow, EventRow, TextRow
from sandbox_agent.persist.store.sqlite.columns import PERMISSION_COLUMNS, SESSION_COLUMNS, TURN_COLUMNS
from sandbox_agent.persist.store.sqlite.values import clean, insert, row_id, statement

__all__ = ["MAX_TEXT_BYTES", "TEXT_BITS", "agent_word", "first_text_id", "session_word", "write"]

# What is indexed of one item; the rest of a longer one is not found.
MAX_TEXT_BYTES: Final = 256 * 1024
# Below the time in a text's id: items of one millisecond. More of them run on into the next.
TEXT_BITS: Final = 12
_LATEST: Final = 2**50  # an absurd clock's texts are all here


def _upsert(table: str, columns: Sequence[str], identity: str, where: str = "") -> dict[int, str]:
    kept = {*identity.split(", ")}
    # A stale row of the recorder's must not bring back what an expiry took.
    growing = ("first_sequence", "last_sequence", "last_envelope") if table == "store_sessions" else ()
    updates = ", ".join(
        f"{name} = max({table}.{name}, excluded.{name})" if name in growing else f"{name} = excluded.{name}"
        for name in columns
        if name not in kept
    )
    return statement(
        f"INSERT INTO {table} ({', '.join(columns)})",
        len(columns),
        f"ON CONFLICT ({identity}) DO UPDATE SET {updates} {where}",
    )


_SESSIONS: Final = _upsert("store_sessions", SESSION_COLUMNS, "key", "WHERE NOT deleted")
_TURNS: Final = _upsert("store_turns", TURN_COLUMNS, "key, turn_id")
_PERMISSIONS: Final = _upsert("store_permissions", PERMISSION_COLUMNS, "key, permission_id")
_SNAPSHOTS: Final = _upsert(
    "store_snapshots",
    ("key", "envelope", "sequence", "data"),
    "key",
    "WHERE excluded.envelope >= store_snapshots.envelope",
)
_EVENTS: Final = statement("INSERT OR IGNORE INTO store_events (id, time, type, envelope, data)", 5)
_ENVELOPES: Final = statement(
    "INSERT OR IGNORE INTO store_envelopes (id, time, sender, connection_id, data)", 5
)
_TEXTS: Final = statement("INSERT OR IGNORE INTO store_texts (id, key, sequence, time, scope, text)", 6)
_INDEX: Final = """
INSERT INTO store_text_index (rowid, text, scope)
SELECT id, text, scope FROM store_texts WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id
"""


def write(connection: sqlite3.Connection, changes: Changes) -> None:
    """Store the rows; in the caller's transaction.

    Raises:
        PersistError: an event or envelope contradicts a stored one.
        sqlite3.Error: the store failed.
    """
    if changes.sessions:
        insert(connection, _SESSIONS, [_values(row, SESSION_COLUMNS) for row in changes.sessions])
    if changes.envelopes:
        _write_envelopes(connection, changes.envelopes)
    if changes.events:
        _write_events(connection, changes.events)
    if changes.texts:
        _write_texts(connection, changes.texts)
    if changes.turns:
        insert(connection, _TURNS, [_values(row, TURN_COLUMNS) for row in changes.turns])
    if changes.permissions:
        insert(connection, _PERMISSIONS, [_values(row, PERMISSION_COLUMNS) for row in changes.permissions])
    if changes.snapshots:
        rows = [(row.key, row.envelope, row.sequence, row.data) for row in changes.snapshots]
        insert(connection, _SNAPSHOTS, rows)


def first_text_id(time: int) -> int:
    """Return the lowest id of the texts of that time."""
    return min(max(time, 0), _LATEST) << TEXT_BITS


def session_word(key: int) -> str:
    """Return the word that finds a session's texts."""
    return f"s{key}"


def agent_word(agent: str) -> str:
    """Return the word that finds an agent's texts."""
    return "a" + clean(agent).encode().hex()


def _values(row: msgspec.Struct, columns: Sequence[str]) -> list[Any]:
    values = (getattr(row, name) for name in columns)
    return [clean(value) if isinstance(value, str) else value for value in values]


def _write_events(connection: sqlite3.Connection, events: Sequence[EventRow]) -> None:
    rows = [
        (row_id(row.key, row.sequence), row.time, clean(row.type), row.envelope, row.data) for row in events
    ]
    if insert(connection, _EVENTS, rows) != len(rows):
        query = "SELECT time, type, envelope, data FROM store_events WHERE id = ?"
        _compare(connection, query, rows, "event", "sequence")


def _write_envelopes(connection: sqlite3.Connection, envelopes: Sequence[EnvelopeRow]) -> None:
    rows = [
        (row_id(row.key, row.index), row.time, row.sender, clean(row.connection_id), row.data)
        for row in envelopes
    ]
    if insert(connection, _ENVELOPES, rows) != len(rows):
        query = "SELECT time, sender, connection_id, data FROM store_envelopes WHERE id = ?"
        _compare(connection, query, rows, "envelope", "index")


def _compare(
    connection: sqlite3.Connection, query: str, rows: Sequence[tuple[Any, ...]], what: str, number: str
) -> None:
    """Some of the rows are there already, which is fine as long as they are the same."""
    for row in rows:
        if connection.execute(query, (row[0],)).fetchone() != row[1:]:
            raise PersistError(
                f"nothing was stored: session number {row[0] >> 32} has another {what} of {number} "
                f"{row[0] & 0xFFFFFFFF}, so two writers must be at work; stop one of them"
            )


def _write_texts(connection: sqlite3.Connection, texts: Sequence[TextRow]) -> None:
    words = _scopes(connection, {row.key for row in texts})
    ordered = sorted(texts, key=lambda row: row.time)
    ids = _text_ids(connection, [row.time for row in ordered])
    rows = [
        (text_id, row.key, row.sequence, row.time, words[row.key], _searchable(row.text))
        for text_id, row in zip(ids, ordered, strict=True)
    ]
    insert(connection, _TEXTS, rows)
    # Those that were there already have other ids, so they aren't indexed twice.
    connection.execute(_INDEX, (msgspec.json.encode(ids).decode(),))


def _scopes(connection: sqlite3.Connection, keys: set[int]) -> dict[int, str]:
    found: dict[int, str] = {}
    for key in keys:
        row = connection.execute("SELECT agent FROM store_sessions WHERE key = ?", (key,)).fetchone()
        found[key] = f"{session_word(key)} {agent_word(row[0] if row else '')}"
    return found


def _text_ids(connection: sqlite3.Connection, times: Sequence[int]) -> list[int]:
    """Return a free id for each of the times, which are in order."""
    newest = int(connection.execute("SELECT coalesce(max(id), -1) FROM store_texts").fetchone()[0])
    ids: list[int] = []
    last = -1
    for time in times:
        text_id = max(first_text_id(time), last + 1)
        if text_id <= newest:
            text_id = _free_text_id(connection, text_id, newest)
        ids.append(text_id)
        last = text_id
    return ids


def _free_text_id(connection: sqlite3.Connection, text_id: int, newest: int) -> int:
    """Return a free id of the same millisecond: the clock went back, or the millisecond has texts."""
    end = (text_id >> TEXT_BITS) + 1 << TEXT_BITS
    query = "SELECT max(id) FROM store_texts WHERE id >= ? AND id < ?"
    taken = connection.execute(query, (text_id, end)).fetchone()[0]
    free = text_id if taken is None else int(taken) + 1
    return free if free < end else newest + 1


def _searchable(text: str) -> str:
    # A character is at least one byte.
    data = text[:MAX_TEXT_BYTES].replace("\0", " ").encode("utf-8", "replace")
    return data[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
