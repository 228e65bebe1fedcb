"""Writing a commit's rows with one statement: the same rows again change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.errors import sqlstate
from sandbox_agent.persist.postgres.library import Connection
from sandbox_agent.persist.store.postgres.owner import Owner
from sandbox_agent.persist.store.postgres.schema import Sql
from sandbox_agent.persist.store.postgres.values import (
    PERMISSION_COLUMNS,
    SESSION_COLUMNS,
    TURN_COLUMNS,
    bounded,
    digest,
    to_text,
)
from sandbox_agent.persist.store.postgres.words import index_text
from sandbox_agent.persist.store.rows import (
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SnapshotRow,
    TextRow,
    TurnRow,
)

__all__ = ["ROW_BYTES", "TEXT_FACTOR", "Batch", "write"]

R = TypeVar("R")

# What is counted for a row beside its data, and how often a text is for its place in the index.
ROW_BYTES: Final = 100
TEXT_FACTOR: Final = 3

_TEXTUAL: Final = frozenset(
    (
        *("session_id", "agent", "native_session_id", "server_id", "directory", "title", "model"),
        *("agent_mode", "permission_mode", "variant", "turn_id", "state", "idempotency_key", "stop_reason"),
        *("error", "permission_id", "kind", "connection_id", "action", "answered", "answered_by", "type"),
        *("sender", "text", "folded", "words"),
    )
)
_BINARY: Final = frozenset(("usage", "settings", "prompt", "digest", "request_id", "metadata", "data"))
_UNIQUE_VIOLATION: Final = "23505"


def _type_of(column: str) -> str:
    if column in _TEXTUAL:
        return "text[]"
    if column in _BINARY or column.endswith("_digest"):
        return "bytea[]"
    return "boolean[]" if column in ("managed", "ended") else "bigint[]"


class _Part(NamedTuple):
    """A table's share of the statement; ``{rows}`` stands for its arrays."""

    name: str
    columns: tuple[str, ...]
    statement: str


def _insert(table: str, columns: tuple[str, ...], tail: str, *, chosen: str = "") -> str:
    names = ", ".join(columns)
    return f"INSERT INTO @.{table} (namespace, {names}) SELECT $1, {chosen or names} FROM {{rows}} {tail}"  # noqa: S608 - constants only


def _replace(columns: Iterable[str], identity: str, table: str = "", growing: Sequence[str] = ()) -> str:
    updates = ", ".join(
        f"{name} = greatest({table}.{name}, excluded.{name})"
        if name in growing
        else f"{name} = excluded.{name}"
        for name in columns
    )
    return f"ON CONFLICT ({identity}) DO UPDATE SET {updates}"


_SESSION: Final = (*SESSION_COLUMNS, "session_digest", "native_digest")
_TURN: Final = (*TURN_COLUMNS, "turn_digest", "idempotency_digest")
_PERMISSION: Final = (*PERMISSION_COLUMNS, "permission_digest")
_EVENT: Final = ("key", "sequence", "time", "type", "envelope", "data")
_ENVELOPE: Final = ("key", "index", "time", "sender", "connection_id", "data")
_TEXT: Final = ("key", "sequence", "time", "text", "folded", "words")
_SNAPSHOT: Final = ("key", "envelope", "sequence", "data")
# A stale row of the recorder's must not bring back what an expiry took.
_GROWING: Final = ("first_sequence", "last_sequence", "last_envelope")
_NEW_DATA: Final = f"ON CONFLICT DO NOTHING RETURNING octet_length(data) + {ROW_BYTES} AS size"

