"""The tables of the server's stores in a PostgreSQL database, and how older ones become such.

Every name begins with ``store_``, so they may share a schema with an SDK's driver. Several servers share the
tables: each owns a namespace, whose number is the first column of every key.

**Names** (of sessions, turns, permissions) come from strangers and may be longer than an index takes, so each
has a digest beside it that is indexed.

**Text** that PostgreSQL can't hold (a null character) is escaped; JSON is bytes, as it came.

**Search.** ``words`` are made here and not by PostgreSQL, so that all stores find the same, whatever the
database's language. It also holds a word for the namespace. ``folded`` are the words of an item that is too
long for their places to be kept in ``words``: phrases are looked for in it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.library import Connection

__all__ = ["DEFAULT_SCHEMA", "SCHEMA_VERSION", "Sql", "check_version", "in_schema", "lock_class", "migrate"]

DEFAULT_SCHEMA: Final = "public"
_MAX_NAME: Final = 63

# Puts the schema before the names in a statement: "@.store_events".
Sql = Callable[[str], str]

_VERSION_1: Final = """
CREATE TABLE @.store_namespaces (
  number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  name text NOT NULL UNIQUE,
  generation bigint NOT NULL DEFAULT 0,
  owner text NOT NULL DEFAULT '',
  owned_at timestamptz,
  lease_until timestamptz,
  last_key bigint NOT NULL DEFAULT 0,
  bytes bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 10);
