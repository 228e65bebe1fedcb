"""The tables of a PostgreSQL database, the SDK's and the server's, and how older ones become such.

**The SDK's.** The names and columns are those that the TypeScript drivers use, so both open one database.
JSON is kept in ``json`` columns, which keep the text as it came; ``jsonb`` columns are changed to that, as
they refuse an escaped null character and lose the order and spelling of the rest. JavaScript's client reads
both alike.

**The server's.** Every name begins with ``store_``, so they may share a schema with an SDK's driver. Several
servers share the tables: each owns a namespace, whose number is the first column of every key.

Names (of sessions, turns, permissions) come from strangers and may be longer than an index allows, so each
has a digest beside it that is indexed. Text that PostgreSQL can't hold (a null character) is escaped; JSON is
bytes, as it came.

``words`` are made here and not by PostgreSQL, so that all stores find the same, whatever the database's
language. It also holds a word for the namespace. ``folded`` are the words of an item that is too long for
their places to be kept in ``words``: phrases are searched in it.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sql.tables import (
    DIGESTS,
    EVENT_COLUMNS,
    SDK_TABLES,
    SESSION_ESSENTIALS,
    STORE_ENVELOPE_COLUMNS,
    STORE_EVENT_COLUMNS,
    STORE_SESSION_COLUMNS,
    Definition,
    check_server_version,
    migrate_server,
    names,
    number_uniquely,
    refuse_newer,
    server_version,
)
from sandbox_agent.persist.sql.work import Command, Query, Row, Work, columns

DEFAULT_SCHEMA: Final = "public"
# Of the SDK's tables.
SCHEMA_VERSION: Final = 2
# What PostgreSQL cuts names to, in bytes.
_MAX_NAME: Final = 63

_TYPES: Final = {
    "text": "text",
    "json": "json",
    "integer": "bigint",
    "boolean": "boolean",
    "flag": "boolean DEFAULT false",
    "bytes": "bytea",
    "blob": "bytea",
    "form": "smallint DEFAULT 0",
    "tsvector": "tsvector",
}
_SDK: Final = Definition(_TYPES)
_SERVER: Final = Definition(_TYPES, "namespace", DIGESTS, " WITH (fillfactor = 70)")
# created_at holds milliseconds, event_index any position: more than 32 bits.
_WIDENED: Final = {"jsonb": "json", "smallint": "bigint", "integer": "bigint"}
# Of each session its writer's generation, its last index, how often it was deleted, and the head of its
# chain if it is encrypted; what was said, for searching, and up to which event that is there; the version
# of the tables, and what identifies this store.
_MORE_SDK_TABLES: Final = """
CREATE UNIQUE INDEX IF NOT EXISTS idx_events_session_index ON {events} (session_id, event_index);
CREATE INDEX IF NOT EXISTS idx_sessions_order ON {sessions} (created_at, id COLLATE "C");
CREATE TABLE IF NOT EXISTS {session_writers} (
  session_id TEXT PRIMARY KEY,
  generation BIGINT NOT NULL DEFAULT 0,
  last_index BIGINT NOT NULL DEFAULT 0,
  deletions BIGINT NOT NULL DEFAULT 0,
  head_time BIGINT,
  head TEXT
) WITH (fillfactor = 60);
ALTER TABLE {session_writers} ADD COLUMN IF NOT EXISTS head_time BIGINT, ADD COLUMN IF NOT EXISTS head TEXT;
CREATE TABLE IF NOT EXISTS {session_texts} (
  session_id TEXT NOT NULL,
  event_index BIGINT NOT NULL,
  created_at BIGINT NOT NULL,
  body TEXT NOT NULL,
  words TSVECTOR,
  PRIMARY KEY (session_id, event_index)
);
CREATE INDEX IF NOT EXISTS idx_session_texts_words ON {session_texts} USING GIN (words);
CREATE TABLE IF NOT EXISTS {extents} (
  session_id TEXT PRIMARY KEY,
  resume_at BIGINT NOT NULL,
  last_index BIGINT NOT NULL,
  last_id TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS {session_store} (
  id INTEGER PRIMARY KEY CHECK (id = 1),
  version INTEGER NOT NULL,
  store_id TEXT NOT NULL
);
"""
_STORE_VERSION_1: Final = (
    """
CREATE TABLE {store_namespaces} (
  number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text NOT NULL UNIQUE,
  generation bigint NOT NULL DEFAULT 0,
  owner text NOT NULL DEFAULT '',
  owned_at timestamptz,
  lease_until timestamptz,
  last_key bigint NOT NULL DEFAULT 0,
  bytes bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10)""",
    _SERVER.table(
        "{store_sessions}", STORE_SESSION_COLUMNS + columns("deleted flag"), "key", tail=_SERVER.updated
    ),
    "CREATE UNIQUE INDEX store_sessions_name ON {store_sessions} (namespace, session_digest)",
    _SERVER.index("store_sessions_native", "store_sessions", "native_session_id, key"),
    _SERVER.table(
        "{store_events}", columns("key integer, sequence integer") + STORE_EVENT_COLUMNS, "key, sequence"
    ),
    _SERVER.table(
        "{store_envelopes}", columns("key integer, index integer") + STORE_ENVELOPE_COLUMNS, "key, index"
    ),
    *_SERVER.server_tables(),
    _SERVER.table(
        "{store_texts}",
        columns("key integer, sequence integer, time integer, text text, folded text?, words tsvector"),
        "key, sequence",
    ),
    _SERVER.index("store_texts_time", "store_texts", "time, sequence"),
    "CREATE INDEX store_texts_words ON {store_texts} USING gin (words)",
)
_STORE_MIGRATIONS: Final = (_STORE_VERSION_1,)
# Asked of the catalogue's rows: to_regclass() may not yet know of what another one has just made.
_HAS_TABLE: Final = """
SELECT 1 FROM pg_catalog.pg_class AS class JOIN pg_catalog.pg_namespace AS place
  ON place.oid = class.relnamespace WHERE place.nspname = $1 AND class.relname = $2
"""
_TYPES_OF: Final = """
SELECT column_name::text, data_type::text FROM information_schema.columns
WHERE table_schema = $1 AND table_name = $2
"""


def quoted(name: str) -> str:
    """Return a name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


def quoted_schema(schema: str) -> str:
    """Return a schema's name as SQL has it.

    Raises:
        ValueError: PostgreSQL can't have a schema of that name.
    """
    if not schema or "\0" in schema or len(schema.encode()) > _MAX_NAME:
        raise ValueError(f"a schema's name has 1 to {_MAX_NAME} bytes and no null character: {schema!r}")
    return quoted(schema)


def mark(text: str) -> str:
    """Return eight letters that stand for a session (or a schema) in notifications."""
    return hashlib.blake2s(text.encode("utf-8", "replace"), digest_size=4).hexdigest()


def lock_number(text: str, size: int = 8) -> int:
    """Return the number of an advisory lock, which has that many bytes."""
    digest = hashlib.blake2s(f"sandbox-agent {text}".encode("utf-8", "replace"), digest_size=size).digest()
    return int.from_bytes(digest, signed=True)


def store_lock(schema: str) -> int:
    """Return the first number of the advisory locks of a schema's server stores.

    The second is that of the namespace, or 0 for the tables.
    """
    return lock_number(f"store {schema}", 4)


def prepare_store(schema: str) -> Work[str]:
    """Create the SDK's tables or migrate them, and return the store's identity.

    A store that needs nothing is not written to. Two that begin at once wait for each other.

    Raises:
        PersistError: a newer version wrote the store, or the tables are another program's.
    """
    found = yield from _identity(schema)
    if found is not None:
        return found
    yield Command(f"SELECT pg_advisory_xact_lock({lock_number(schema)})")
    # Again, now that no other process makes them: one may have been faster.
    found = yield from _identity(schema)
    if found is not None:
        return found
    yield from _create_schema(schema)
    for name, essentials in (("sessions", SESSION_ESSENTIALS), ("events", EVENT_COLUMNS)):
        rows = yield Query(_TYPES_OF, (schema, name))
        there: dict[str, str] = dict(rows)
        yield from _SDK.complete_table(name, there, names(essentials), f"schema '{schema}'")
        changes = [
            f"ALTER COLUMN {column} TYPE {_TYPES[kind]} USING {column}::text::{_TYPES[kind]}"
            for column, kind, _ in SDK_TABLES[name]
            if _WIDENED.get(there.get(column, "")) == _TYPES[kind]
        ]
        if changes:
            yield Command(f"ALTER TABLE {{{name}}} {', '.join(changes)}")
    yield from number_uniquely()
    yield Command(_MORE_SDK_TABLES)
    made = yield Query(
        "INSERT INTO {session_store} (id, version, store_id) VALUES (1, $1, $2) "
        "ON CONFLICT (id) DO UPDATE SET version = excluded.version RETURNING store_id",
        (SCHEMA_VERSION, secrets.token_hex(8)),
    )
    return str(made[0][0])


def migrate(schema: str) -> Work[None]:
    """Create the server's tables, or bring those of an older version up to date.

    Raises:
        PersistError: a newer version made them.
    """
    # One at a time; the second one finds it done.
    yield Command(f"SELECT pg_advisory_xact_lock({store_lock(schema)}, 0)")
    yield from _create_schema(schema)
    if not (yield Query(_HAS_TABLE, (schema, "store_meta"))):
        yield Command("CREATE TABLE {store_meta} (name text PRIMARY KEY, value bigint NOT NULL)")
    yield from migrate_server(_STORE_MIGRATIONS, "give --store another database")


def check_version(schema: str) -> Work[None]:
    """Check that there are tables of this version, for a store that only reads them.

    Raises:
        PersistError: there are none, or of another version.
    """
    there = yield Query(_HAS_TABLE, (schema, "store_meta"))
    if not there or not (yield from server_version()):
        raise PersistError(
            f"the database holds no server's store in its schema '{schema}': name the one that a server "
            "was given by --store"
        )
    yield from check_server_version(len(_STORE_MIGRATIONS))


def _identity(schema: str) -> Work[str | None]:
    """Return the store's identity; None if its tables have to be made or migrated."""
    if not (yield Query(_HAS_TABLE, (schema, "session_store"))):
        return None
    rows: list[Row] = yield Query("SELECT version, store_id FROM {session_store}")
    if not rows:
        return None
    version, identity = rows[0]
    refuse_newer(version, SCHEMA_VERSION, "name another schema")
    return str(identity) if version == SCHEMA_VERSION else None


def _create_schema(schema: str) -> Work[None]:
    if not (yield Query("SELECT 1 FROM pg_namespace WHERE nspname = $1", (schema,))):
        yield Command(f"CREATE SCHEMA {quoted(schema)}")
