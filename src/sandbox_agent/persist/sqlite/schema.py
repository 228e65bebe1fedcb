"""The tables of an SQLite store, and how older files become such."""

from __future__ import annotations

import sqlite3
from typing import Final

from sandbox_agent.errors import PersistError

# Kept in PRAGMA user_version. 0 is a file of the TypeScript driver, of whatever age.
SCHEMA_VERSION: Final = 1

_CREATE_SESSIONS: Final = """
CREATE TABLE IF NOT EXISTS sessions (
  id TEXT PRIMARY KEY,
  agent TEXT NOT NULL,
  agent_session_id TEXT NOT NULL,
  last_connection_id TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  destroyed_at INTEGER,
  sandbox_id TEXT,
  session_init_json TEXT,
  config_options_json TEXT,
  modes_json TEXT
)"""
_CREATE_EVENTS: Final = """
CREATE TABLE IF NOT EXISTS events (
  id TEXT PRIMARY KEY,
  event_index INTEGER NOT NULL,
  session_id TEXT NOT NULL,
  created_at INTEGER NOT NULL,
  connection_id TEXT NOT NULL,
  sender TEXT NOT NULL,
  payload_json TEXT NOT NULL
)"""
_INDEXES: Final = {
    # The TypeScript driver's own, of its name and columns: it makes it again if it is missing.
    "idx_events_session_order": "INDEX idx_events_session_order ON events(session_id, event_index, id)",
    "idx_events_session_index": "UNIQUE INDEX idx_events_session_index ON events(session_id, event_index)",
    "idx_sessions_order": "INDEX idx_sessions_order ON sessions(created_at, id)",
}
_SESSION_ESSENTIALS: Final = frozenset(
    {"id", "agent", "agent_session_id", "last_connection_id", "created_at"}
)
# Columns that came later, in the order in which they came.
_SESSION_ADDITIONS: Final = {
    "destroyed_at": "INTEGER",
    "sandbox_id": "TEXT",
    "session_init_json": "TEXT",
    "config_options_json": "TEXT",
    "modes_json": "TEXT",
}
_EVENT_ESSENTIALS: Final = frozenset(
    {"id", "session_id", "created_at", "connection_id", "sender", "payload_json"}
)


def prepare_store(connection: sqlite3.Connection) -> None:
    """Make the tables, or migrate those of an older file, in one transaction.

    A file that needs nothing is not written to. After a crash in the middle the file is as it was.

    Raises:
        PersistError: a newer version wrote the file, or its tables are not a session store's.
        sqlite3.Error: the file can't be read, or can't be written and needs to be.
    """
    connection.execute("PRAGMA secure_delete=ON")
    _refuse_newer(connection)
    if _is_current(connection):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Again, now that no other process can write: one may have been faster.
        _refuse_newer(connection)
        if not _is_current(connection):
            _migrate(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _refuse_newer(connection: sqlite3.Connection) -> None:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise PersistError(
            f"the store is of schema version {version} and this release reads up to {SCHEMA_VERSION}: "
            "upgrade sandbox-agent-py, or name another file"
        )


def _columns(connection: sqlite3.Connection, table: str) -> dict[str, str]:
    """Return the declared type of each column, in capitals; empty where there is no such table."""
    rows = connection.execute("SELECT name, type FROM pragma_table_info(?)", (table,))
    return {name: kind.strip().upper() for name, kind in rows}


def _is_current(connection: sqlite3.Connection) -> bool:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        return False
    sessions, events = _columns(connection, "sessions"), _columns(connection, "events")
    indexes = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'")}
    return (
        sessions.keys() >= _SESSION_ESSENTIALS | _SESSION_ADDITIONS.keys()
        and events.keys() >= _EVENT_ESSENTIALS | {"event_index"}
        and indexes >= _INDEXES.keys()
    )


def _migrate(connection: sqlite3.Connection) -> None:
    _migrate_sessions(connection)
    _migrate_events(connection)
    _number_uniquely(connection)
    for name, definition in _INDEXES.items():
        connection.execute(f"DROP INDEX IF EXISTS {name}")
        connection.execute(f"CREATE {definition}")
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _check(table: str, columns: dict[str, str], essentials: frozenset[str]) -> None:
    missing = sorted(essentials - columns.keys())
    if missing:
        raise PersistError(
            f"the file has a table '{table}' without the column(s) {', '.join(missing)}: it belongs to "
            "another program, name another file for the store"
        )


def _migrate_sessions(connection: sqlite3.Connection) -> None:
    connection.execute(_CREATE_SESSIONS)
    columns = _columns(connection, "sessions")
    _check("sessions", columns, _SESSION_ESSENTIALS)
    for name, kind in _SESSION_ADDITIONS.items():
        if name not in columns:
            connection.execute(f"ALTER TABLE sessions ADD COLUMN {name} {kind}")


def _migrate_events(connection: sqlite3.Connection) -> None:
    columns = _columns(connection, "events")
    if columns:
        _check("events", columns, _EVENT_ESSENTIALS)
        if columns["id"] != "TEXT" or "event_index" not in columns:
            connection.execute("ALTER TABLE events RENAME TO events_legacy")
    connection.execute(_CREATE_EVENTS)
    # The TypeScript driver rebuilds outside a transaction, so a table may be left from its crash too.
    legacy = _columns(connection, "events_legacy")
    if legacy:
        _check("events_legacy", legacy, _EVENT_ESSENTIALS)
        _copy_legacy_events(connection, has_index="event_index" in legacy)


def _copy_legacy_events(connection: sqlite3.Connection, *, has_index: bool) -> None:
    position = "ROW_NUMBER() OVER (PARTITION BY session_id ORDER BY created_at, id)"
    index = f"COALESCE(event_index, {position})" if has_index else position
    connection.execute(
        f"""
        INSERT INTO events (id, event_index, session_id, created_at, connection_id, sender, payload_json)
        SELECT
          CAST(id AS TEXT), {index} AS position, session_id, created_at, connection_id, sender, payload_json
        FROM events_legacy
        WHERE CAST(id AS TEXT) NOT IN (SELECT id FROM events)
        ORDER BY session_id, position, created_at, id
        """
    )
    connection.execute("DROP TABLE events_legacy")


def _number_uniquely(connection: sqlite3.Connection) -> None:
    """Renumber the sessions that have an index twice, or no index: 1, 2, 3 in the order that they had.

    Two clients of the TypeScript driver, which has no unique index, can write such a file.
    """
    connection.execute(
        """
        UPDATE events SET event_index = numbered.position
        FROM (
          SELECT rowid AS row, ROW_NUMBER() OVER (
            PARTITION BY session_id ORDER BY event_index, created_at, rowid
          ) AS position
          FROM events
          WHERE session_id IN (
            SELECT session_id FROM events GROUP BY session_id, event_index
            HAVING COUNT(*) > 1 OR event_index IS NULL
          )
        ) AS numbered
        WHERE events.rowid = numbered.row
        """
    )
