"""The tables of a PostgreSQL store, and how those of the TypeScript driver become such.

The names and columns are those that the TypeScript drivers use, so both open one database. JSON is kept
in ``json`` columns, which keep the text as it came; ``jsonb`` columns are changed to that, as they refuse
an escaped null character and lose the order and spelling of the rest. JavaScript's client reads both alike.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.library import Connection

SCHEMA_VERSION: Final = 1
STORE_TABLE: Final = "session_store"
# What PostgreSQL cuts names to, in bytes.
_MAX_NAME: Final = 63
_SESSION_COLUMNS: Final = {
    "id": "TEXT PRIMARY KEY",
    "agent": "TEXT NOT NULL",
    "agent_session_id": "TEXT NOT NULL",
    "last_connection_id": "TEXT NOT NULL",
    "created_at": "BIGINT NOT NULL",
}
# Columns that came later, in the order in which they came.
_SESSION_ADDITIONS: Final = {
    "destroyed_at": "BIGINT",
    "sandbox_id": "TEXT",
    "session_init_json": "JSON",
    "config_options_json": "JSON",
    "modes_json": "JSON",
}
_EVENT_COLUMNS: Final = {
    "id": "TEXT PRIMARY KEY",
    "event_index": "BIGINT NOT NULL",
    "session_id": "TEXT NOT NULL",
    "created_at": "BIGINT NOT NULL",
    "connection_id": "TEXT NOT NULL",
    "sender": "TEXT NOT NULL",
    "payload_json": "JSON NOT NULL",
}
# created_at holds milliseconds, event_index any position: more than 32 bits.
_NARROW: Final = frozenset({"smallint", "integer"})


@dataclass(frozen=True, slots=True)
class Tables:
    """The names of a store's tables, quoted for SQL.

    Attributes:
        schema: the schema, as the user wrote it.
        sessions: the records.
        events: the events.
        writers: of each session its writer's generation, its last index, and how often it was deleted.
        store: one row: the version of the tables, and what identifies this store.
        texts: what was said, for searching.
        searched: of each session, up to which event its texts are there.
        channel: what followers listen to.
    """

    schema: str
    sessions: str
    events: str
    writers: str
    store: str
    texts: str
    searched: str
    channel: str

    @classmethod
    def of(cls, schema: str) -> Tables:
        """Return the names in a schema.

        Raises:
            ValueError: PostgreSQL can't have a schema of that name.
        """
        if not schema or "\0" in schema or len(schema.encode()) > _MAX_NAME:
            raise ValueError(f"a schema's name has 1 to {_MAX_NAME} bytes and no null character: {schema!r}")
        place = quoted(schema)
        return cls(
            schema=schema,
            sessions=f"{place}.sessions",
            events=f"{place}.events",
            writers=f"{place}.session_writers",
            store=f"{place}.{STORE_TABLE}",
            texts=f"{place}.session_texts",
            searched=f"{place}.session_searched",
            channel=f"sandbox_agent_{mark(schema)}",
        )


def quoted(name: str) -> str:
    """Return a name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def mark(text: str) -> str:
    """Return eight letters that stand for a session (or a schema) in notifications."""
    return hashlib.blake2s(text.encode("utf-8", "replace"), digest_size=4).hexdigest()


async def prepare_store(connection: Connection, tables: Tables) -> str:
    """Make the tables or migrate them, in one transaction, and return the store's identity.

    A store that needs nothing is not written to. Two that begin at once wait for each other.

    Raises:
        PersistError: a newer version wrote the store, or the tables are another program's.
    """
    async with connection.transaction(isolation="read_committed"):
        found = await _identity(connection, tables)
        if found is not None:
            return found
        lock = int.from_bytes(
            hashlib.blake2s(f"sandbox-agent {tables.schema}".encode(), digest_size=8).digest(), signed=True
        )
        await connection.execute(f"SELECT pg_advisory_xact_lock({lock})")
        # Again, now that no other process makes them: one may have been faster.
        found = await _identity(connection, tables)
        if found is not None:
            return found
        await _migrate(connection, tables)
        identity = secrets.token_hex(8)
        await connection.execute(
            f"INSERT INTO {tables.store} (id, version, store_id) VALUES (1, $1, $2)",
            SCHEMA_VERSION,
            identity,
        )
        return identity


