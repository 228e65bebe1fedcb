"""Writing events into an SQLite store: indexes are allocated in the transaction that stores them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final

from sandbox_agent.errors import PersistError
from sandbox_agent.wire.records import SessionEvent

__all__ = ["append", "insert_or_replace"]

_COLUMNS: Final = "(id, event_index, session_id, created_at, connection_id, sender, payload_json)"
_VALUES: Final = "(?, ?, ?, ?, ?, ?, ?)"
# Rows of one statement. Each statement gives the interpreter's lock away and has to win it back from a
# busy event loop, so a batch takes few statements, not one a row. SQLite takes up to 32,766 values.
_CHUNKS: Final = (256, 64, 16, 4, 1)
_INSERTS: Final = {
    rows: f"INSERT INTO events {_COLUMNS} VALUES " + ", ".join([_VALUES] * rows)  # noqa: S608 - constants only
    for rows in _CHUNKS
}
_INSERT_OR_REPLACE: Final = (
    _INSERTS[1]
    + """
ON CONFLICT(id) DO UPDATE SET
  event_index = excluded.event_index, session_id = excluded.session_id, created_at = excluded.created_at,
  connection_id = excluded.connection_id, sender = excluded.sender, payload_json = excluded.payload_json
"""
)
_LAST_INDEX: Final = "SELECT COALESCE(MAX(event_index), 0) FROM events WHERE session_id = ?"


def insert_or_replace(connection: sqlite3.Connection, event: SessionEvent) -> None:
    """Insert the event with the index that it has, or replace the one of its id.

    Raises:
        PersistError: another event of the session has that index.
    """
    try:
        connection.execute(_INSERT_OR_REPLACE, _row(event, event.event_index))
    except sqlite3.IntegrityError as error:
        raise PersistError(
            f"event '{event.id}' was not stored: session '{event.session_id}' has another event with index "
            f"{event.event_index} ({error})",
            session_id=event.session_id,
        ) from error


def append(connection: sqlite3.Connection, session_id: str, events: Sequence[SessionEvent]) -> list[int]:
    """Store the events after the session's last one and return the index of each.

    It must run in a transaction that holds the write lock (BEGIN IMMEDIATE), so that no other process
    can take an index between reading the last one and storing the next.

    Raises:
        PersistError: an id is stored in another session.
    """
    if not events:
        return []
    connection.execute("SAVEPOINT append")
    try:
        try:
            first = _last_index(connection, session_id) + 1
            _insert(connection, events, first)
            return list(range(first, first + len(events)))
        except sqlite3.IntegrityError:
            # A retry, nearly always: some of the ids are there.
            connection.execute("ROLLBACK TO append")
            return _append_missing(connection, session_id, events)
    finally:
        if connection.in_transaction:
            connection.execute("RELEASE append")


def _append_missing(
    connection: sqlite3.Connection, session_id: str, events: Sequence[SessionEvent]
) -> list[int]:
    indexes: dict[str, int] = {}
    missing: dict[str, SessionEvent] = {}
    for event in events:
        query = "SELECT session_id, event_index FROM events WHERE id = ?"
        stored = connection.execute(query, (event.id,)).fetchone()
        if stored is None:
            missing.setdefault(event.id, event)
        elif stored[0] != session_id:
            raise PersistError(
                f"event '{event.id}' was not stored: its id is taken by an event of session '{stored[0]}'",
                session_id=session_id,
            )
        else:
            indexes[event.id] = stored[1]
    first = _last_index(connection, session_id) + 1
    _insert(connection, list(missing.values()), first)
    indexes.update((event_id, index) for index, event_id in enumerate(missing, first))
    return [indexes[event.id] for event in events]


def _last_index(connection: sqlite3.Connection, session_id: str) -> int:
    return int(connection.execute(_LAST_INDEX, (session_id,)).fetchone()[0])


def _insert(connection: sqlite3.Connection, events: Sequence[SessionEvent], first: int) -> None:
    start = 0
    for rows in _CHUNKS:
        while len(events) - start >= rows:
            chunk = events[start : start + rows]
            connection.execute(_INSERTS[rows], list(_values(chunk, first + start)))
            start += rows


def _values(events: Sequence[SessionEvent], first: int) -> Iterator[Any]:
    return chain.from_iterable(_row(event, index) for index, event in enumerate(events, first))


def _row(event: SessionEvent, index: int) -> tuple[Any, ...]:
    return (
        event.id,
        index,
        event.session_id,
        event.created_at,
        event.connection_id,
        event.sender,
        event.payload_json.decode(),
    )
