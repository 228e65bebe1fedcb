"""The tables of both layouts: the SDK's, shared with the TypeScript SDK, and the server's own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from sandbox_agent.persist.sql.work import Column, Table, columns

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


def create_table(name: str, lines: Iterable[str], tail: str = ")") -> str:
    """Return the statement that makes a table of these columns and constraints."""
    return f"\nCREATE TABLE {name} (\n  " + ",\n  ".join(lines) + f"\n{tail}"


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
    *("store_turns", "store_permissions", "store_snapshots"),
)


def without_form(table_columns: Iterable[Column]) -> tuple[Column, ...]:
    """Return the columns that an insert sets."""
    return tuple(column for column in table_columns if column.kind != "form")