async def _identity(connection: Connection, tables: Tables) -> str | None:
    # Asked of the catalogue's rows: to_regclass() may not yet know of what another one has just made.
    there = await connection.fetchval(
        "SELECT 1 FROM pg_catalog.pg_class AS class JOIN pg_catalog.pg_namespace AS place "
        "ON place.oid = class.relnamespace WHERE place.nspname = $1 AND class.relname = $2",
        tables.schema,
        STORE_TABLE,
    )
    if there is None:
        return None
    row = await connection.fetchrow(f"SELECT version, store_id FROM {tables.store}")
    if row is None:
        return None
    version, identity = row
    if version > SCHEMA_VERSION:
        raise PersistError(
            f"the store is of schema version {version} and this release reads up to {SCHEMA_VERSION}: "
            "upgrade sandbox-agent-py, or name another schema"
        )
    return str(identity)


async def _migrate(connection: Connection, tables: Tables) -> None:
    if not await connection.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", tables.schema):
        await connection.execute(f"CREATE SCHEMA {quoted(tables.schema)}")
    await _make(connection, tables, "sessions", _SESSION_COLUMNS, _SESSION_ADDITIONS)
    await _make(connection, tables, "events", _EVENT_COLUMNS, {})
    await _number_uniquely(connection, tables)
    await connection.execute(f"""
CREATE UNIQUE INDEX IF NOT EXISTS idx_events_session_index ON {tables.events} (session_id, event_index);
CREATE INDEX IF NOT EXISTS idx_sessions_order ON {tables.sessions} (created_at, id COLLATE "C");
CREATE TABLE IF NOT EXISTS {tables.writers} (
  session_id TEXT PRIMARY KEY,
  generation BIGINT NOT NULL DEFAULT 0,
  last_index BIGINT NOT NULL DEFAULT 0,
  deletions BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 60);
CREATE TABLE IF NOT EXISTS {tables.texts} (
  session_id TEXT NOT NULL,
  event_index BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  body TEXT NOT NULL,
  words TSVECTOR,
  PRIMARY KEY (session_id, event_index)
);
CREATE INDEX IF NOT EXISTS idx_session_texts_words ON {tables.texts} USING GIN (words);
CREATE TABLE IF NOT EXISTS {tables.searched} (
  session_id TEXT PRIMARY KEY,
  resume_at BIGINT NOT NULL,
  last_index BIGINT NOT NULL,
  last_id TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS {tables.store} (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  version INTEGER NOT NULL,
  store_id TEXT NOT NULL
);
""")


async def _make(
    connection: Connection, tables: Tables, name: str, columns: dict[str, str], additions: dict[str, str]
) -> None:
    """Make a table, or bring the one that is there up to date."""
    table = f"{quoted(tables.schema)}.{name}"
    there = await _types(connection, tables.schema, name)
    wanted = {**columns, **additions}
    if not there:
        definition = ", ".join(f"{column} {kind}" for column, kind in wanted.items())
        await connection.execute(f"CREATE TABLE {table} ({definition})")
        return
    missing = sorted(columns.keys() - there.keys())
    if missing:
        raise PersistError(
            f"the schema '{tables.schema}' has a table '{name}' without the column(s) {', '.join(missing)}: "
            "it belongs to another program, name another schema for the store"
        )
    changes = [f"ADD COLUMN {column} {kind}" for column, kind in additions.items() if column not in there]
    for column, kind in wanted.items():
        type_ = kind.partition(" ")[0]
        if there.get(column) == "jsonb" or (type_ == "BIGINT" and there.get(column) in _NARROW):
            changes.append(f"ALTER COLUMN {column} TYPE {type_} USING {column}::text::{type_}")
    if changes:
        await connection.execute(f"ALTER TABLE {table} {', '.join(changes)}")


async def _types(connection: Connection, schema: str, table: str) -> dict[str, str]:
    """Return the type of each column; empty where there is no such table."""
    rows = await connection.fetch(
        "SELECT column_name::text, data_type::text FROM information_schema.columns "
        "WHERE table_schema = $1 AND table_name = $2",
        schema,
        table,
    )
    return {str(column): str(kind) for column, kind in rows}


async def _number_uniquely(connection: Connection, tables: Tables) -> None:
    """Renumber the sessions that have an index twice: 1, 2, 3 in the order that they had.

    Two clients of the TypeScript driver, which has no unique index, can write such a store.
    """
    await connection.execute(
        f"""
UPDATE {tables.events} AS event SET event_index = numbered.place
FROM (
  SELECT id, row_number() OVER (PARTITION BY session_id ORDER BY event_index, created_at, id) AS place
  FROM {tables.events}
  WHERE session_id IN (
    SELECT session_id FROM {tables.events} GROUP BY session_id, event_index HAVING count(*) > 1
  )
) AS numbered
WHERE event.id = numbered.id
"""
    )
