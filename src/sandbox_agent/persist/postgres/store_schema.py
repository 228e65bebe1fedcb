"""The tables of the server's stores in a PostgreSQL database, and how older ones become such.

Every name begins with ``store_``, so they may share a schema with an SDK's driver. Several servers share the
tables: each owns a namespace, whose number is the first column of every key.

**Names** (of sessions, turns, permissions) come from strangers and may be longer than an index allows, so
each has a digest beside it that is indexed.

**Text** that PostgreSQL can't hold (a null character) is escaped; JSON is bytes, as it came.

**Search.** ``words`` are made here and not by PostgreSQL, so that all stores find the same, whatever the
database's language. It also holds a word for the namespace. ``folded`` are the words of an item that is too
long for their places to be kept in ``words``: phrases are searched in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.library import Connection
from sandbox_agent.persist.postgres.schema import quoted
from sandbox_agent.persist.sql.tables import (
    DIGESTS,
    PERMISSION_COLUMNS,
    SNAPSHOT_COLUMNS,
    STORE_ENVELOPE_COLUMNS,
    STORE_EVENT_COLUMNS,
    STORE_SESSION_COLUMNS,
    TURN_COLUMNS,
    create_table,
)
from sandbox_agent.persist.sql.work import Column, columns

DEFAULT_SCHEMA: Final = "public"

_TYPES: Final = {
    "text": "text",
    "integer": "bigint",
    "boolean": "boolean",
    "bytes": "bytea",
    "blob": "bytea",
    "form": "smallint",
    "tsvector": "tsvector",
}
# Rows that are replaced often have room beside them.
_CHANGING: Final = ") WITH (fillfactor = 70)"


def _table(name: str, table_columns: Sequence[Column], constraints: Sequence[str], tail: str = ")") -> str:
    lines = ["namespace integer NOT NULL"]
    for column in table_columns:
        lines.append(
            f"{column.name} {_TYPES[column.kind]}"
            + ("" if column.optional else " NOT NULL")
            + (" DEFAULT 0" if column.kind == "form" else "")
        )
        if column.name in DIGESTS:
            lines.append(f"{DIGESTS[column.name]} bytea" + ("" if column.optional else " NOT NULL"))
    return create_table(f"@.{name}", [*lines, *constraints], tail)


_VERSION_1: Final = ";".join(
    (
        """
CREATE TABLE @.store_namespaces (
  number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text NOT NULL UNIQUE,
  generation bigint NOT NULL DEFAULT 0,
  owner text NOT NULL DEFAULT '',
  owned_at timestamptz,
  lease_until timestamptz,
  last_key bigint NOT NULL DEFAULT 0,
  bytes bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10)""",
        _table(
            "store_sessions",
            STORE_SESSION_COLUMNS,
            ("deleted boolean NOT NULL DEFAULT false", "PRIMARY KEY (namespace, key)"),
            _CHANGING,
        ),
        "CREATE UNIQUE INDEX store_sessions_name ON @.store_sessions (namespace, session_digest)",
        "CREATE INDEX store_sessions_native ON @.store_sessions (namespace, native_digest, key)",
        "CREATE INDEX store_sessions_deleted ON @.store_sessions (namespace, key) WHERE deleted",
        _table(
            "store_events",
            columns("key integer, sequence integer") + STORE_EVENT_COLUMNS,
            ("PRIMARY KEY (namespace, key, sequence)",),
        ),
        _table(
            "store_envelopes",
            columns("key integer, index integer") + STORE_ENVELOPE_COLUMNS,
            ("PRIMARY KEY (namespace, key, index)",),
        ),
        _table("store_snapshots", SNAPSHOT_COLUMNS, ("PRIMARY KEY (namespace, key)",)),
        _table(
            "store_turns",
            TURN_COLUMNS,
            ("PRIMARY KEY (namespace, key, turn_digest)", "UNIQUE (namespace, key, idempotency_digest)"),
            _CHANGING,
        ),
        "CREATE INDEX store_turns_number ON @.store_turns (namespace, key, number)",
        """
CREATE INDEX store_turns_open ON @.store_turns (namespace, key, number)
  WHERE state IN ('accepted', 'running')""",
        _table(
            "store_permissions",
            PERMISSION_COLUMNS,
            ("PRIMARY KEY (namespace, key, permission_digest)",),
            _CHANGING,
        ),
        """
CREATE INDEX store_permissions_pending ON @.store_permissions (namespace, requested_at)
  WHERE answered IS NULL""",
        _table(
            "store_texts",
            columns("key integer, sequence integer, time integer, text text, folded text?, words tsvector"),
            ("PRIMARY KEY (namespace, key, sequence)",),
        ),
        "CREATE INDEX store_texts_time ON @.store_texts (namespace, time, sequence)",
        "CREATE INDEX store_texts_words ON @.store_texts USING gin (words)",
    )
)

# Number n makes version n out of version n - 1; 0 is a database without a store.
_MIGRATIONS: Final = (_VERSION_1,)
SCHEMA_VERSION: Final = len(_MIGRATIONS)


def lock_class(schema: str) -> int:
    """Return the first number of the advisory locks of a schema's stores; the second is the namespace's."""
    digest = hashlib.blake2s(f"sandbox-agent store {schema}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, signed=True)


async def check_version(connection: Connection, schema: str) -> None:
    """Check that there are tables of this version, for a store that only reads them.

    Raises:
        PersistError: there are none, or of another version.
    """
    place = quoted(schema)
    there = await connection.fetchval("SELECT to_regclass($1)::text", f"{place}.store_meta")
    version = 0
    if there is not None:
        version = await _version(connection, place)
    if version == 0:
        raise PersistError(
            f"the database holds no server's store in its schema '{schema}': name the one that a server "
            "was given by --store"
        )
    if version != SCHEMA_VERSION:
        raise PersistError(
            f"the store is of schema version {version} and this release reads {SCHEMA_VERSION}: "
            f"{'upgrade sandbox-agent-py' if version > SCHEMA_VERSION else 'start its server once'}"
        )


async def migrate(connection: Connection, schema: str) -> None:
    """Make the tables, or bring those of an older version up to date.

    Raises:
        PersistError: a newer version made them.
    """
    place = quoted(schema)
    async with connection.transaction():
        # One at a time; the second one finds it done.
        await connection.execute(f"SELECT pg_advisory_xact_lock({lock_class(schema)}, 0)")
        if not await connection.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", schema):
            await connection.execute(f"CREATE SCHEMA {place}")
        there = await connection.fetchval(
            "SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = 'store_meta'", schema
        )
        if not there:
            await connection.execute(
                f"CREATE TABLE {place}.store_meta (name text PRIMARY KEY, value bigint NOT NULL)"
            )
        version = await _version(connection, place)
        if version > SCHEMA_VERSION:
            raise PersistError(
                f"the store is of schema version {version} and this release reads up to {SCHEMA_VERSION}: "
                "upgrade sandbox-agent-py, or give --store another database"
            )
        for step in _MIGRATIONS[version:]:
            await connection.execute(step.replace("@.", f"{place}."))
        if version < SCHEMA_VERSION:
            await connection.execute(
                f"INSERT INTO {place}.store_meta (name, value) VALUES ('schema_version', $1) "
                "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                SCHEMA_VERSION,
            )


async def _version(connection: Connection, place: str) -> int:
    statement = f"SELECT value FROM {place}.store_meta WHERE name = 'schema_version'"
    return int(await connection.fetchval(statement) or 0)
