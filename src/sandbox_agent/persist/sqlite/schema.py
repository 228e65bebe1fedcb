"""The tables of an SQLite file, the SDK's and the server's, and how older files become such.

The server's begin with ``store_``: its file also holds feed segments, and may be one that an SDK's driver
keeps its own tables in.

**Clustering.** The server's events and envelopes have one INTEGER PRIMARY KEY each, ``session key << 32 |
sequence`` (or ``| index``): unique by definition, a session's rows lie side by side, and any place in it is
one descent of the tree. A session has room for 2**32 events.

**Folding**, for which there is room though it isn't done yet: the deltas of an item join to the text of its
``item.completed``. Once its turn is over, a delta's ``data`` can be replaced by where its text is (the
completed event's sequence, the part, start and length), and ``form`` says so. The row stays, so every
sequence stays valid and contiguous. An envelope folds like that into an event. In version 1 ``form`` is 0
everywhere: ``data`` is the whole of it.

**Repeats.** Agents send some large envelopes again and again, such as the list of their commands. The
``data`` of such an envelope is ``=`` and the index of the earlier one of its session that has it in full
(``sql.ledger.SAME``). An expiry that erases that one moves the data to the first that refers to it.

**Search.** ``store_texts.id`` is ``time << 12 | n``: the index is read newest first, and a time range is a
range of ids. ``scope`` holds a word for the session and one for its agent, so the index itself filters by
them. The index's words are in the text's row (external content).
"""

from __future__ import annotations

import sqlite3
from typing import Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sql.tables import (
    EVENT_COLUMNS,
    SESSION_COLUMNS,
    SESSION_ESSENTIALS,
    STORE_ENVELOPE_COLUMNS,
    STORE_EVENT_COLUMNS,
    STORE_SESSION_COLUMNS,
    Definition,
    check_columns,
    migrate_server,
    names,
    number_uniquely,
    refuse_newer,
)
from sandbox_agent.persist.sql.work import Command, Query, Work, columns
from sandbox_agent.persist.sqlite.dialect import run

# Of the SDK's tables, in PRAGMA user_version. 0 is a file of the TypeScript driver, of whatever age.
SCHEMA_VERSION: Final = 1

# UPSERT with several rows, FTS5's column filters and SQLite's 32,766 parameters: Debian 11 has 3.34.
_OLDEST_SQLITE: Final = (3, 32, 0)
_FULL_TEXT: Final = "fts5"

_DEFINITION: Final = Definition(
    {
        "text": "TEXT",
        "json": "TEXT",
        "integer": "INTEGER",
        "boolean": "INTEGER",
        "flag": "INTEGER DEFAULT 0",
        "bytes": "BLOB",
        "blob": "BLOB",
        "form": "INTEGER DEFAULT 0",
    },
    updated=" WITHOUT ROWID",
)
_INDEXES: Final = {
    # The TypeScript driver's own, of its name and columns: it makes it again if it is missing.
    "idx_events_session_order": "INDEX idx_events_session_order ON events(session_id, event_index, id)",
    "idx_events_session_index": "UNIQUE INDEX idx_events_session_index ON events(session_id, event_index)",
    "idx_sessions_order": "INDEX idx_sessions_order ON sessions(created_at, id)",
}
_EVENT_NAMES: Final = frozenset(names(EVENT_COLUMNS))
# The oldest files have no numbers.
_EVENT_ESSENTIALS: Final = _EVENT_NAMES - {"event_index"}

_ID: Final = columns("id integer")
_STORE_VERSION_1: Final = (
    _DEFINITION.table(
        "{store_sessions}", STORE_SESSION_COLUMNS + columns("deleted flag"), "key", unique="session_id"
    ),
    _DEFINITION.index("store_sessions_native", "store_sessions", "agent, native_session_id, key"),
    _DEFINITION.table("{store_events}", _ID + STORE_EVENT_COLUMNS, "id"),
    _DEFINITION.table("{store_envelopes}", _ID + STORE_ENVELOPE_COLUMNS, "id"),
    *_DEFINITION.server_tables(),
    _DEFINITION.table(
        "store_texts",
        columns("id integer, key integer, sequence integer, time integer, scope text, text text"),
        "id",
        unique="key, sequence",
    ),
    """
CREATE VIRTUAL TABLE store_text_index USING fts5(
  text, scope, content='store_texts', content_rowid='id', tokenize="unicode61 remove_diacritics 2"
)""",
    "INSERT INTO store_text_index (store_text_index, rank) VALUES ('usermerge', 2)",
    "INSERT INTO store_meta (name, value) VALUES ('last_key', 0)",
)
STORE_MIGRATIONS: Final = (_STORE_VERSION_1,)
STORE_VERSION: Final = len(STORE_MIGRATIONS)


