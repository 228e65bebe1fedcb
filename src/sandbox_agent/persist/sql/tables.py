"""The tables of both layouts: the SDK's, shared with the TypeScript SDK, and the server's own.

Here is what the engines have in common of them, and of creating and migrating them. An engine adds its types,
and the tables that only it has.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sql.work import Column, Command, Query, Table, Work, columns

# The SDK's layout.
SESSION_ESSENTIALS: Final = columns(
    "id text, agent text, agent_session_id text, last_connection_id text, created_at integer"
)
# Columns that came later, in the order in which they came.
SESSION_ADDITIONS: Final = columns(
    "destroyed_at integer?, sandbox_id text?, session_init_json json?, config_options_json json?, "
    "modes_json json?"
)
SESSION_COLUMNS: Final = SESSION_ESSENTIALS + SESSION_ADDITIONS
EVENT_COLUMNS: Final = columns(
    "id text, event_index integer, session_id text, created_at integer, connection_id text, sender text, "
    "payload_json json"
)
SDK_TABLES: Final[Mapping[str, tuple[Column, ...]]] = {"sessions": SESSION_COLUMNS, "events": EVENT_COLUMNS}


def names(table_columns: Iterable[Column]) -> tuple[str, ...]:
    """Return the names of columns."""
    return tuple(column.name for column in table_columns)


# The server's layout. ``blob`` is JSON kept as bytes, ``bytes`` is anything, ``form`` is 0 in all rows.
STORE_SESSION_COLUMNS: Final = columns(
    "key integer, session_id text?, agent text, created_at integer, updated_at integer, managed boolean, "
    "native_session_id text?, server_id text?, directory text?, title text?, model text?, agent_mode text, "
    "permission_mode text, variant text?, ended boolean, first_sequence integer, last_sequence integer, "
    "last_envelope integer, usage blob?, settings blob?"
)
# Before these an engine has the session's key and the number of the event or envelope.
STORE_EVENT_COLUMNS: Final = columns("time integer, type text, envelope integer, form form, data bytes")
STORE_ENVELOPE_COLUMNS: Final = columns(
    "time integer, sender text, connection_id text, form form, data bytes"
)
SNAPSHOT_COLUMNS: Final = columns("key integer, envelope integer, sequence integer, data bytes")
TURN_COLUMNS: Final = columns(
    "key integer, turn_id text, number integer, state text, created_at integer, prompt blob, digest bytes, "
    "idempotency_key text?, started_at integer?, ended_at integer?, stop_reason text?, error text?, "
    "first_sequence integer?, last_sequence integer?, usage blob?"
)
PERMISSION_COLUMNS: Final = columns(
    "key integer, permission_id text, kind text, request_id blob, connection_id text, sequence integer, "
    "action text, metadata blob, requested_at integer, expires_at integer?, answered text?, "
    "answered_at integer?, answered_by text?"
)
# Names come from strangers and may be long: an engine whose indexes have a limit indexes their digests.
DIGESTS: Final[Mapping[str, str]] = {
    "session_id": "session_digest",
    "native_session_id": "native_digest",
    "turn_id": "turn_digest",
    "idempotency_key": "idempotency_digest",
    "permission_id": "permission_digest",
}


STORE_SESSIONS: Final = Table(
    "{store_sessions}",
    STORE_SESSION_COLUMNS,
    ("key",),
    replace=True,
    scoped=True,
    # A stale row of the recorder's must not bring back what an expiry removed.
    growing=("first_sequence", "last_sequence", "last_envelope"),
    where="WHERE NOT store_sessions.deleted",
    digests=("session_id", "native_session_id"),
)
TURNS: Final = Table(
    "{store_turns}",
    TURN_COLUMNS,
    ("key", "turn_id"),
    replace=True,
    scoped=True,
    digests=("turn_id", "idempotency_key"),
)
PERMISSIONS: Final = Table(
    "{store_permissions}",
    PERMISSION_COLUMNS,
    ("key", "permission_id"),
    replace=True,
    scoped=True,
    digests=("permission_id",),
)
SNAPSHOTS: Final = Table(
    "{store_snapshots}",
    SNAPSHOT_COLUMNS,
    ("key",),
    replace=True,
    scoped=True,
    where="WHERE excluded.envelope >= store_snapshots.envelope",
)

STORE_TABLES: Final = (
    *("store_sessions", "store_events", "store_envelopes"),
    *("store_turns", "store_permissions", "store_snapshots", "store_meta"),
)


def without_form(table_columns: Iterable[Column]) -> tuple[Column, ...]:
    """Return the columns that an insert sets."""
    return tuple(column for column in table_columns if column.kind != "form")


@dataclass(frozen=True, slots=True)
class Definition:
    """How an engine defines tables.

    Attributes:
        types: the type of each kind of column, and what follows NOT NULL after it.
        scope: the column that all keys begin with; empty where they begin with their first column.
        digests: columns of names, and those of their digests, which are indexed instead.
        updated: what follows the definition of a table whose rows are replaced often.
    """

    types: Mapping[str, str]
    scope: str = ""
    digests: Mapping[str, str] = field(default_factory=dict[str, str])
    updated: str = ""

    def key(self, key_columns: str) -> str:
        """Return the columns of a key as they are indexed."""
        indexed = [self.digests.get(name, name) for name in key_columns.split(", ")]
        return ", ".join([self.scope, *indexed] if self.scope else indexed)

    def table(
        self, name: str, table_columns: Iterable[Column], key: str, *, unique: str = "", tail: str = ""
    ) -> str:
        """Return the statement that creates a table.

        Args:
            name: a template.
            table_columns: all but the scope and the digests.
            key: the primary key's columns.
            unique: those of another unique key.
            tail: what follows the definition.
        """
        constraints = {"PRIMARY KEY": self.key(key)} | ({"UNIQUE": self.key(unique)} if unique else {})
        lines = [f"{self.scope} integer NOT NULL"] if self.scope else []
        for column, kind, optional in table_columns:
            # A key of one column is written beside it.
            beside = [constraint for constraint, of in constraints.items() if of == column]
            null = "" if optional or "PRIMARY KEY" in beside else "NOT NULL"
            type_, *default = self.types[kind].split(" ", 1)
            lines.append(" ".join(filter(None, (column, type_, null, *default, *beside))))
            if column in self.digests:
                null = "" if optional else " NOT NULL"
                lines.append(f"{self.digests[column]} {self.types['bytes']}{null}")
            constraints = {constraint: of for constraint, of in constraints.items() if of != column}
        lines += [f"{constraint} ({of})" for constraint, of in constraints.items()]
        return f"CREATE TABLE {name} (\n  " + ",\n  ".join(lines) + f"\n){tail}"

    def index(self, name: str, table: str, key: str, where: str = "") -> str:
        """Return the statement that creates an index."""
        return f"CREATE INDEX {name} ON {{{table}}} ({self.key(key)}){where and f' WHERE {where}'}"

    def server_tables(self) -> list[str]:
        """Return the statements for the server's tables that do not differ otherwise."""
        return [
            self.index("store_sessions_deleted", "store_sessions", "key", "deleted"),
            self.table("{store_snapshots}", SNAPSHOT_COLUMNS, "key"),
            self.table(
                "{store_turns}",
                TURN_COLUMNS,
                "key, turn_id",
                unique="key, idempotency_key",
                tail=self.updated,
            ),
            self.index("store_turns_number", "store_turns", "key, number"),
            self.index("store_turns_open", "store_turns", "key, number", "state IN ('accepted', 'running')"),
            self.table("{store_permissions}", PERMISSION_COLUMNS, "key, permission_id", tail=self.updated),
            self.index("store_permissions_pending", "store_permissions", "requested_at", "answered IS NULL"),
        ]

    def complete_table(
        self, name: str, there: Mapping[str, str], essentials: Collection[str], place: str
    ) -> Work[None]:
        """Create a table of the SDK's layout, or add what came later to one that is there.

        Args:
            name: sessions or events.
            there: the types of its columns; empty where there is none.
            essentials: the columns that it has in all versions.
            place: what has the table, and what another program's is kept in, for errors.

        Raises:
            PersistError: the table is another program's.
        """
        if not there:
            yield Command(self.table(f"{{{name}}}", SDK_TABLES[name], "id"))
            return
        check_columns(name, there, essentials, place)
        for column, kind, _ in SDK_TABLES[name]:
            if column not in there and column not in essentials:
                yield Command(f"ALTER TABLE {{{name}}} ADD COLUMN {column} {self.types[kind]}")