_SESSIONS: Final = _Part(
    "sessions",
    _SESSION,
    _insert(
        "store_sessions",
        _SESSION,
        _replace(_SESSION[1:], "namespace, key", "store_sessions", _GROWING)
        + " WHERE NOT store_sessions.deleted",
    ),
)
_ENVELOPES: Final = _Part("envelopes", _ENVELOPE, _insert("store_envelopes", _ENVELOPE, _NEW_DATA))
_EVENTS: Final = _Part("events", _EVENT, _insert("store_events", _EVENT, _NEW_DATA))
_TEXTS: Final = _Part(
    "texts",
    _TEXT,
    _insert(
        "store_texts",
        _TEXT,
        f"ON CONFLICT DO NOTHING RETURNING {TEXT_FACTOR} * octet_length(text) + {ROW_BYTES} AS size",
        chosen="key, sequence, time, text, folded, words::tsvector",
    ),
)
_TURNS: Final = _Part(
    "turns", _TURN, _insert("store_turns", _TURN, _replace(_TURN[1:], "namespace, key, turn_digest"))
)
_PERMISSIONS: Final = _Part(
    "permissions",
    _PERMISSION,
    _insert("store_permissions", _PERMISSION, _replace(_PERMISSION[1:], "namespace, key, permission_digest")),
)
_SNAPSHOTS: Final = _Part(
    "snapshots",
    _SNAPSHOT,
    _insert(
        "store_snapshots",
        _SNAPSHOT,
        _replace(_SNAPSHOT[1:], "namespace, key") + " WHERE excluded.envelope >= store_snapshots.envelope",
    ),
)
# Those whose size is counted.
_SIZED: Final = frozenset(("envelopes", "events", "texts"))


class Batch(NamedTuple):
    """A commit as one statement: its row is: is it ours, how many events and envelopes were new."""

    statement: str
    values: list[Any]

    @classmethod
    def of(cls, changes: Changes, owner: Owner) -> Batch:
        """Return the statement of a commit, without the schema's name; it may take some time."""
        number = owner.number
        parts: list[tuple[_Part, list[tuple[Any, ...]]]] = [
            (_SESSIONS, [_session(row) for row in _merged(changes.sessions)]),
            (_ENVELOPES, [_envelope(row) for row in changes.envelopes]),
            (_EVENTS, [_event(row) for row in changes.events]),
            (_TEXTS, [_text(row, number) for row in changes.texts]),
            (_TURNS, [_turn(row) for row in _last(changes.turns, lambda row: (row.key, row.turn_id))]),
            (
                _PERMISSIONS,
                [
                    _permission(row)
                    for row in _last(changes.permissions, lambda row: (row.key, row.permission_id))
                ],
            ),
            (_SNAPSHOTS, [_snapshot(row) for row in _newest(changes.snapshots)]),
        ]
        values: list[Any] = [number, owner.generation]
        pieces: list[str] = []
        names: list[str] = []
        for part, rows in parts:
            if not rows:
                continue
            first = len(values) + 1
            arrays = ", ".join(f"${first + at}::{_type_of(one)}" for at, one in enumerate(part.columns))
            rows_of = f"unnest({arrays}) AS r ({', '.join(part.columns)})"
            values += [list(column) for column in zip(*rows, strict=True)]
            pieces.append(f"{part.name} AS ({part.statement.replace('{rows}', rows_of)})")
            names.append(part.name)
        sizes = [
            f"(SELECT coalesce(sum(size), 0) FROM {name})"  # noqa: S608 - constants only
            for name in names
            if name in _SIZED
        ]
        pieces.append(
            f"owned AS (UPDATE @.store_namespaces SET bytes = bytes + {' + '.join(sizes) or '0'} "  # noqa: S608
            "WHERE number = $1 AND generation = $2 RETURNING 1)"
        )
        counts = [
            f"(SELECT count(*) FROM {name})" if name in names else "0"  # noqa: S608 - constants only
            for name in ("events", "envelopes")
        ]
        select = ", ".join(["(SELECT count(*) FROM owned)", *counts])
        return cls(f"WITH {', '.join(pieces)} SELECT {select}", values)