def prepare_store(connection: sqlite3.Connection) -> None:
    """Make the SDK's tables, or migrate those of an older file, in one transaction.

    A file that needs nothing is not written to. After a crash in the middle the file is as it was.

    Raises:
        PersistError: a newer version wrote the file, or its tables are not a session store's.
        sqlite3.Error: the file can't be read, or can't be written and needs to be.
    """
    if run(connection, _is_current):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Again, now that no other process can write: one may have been faster.
        if not run(connection, _is_current):
            run(connection, _migrate)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _columns_of(table: str) -> Work[dict[str, str]]:
    """Return the declared type of each column, in capitals; empty where there is no such table."""
    rows = yield Query("SELECT name, upper(trim(type)) FROM pragma_table_info($1)", (table,))
    return dict(rows)


def _is_current() -> Work[bool]:
    rows = yield Query("PRAGMA user_version")
    version: int = rows[0][0]
    refuse_newer(version, SCHEMA_VERSION, "name another file")
    if version != SCHEMA_VERSION:
        return False
    sessions, events = (yield from _columns_of("sessions")), (yield from _columns_of("events"))
    indexes = yield Query("SELECT name FROM sqlite_master WHERE type = 'index'")
    return (
        sessions.keys() >= set(names(SESSION_COLUMNS))
        and events.keys() >= _EVENT_NAMES
        and {name for (name,) in indexes} >= _INDEXES.keys()
    )


def _migrate() -> Work[None]:
    there = yield from _columns_of("sessions")
    yield from _DEFINITION.complete_table("sessions", there, names(SESSION_ESSENTIALS), "file")
    yield from _migrate_events()
    yield from number_uniquely()
    for name, definition in _INDEXES.items():
        yield Command(f"DROP INDEX IF EXISTS {name}")
        yield Command(f"CREATE {definition}")
    yield Command(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _migrate_events() -> Work[None]:
    there = yield from _columns_of("events")
    if there:
        check_columns("events", there, _EVENT_ESSENTIALS, "file")
        if there["id"] != "TEXT" or "event_index" not in there:
            yield Command("ALTER TABLE events RENAME TO events_legacy")
            there = {}
    yield from _DEFINITION.complete_table("events", there, _EVENT_ESSENTIALS, "file")
    # The TypeScript driver rebuilds outside a transaction, so a table may be left from its crash too.
    legacy = yield from _columns_of("events_legacy")
    if legacy:
        check_columns("events_legacy", legacy, _EVENT_ESSENTIALS, "file")
        position = "ROW_NUMBER() OVER (PARTITION BY session_id ORDER BY created_at, id)"
        index = f"COALESCE(event_index, {position})" if "event_index" in legacy else position
        yield Command(
            f"""
            INSERT INTO events (id, event_index, session_id, created_at, connection_id, sender, payload_json)
            SELECT
              CAST(id AS TEXT), {index} AS position, session_id, created_at, connection_id, sender,
              payload_json
            FROM events_legacy
            WHERE CAST(id AS TEXT) NOT IN (SELECT id FROM events)
            ORDER BY session_id, position, created_at, id
            """
        )
        yield Command("DROP TABLE events_legacy")


def migrate() -> Work[None]:
    """Create the server's tables, or bring those of an older version up to date.

    Raises:
        PersistError: a newer version made them.
    """
    yield Command("CREATE TABLE IF NOT EXISTS store_meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID")
    yield from migrate_server(STORE_MIGRATIONS, "give --store another path")


def require_features(connection: sqlite3.Connection) -> None:
    """Check what this Python's SQLite can do.

    Raises:
        PersistError: it is too old, or made without full text search.
    """
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        oldest = ".".join(map(str, _OLDEST_SQLITE))
        raise PersistError(
            f"this Python's SQLite is {sqlite3.sqlite_version} and the store needs {oldest}: "
            "use a newer Python"
        )
    try:
        connection.execute("SELECT json_group_array(json_array(value)) FROM json_each('[]')").fetchone()
    except sqlite3.OperationalError as error:
        raise PersistError(
            "this Python's SQLite was made without its JSON functions, which the store needs: "
            "use a Python from python.org, uv or your distribution"
        ) from error
    query = "SELECT 1 FROM pragma_module_list WHERE name = ?"
    if connection.execute(query, (_FULL_TEXT,)).fetchone() is None:
        raise PersistError(
            "this Python's SQLite was made without full text search (FTS5), which the store needs: "
            "use a Python from python.org, uv or your distribution"
        )