def check_columns(table: str, there: Collection[str], essentials: Collection[str], place: str) -> None:
    """Check that a table has the columns.

    Raises:
        PersistError: it is another program's.
    """
    missing = sorted(set(essentials).difference(there))
    if missing:
        raise PersistError(
            f"the {place} has a table '{table}' without the column(s) {', '.join(missing)}: it belongs to "
            f"another program, name another {place.partition(' ')[0]} for the store"
        )


def number_uniquely() -> Work[None]:
    """Renumber the sessions that have an index twice, or no index: 1, 2, 3 in the order that they had.

    Two clients of the TypeScript driver, which has no unique index, can write such a store.
    """
    yield Command("""
UPDATE {events} AS event SET event_index = numbered.position
FROM (
  SELECT {row} AS found, row_number() OVER (
    PARTITION BY session_id ORDER BY event_index, created_at, {row}
  ) AS position
  FROM {events}
  WHERE session_id IN (
    SELECT session_id FROM {events} GROUP BY session_id, event_index
    HAVING count(*) > 1 OR event_index IS NULL
  )
) AS numbered
WHERE event.{row} = numbered.found
""")


def refuse_newer(version: int, newest: int, what_else: str) -> None:
    """Check that this release knows the version.

    Raises:
        PersistError: it is newer.
    """
    if version > newest:
        raise PersistError(
            f"the store is of schema version {version} and this release reads up to {newest}: "
            f"upgrade sandbox-agent-py, or {what_else}"
        )


def server_version() -> Work[int]:
    """Return the version of the server's tables, 0 where there are none but ``store_meta``."""
    rows = yield Query("SELECT value FROM {store_meta} WHERE name = 'schema_version'")
    return int(rows[0][0]) if rows else 0


def migrate_server(migrations: Sequence[Sequence[str]], what_else: str) -> Work[None]:
    """Create the server's tables, or bring those of an older version up to date.

    Args:
        migrations: number n makes version n out of version n - 1; 0 is a store without tables.
        what_else: what to do with the tables of a newer version.

    Raises:
        PersistError: a newer version made them.
    """
    version, newest = (yield from server_version()), len(migrations)
    refuse_newer(version, newest, what_else)
    for statements in migrations[version:]:
        for statement in statements:
            yield Command(statement)
    if version < newest:
        yield Query(
            "INSERT INTO {store_meta} (name, value) VALUES ('schema_version', $1) "
            "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (newest,),
        )


def check_server_version(newest: int) -> Work[None]:
    """Check that the tables are of this version, for a store that only reads them.

    Raises:
        PersistError: they are not.
    """
    version = yield from server_version()
    if version != newest:
        raise PersistError(
            f"the store is of schema version {version} and this release reads {newest}: "
            f"{'upgrade sandbox-agent-py' if version > newest else 'start its server once'}"
        )