CREATE TABLE @.store_sessions (
  namespace integer NOT NULL,
  key bigint NOT NULL,
  session_id text,
  session_digest bytea,
  agent text NOT NULL,
  created_at bigint NOT NULL,
  updated_at bigint NOT NULL,
  managed boolean NOT NULL,
  native_session_id text,
  native_digest bytea,
  server_id text,
  directory text,
  title text,
  model text,
  agent_mode text NOT NULL,
  permission_mode text NOT NULL,
  variant text,
  ended boolean NOT NULL,
  first_sequence bigint NOT NULL,
  last_sequence bigint NOT NULL,
  last_envelope bigint NOT NULL,
  usage bytea,
  settings bytea,
  deleted boolean NOT NULL DEFAULT false,
  PRIMARY KEY (namespace, key)
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX store_sessions_name ON @.store_sessions (namespace, session_digest);
CREATE INDEX store_sessions_native ON @.store_sessions (namespace, native_digest, key);
CREATE INDEX store_sessions_deleted ON @.store_sessions (namespace, key) WHERE deleted;
CREATE TABLE @.store_events (
  namespace integer NOT NULL,
  key bigint NOT NULL,
  sequence bigint NOT NULL,
  time bigint NOT NULL,
  type text NOT NULL,
  envelope bigint NOT NULL,
  form smallint NOT NULL DEFAULT 0,
  data bytea NOT NULL,
  PRIMARY KEY (namespace, key, sequence)
);
CREATE TABLE @.store_envelopes (
  namespace integer NOT NULL,
  key bigint NOT NULL,
  index bigint NOT NULL,
  time bigint NOT NULL,
  sender text NOT NULL,
  connection_id text NOT NULL,
  form smallint NOT NULL DEFAULT 0,
  data bytea NOT NULL,
  PRIMARY KEY (namespace, key, index)
);
CREATE TABLE @.store_snapshots (
  namespace integer NOT NULL,
  key bigint NOT NULL,
  envelope bigint NOT NULL,
  sequence bigint NOT NULL,
  data bytea NOT NULL,
  PRIMARY KEY (namespace, key)
);
CREATE TABLE @.store_turns (
  namespace integer NOT NULL,
  key bigint NOT NULL,
  turn_id text NOT NULL,
  turn_digest bytea NOT NULL,
  number bigint NOT NULL,
  state text NOT NULL,
  created_at bigint NOT NULL,
  prompt bytea NOT NULL,
  digest bytea NOT NULL,
  idempotency_key text,
  idempotency_digest bytea,
  started_at bigint,
  ended_at bigint,
  stop_reason text,
  error text,
  first_sequence bigint,
  last_sequence bigint,
  usage bytea,
  PRIMARY KEY (namespace, key, turn_digest),
  UNIQUE (namespace, key, idempotency_digest)
) WITH (fillfactor = 70);
CREATE INDEX store_turns_number ON @.store_turns (namespace, key, number);
CREATE INDEX store_turns_open ON @.store_turns (namespace, key, number)
  WHERE state IN ('accepted', 'running');
CREATE TABLE @.store_permissions (
  namespace integer NOT NULL,
  key bigint NOT NULL,
  permission_id text NOT NULL,
  permission_digest bytea NOT NULL,
  kind text NOT NULL,
  request_id bytea NOT NULL,
  connection_id text NOT NULL,
  sequence bigint NOT NULL,
  action text NOT NULL,
  metadata bytea NOT NULL,
  requested_at bigint NOT NULL,
  expires_at bigint,
  answered text,
  answered_at bigint,
  answered_by text,
  PRIMARY KEY (namespace, key, permission_digest)
) WITH (fillfactor = 70);
CREATE INDEX store_permissions_pending ON @.store_permissions (namespace, requested_at)
  WHERE answered IS NULL;
CREATE TABLE @.store_texts (
  namespace integer NOT NULL,
  key bigint NOT NULL,
  sequence bigint NOT NULL,
  time bigint NOT NULL,
  text text NOT NULL,
  folded text,
  words tsvector NOT NULL,
  PRIMARY KEY (namespace, key, sequence)
);
CREATE INDEX store_texts_time ON @.store_texts (namespace, time, sequence);
CREATE INDEX store_texts_words ON @.store_texts USING gin (words)
"""

# Number n makes version n out of version n - 1; 0 is a database without a store.
_MIGRATIONS: Final = (_VERSION_1,)
SCHEMA_VERSION: Final = len(_MIGRATIONS)


def in_schema(schema: str) -> Sql:
    """Return what puts the schema's name before those of the tables.

    Raises:
        ValueError: PostgreSQL can't have a schema of that name.
    """
    if not schema or "\0" in schema or len(schema.encode()) > _MAX_NAME:
        raise ValueError(f"a schema's name has 1 to {_MAX_NAME} bytes and no null character: {schema!r}")
    quoted = '"' + schema.replace('"', '""') + '".'
    return lambda statement: statement.replace("@.", quoted)


def lock_class(schema: str) -> int:
    """Return the first number of the advisory locks of a schema's stores; the second is the namespace's."""
    digest = hashlib.blake2s(f"sandbox-agent store {schema}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, signed=True)


async def check_version(connection: Connection, schema: str) -> None:
    """Check that there are tables of this version, for whoever reads them only.

    Raises:
        PersistError: there are none, or of another version.
    """
    sql = in_schema(schema)
    there = await connection.fetchval("SELECT to_regclass($1)::text", sql("@.store_meta"))
    version = 0
    if there is not None:
        statement = sql("SELECT value FROM @.store_meta WHERE name = 'schema_version'")
        version = int(await connection.fetchval(statement) or 0)
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
    sql = in_schema(schema)
    async with connection.transaction():
        # One at a time; those who come second find it done.
        await connection.execute(f"SELECT pg_advisory_xact_lock({lock_class(schema)}, 0)")
        if not await connection.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", schema):
            await connection.execute(sql("CREATE SCHEMA @.").rstrip("."))
        there = await connection.fetchval(
            "SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = 'store_meta'", schema
        )
        if not there:
            await connection.execute(
                sql("CREATE TABLE @.store_meta (name text PRIMARY KEY, value bigint NOT NULL)")
            )
        found = await connection.fetchval(sql("SELECT value FROM @.store_meta WHERE name = 'schema_version'"))
        version = int(found or 0)
        if version > SCHEMA_VERSION:
            raise PersistError(
                f"the store is of schema version {version} and this release reads up to {SCHEMA_VERSION}: "
                "upgrade sandbox-agent-py, or give --store another database"
            )
        for step in _MIGRATIONS[version:]:
            await connection.execute(sql(step))
        if version < SCHEMA_VERSION:
            await connection.execute(
                sql(
                    "INSERT INTO @.store_meta (name, value) VALUES ('schema_version', $1) "
                    "ON CONFLICT (name) DO UPDATE SET value = excluded.value"
                ),
                SCHEMA_VERSION,
            )