async def write(connection: Connection, sql: Sql, owner: Owner, batch: Batch, changes: Changes) -> None:
    """Store the rows; in the caller's transaction.

    Raises:
        PersistError: an event or envelope contradicts a stored one, or another server has the namespace.
    """
    try:
        found = await connection.fetchrow(sql(batch.statement), *batch.values)
    except Exception as error:
        if sqlstate(error) == _UNIQUE_VIOLATION:
            raise PersistError(
                "the store refuses the row, nothing was stored: it contradicts a row that is there "
                f"({' '.join(str(error).split())})"
            ) from error
        raise
    assert found is not None
    owned, events, envelopes = found
    if not owned:
        raise await owner.lost(connection)
    if events != len(changes.events):
        await _compare(connection, sql(_STORED_EVENTS), owner.number, [_event(row) for row in changes.events])
    if envelopes != len(changes.envelopes):
        rows = [_envelope(row) for row in changes.envelopes]
        await _compare(connection, sql(_STORED_ENVELOPES), owner.number, rows)


_STORED_EVENTS: Final = """
SELECT 'event of sequence', key, sequence, time, type, envelope, data
FROM @.store_events JOIN unnest($2::bigint[], $3::bigint[]) AS r (key, sequence) USING (key, sequence)
WHERE namespace = $1"""
_STORED_ENVELOPES: Final = """
SELECT 'envelope of index', key, index, time, sender, connection_id, data
FROM @.store_envelopes JOIN unnest($2::bigint[], $3::bigint[]) AS r (key, index) USING (key, index)
WHERE namespace = $1"""


async def _compare(
    connection: Connection, statement: str, number: int, rows: Sequence[tuple[Any, ...]]
) -> None:
    """Some of the rows were there already, which is fine as long as they are the same."""
    keys, numbers = [row[0] for row in rows], [row[1] for row in rows]
    stored = {
        (row[1], row[2]): tuple(row) for row in await connection.fetch(statement, number, keys, numbers)
    }
    for row in rows:
        what, *found = stored.get(row[:2], ("row", *row))
        if tuple(found) != row:
            raise PersistError(
                f"nothing was stored: session number {row[0]} has another {what} {row[1]}, "
                "so two writers must be at work; stop one of them"
            )


def _merged(rows: Sequence[SessionRow]) -> Iterable[SessionRow]:
    """Return the last row of each session, with the highest of what only grows."""
    found: dict[int, SessionRow] = {}
    for row in rows:
        before = found.get(row.key)
        if before is not None:
            grown = {name: max(getattr(before, name), getattr(row, name)) for name in _GROWING}
            row = msgspec.structs.replace(row, **grown)
        found[row.key] = row
    return found.values()


def _newest(rows: Sequence[SnapshotRow]) -> Iterable[SnapshotRow]:
    return {row.key: row for row in sorted(rows, key=lambda row: row.envelope)}.values()


def _last(rows: Sequence[R], identity: Callable[[R], object]) -> Iterable[R]:
    return {identity(row): row for row in rows}.values()


def _members(row: msgspec.Struct, columns: Iterable[str]) -> list[Any]:
    values = (getattr(row, name) for name in columns)
    return [to_text(value) if isinstance(value, str) else value for value in values]


def _session(row: SessionRow) -> tuple[Any, ...]:
    native = None if row.native_session_id is None else digest(row.native_session_id)
    return (*_members(row, SESSION_COLUMNS), digest(row.session_id), native)


def _turn(row: TurnRow) -> tuple[Any, ...]:
    idempotency = None if row.idempotency_key is None else digest(row.idempotency_key)
    return (*_members(row, TURN_COLUMNS), digest(row.turn_id), idempotency)


def _permission(row: PermissionRow) -> tuple[Any, ...]:
    return (*_members(row, PERMISSION_COLUMNS), digest(row.permission_id))


def _event(row: EventRow) -> tuple[Any, ...]:
    return (row.key, row.sequence, row.time, to_text(row.type), row.envelope, row.data)


def _envelope(row: EnvelopeRow) -> tuple[Any, ...]:
    return (row.key, row.index, row.time, row.sender, to_text(row.connection_id), row.data)


def _snapshot(row: SnapshotRow) -> tuple[Any, ...]:
    return (row.key, row.envelope, row.sequence, row.data)


def _text(row: TextRow, namespace: int) -> tuple[Any, ...]:
    indexed = index_text(row.text, namespace)
    return (row.key, row.sequence, bounded(row.time), indexed.text, indexed.folded, indexed.words)
