"""The tables of the server's store in an SQLite file, and how older files become such.

Every name begins with ``store_``: the file also holds feed segments, and may be one that an SDK's driver
keeps its own tables in.

**Clustering.** Events and envelopes have one INTEGER PRIMARY KEY each, ``session key << 32 | sequence`` (or
``| index``): unique by definition, a session's rows lie side by side, and any place in it is one descent
of the tree. A session has room for 2**32 events.

**Folding**, for which there is room though it isn't done yet: the deltas of an item join to the text of its
``item.completed``. Once its turn is over, a delta's ``data`` can be replaced by where its text is (the
completed event's sequence, the part, start and length), and ``form`` says so. The row stays, so every
sequence stays valid and contiguous. An envelope folds like that into an event. In version 1 ``form`` is 0
everywhere: ``data`` is the whole of it.

**Search.** ``store_texts.id`` is ``time << 12 | n``: the index is read newest first, and a time range is a
range of ids. ``scope`` holds a word for the session and one for its agent, so the index itself filters by
them. The index's words are in the text's row (external content).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sql.tables import (
    PERMISSION_COLUMNS,
    SNAPSHOT_COLUMNS,
    STORE_ENVELOPE_COLUMNS,
    STORE_EVENT_COLUMNS,
    STORE_SESSION_COLUMNS,
    TURN_COLUMNS,
    create_table,
)
from sandbox_agent.persist.sql.work import Column

# UPSERT with several rows, FTS5's column filters and SQLite's 32,766 parameters: Debian 11 has 3.34.
_OLDEST_SQLITE: Final = (3, 32, 0)
_FULL_TEXT: Final = "fts5"

_TYPES: Final = {
    "text": "TEXT",
    "integer": "INTEGER",
    "boolean": "INTEGER",
    "bytes": "BLOB",
    "blob": "BLOB",
    "form": "INTEGER",
}
_KEY: Final = "key INTEGER PRIMARY KEY"
_ID: Final = "id INTEGER PRIMARY KEY"


def _lines(columns: Sequence[Column]) -> list[str]:
    return [
        f"{column.name} {_TYPES[column.kind]}"
        + ("" if column.optional else " NOT NULL")
        + (" DEFAULT 0" if column.kind == "form" else "")
        for column in columns
    ]


def _session_lines() -> list[str]:
    _, name, *others = _lines(STORE_SESSION_COLUMNS)
    return [_KEY, f"{name} UNIQUE", *others, "deleted INTEGER NOT NULL DEFAULT 0"]


_VERSION_1: Final = (
    create_table("store_sessions", _session_lines()),
    "CREATE INDEX store_sessions_native ON store_sessions (agent, native_session_id, key)",
    # What a delete that was interrupted has left to do.
    "CREATE INDEX store_sessions_deleted ON store_sessions (key) WHERE deleted",
    create_table("store_events", [_ID, *_lines(STORE_EVENT_COLUMNS)]),
    create_table("store_envelopes", [_ID, *_lines(STORE_ENVELOPE_COLUMNS)]),
    create_table("store_snapshots", [_KEY, *_lines(SNAPSHOT_COLUMNS[1:])]),
    create_table(
        "store_turns",
        [*_lines(TURN_COLUMNS), "PRIMARY KEY (key, turn_id)", "UNIQUE (key, idempotency_key)"],
        ") WITHOUT ROWID",
    ),
    "CREATE INDEX store_turns_number ON store_turns (key, number)",
    "CREATE INDEX store_turns_open ON store_turns (key, number) WHERE state IN ('accepted', 'running')",
    create_table(
        "store_permissions",
        [*_lines(PERMISSION_COLUMNS), "PRIMARY KEY (key, permission_id)"],
        ") WITHOUT ROWID",
    ),
    "CREATE INDEX store_permissions_pending ON store_permissions (requested_at) WHERE answered IS NULL",
    """
CREATE TABLE store_texts (
  id INTEGER PRIMARY KEY,
  key INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  time INTEGER NOT NULL,
  scope TEXT NOT NULL,
  text TEXT NOT NULL,
  UNIQUE (key, sequence)
)""",
    """
CREATE VIRTUAL TABLE store_text_index USING fts5(
  text, scope, content='store_texts', content_rowid='id', tokenize="unicode61 remove_diacritics 2"
)""",
    "INSERT INTO store_text_index (store_text_index, rank) VALUES ('usermerge', 2)",
    "INSERT INTO store_meta (name, value) VALUES ('last_key', 0)",
)


def _make_version_1(connection: sqlite3.Connection) -> None:
    for statement in _VERSION_1:
        connection.execute(statement)


# Number n makes version n out of version n - 1; 0 is a file without a store.
MIGRATIONS: Final[Sequence[Callable[[sqlite3.Connection], None]]] = (_make_version_1,)
SCHEMA_VERSION: Final = len(MIGRATIONS)


def migrate(connection: sqlite3.Connection) -> None:
    """Make the tables, or bring those of an older version up to date; in the caller's transaction.

    Raises:
        PersistError: a newer version made them.
    """
    connection.execute("CREATE TABLE IF NOT EXISTS store_meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID")
    found = connection.execute("SELECT value FROM store_meta WHERE name = 'schema_version'").fetchone()
    version = int(found[0]) if found else 0
    if version > SCHEMA_VERSION:
        raise PersistError(
            f"the store is of schema version {version} and this release reads up to {SCHEMA_VERSION}: "
            "upgrade sandbox-agent-py, or give --store another path"
        )
    for step in MIGRATIONS[version:]:
        step(connection)
    if version < SCHEMA_VERSION:
        connection.execute(
            "INSERT OR REPLACE INTO store_meta (name, value) VALUES ('schema_version', ?)", (SCHEMA_VERSION,)
        )


def check_version(connection: sqlite3.Connection) -> None:
    """Check that the tables are of this version, for a store that only reads them.

    Raises:
        PersistError: they are not.
    """
    found = connection.execute("SELECT value FROM store_meta WHERE name = 'schema_version'").fetchone()
    version = int(found[0]) if found else 0
    if version != SCHEMA_VERSION:
        raise PersistError(
            f"the store is of schema version {version} and this release reads {SCHEMA_VERSION}: "
            f"{'upgrade sandbox-agent-py' if version > SCHEMA_VERSION else 'start its server once'}"
        )


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
