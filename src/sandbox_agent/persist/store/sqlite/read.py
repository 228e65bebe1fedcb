"""Reading the store's rows: each page is one descent of the tree, and one row of SQLite's."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

import msgspec

from sandbox_agent.persist.store.cursor import key_before
from sandbox_agent.persist.store.rows import (
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SnapshotRow,
    TurnRow,
)
from sandbox_agent.persist.store.sqlite.columns import (
    PERMISSION_SELECTED,
    SESSION_COLUMNS,
    SESSION_SELECTED,
    TURN_SELECTED,
    to_permission,
    to_session,
    to_turn,
)
from sandbox_agent.persist.store.sqlite.values import MAX_SEQUENCE, clean, gather, row_id

__all__ = [
    "envelopes",
    "events",
    "newest_envelopes",
    "open_turns",
    "pending_permissions",
    "permission",
    "session_page",
    "session_where",
    "snapshot",
    "turn",
    "turns",
    "with_raw",
]

_UNPARSED: Final = "agent.unparsed"
# SQLite's own largest, so that "all" can be asked for.
_MOST: Final = 2**31 - 1
_JOIN: Final = "LEFT JOIN store_envelopes AS v ON v.id = (e.id >> 32 << 32 | e.envelope)"
_SIZES: Final = """
SELECT CAST(json_group_array(size) AS BLOB) FROM (
  SELECT length(e.data){raw} AS size FROM store_events AS e {join} WHERE e.id > ? AND e.id <= ?
  ORDER BY e.id LIMIT ?
)"""
_EVENTS: Final = """
SELECT CAST(json_group_array(json_array(sequence, time, type, envelope, size)) AS BLOB),
  CAST(group_concat(data, '') AS BLOB)
FROM (
  SELECT id & 4294967295 AS sequence, time, type, envelope, length(data) AS size, data
  FROM store_events WHERE id > ? AND id <= ? ORDER BY id LIMIT ?
)"""
_RAWS: Final = """
SELECT CAST(json_group_array(size) AS BLOB), CAST(group_concat(data, '') AS BLOB) FROM (
  SELECT length(v.data) AS size, coalesce(v.data, x'') AS data
  FROM store_events AS e LEFT JOIN store_envelopes AS v ON v.id = (e.id >> 32 << 32 | e.envelope)
  WHERE e.id > ? AND e.id <= ? ORDER BY e.id LIMIT ?
)"""
_ENVELOPES: Final = """
SELECT CAST(json_group_array(json_array(number, time, sender, connection_id, size)) AS BLOB),
  CAST(group_concat(data, '') AS BLOB)
FROM (
  SELECT id & 4294967295 AS number, time, sender, connection_id, length(data) AS size, data
  FROM store_envelopes WHERE id > ? AND id <= ? ORDER BY id {order} LIMIT ?
)"""
_numbers: Final = msgspec.json.Decoder(list[int | None])
_event_heads: Final = msgspec.json.Decoder(list[tuple[int, int, str, int, int]])
_envelope_heads: Final = msgspec.json.Decoder(list[tuple[int, int, str, str, int]])


def _bounded(limit: int) -> int:
    return min(max(limit, 0), _MOST)


def session_where(connection: sqlite3.Connection, condition: str, values: Sequence[Any]) -> SessionRow | None:
    """Return the newest session that meets a condition on ``s``."""
    tail = f"FROM store_sessions AS s WHERE {condition} AND NOT s.deleted ORDER BY s.key DESC LIMIT 1"
    found = gather(connection, SESSION_SELECTED, tail, values)
    return to_session(found[0]) if found else None


def session_page(
    connection: sqlite3.Connection, limit: int, cursor: str | None
) -> tuple[list[SessionRow], str | None]:
    """Return a page of sessions, newest first, and the next cursor: the key of the page's last.

    Raises:
        InvalidRequestError: it is no such cursor.
    """
    before = key_before(cursor, MAX_SEQUENCE)
    size = _bounded(limit)
    tail = "FROM store_sessions AS s WHERE s.key < ? AND NOT s.deleted ORDER BY s.key DESC LIMIT ?"
    rows = [to_session(values) for values in gather(connection, SESSION_SELECTED, tail, (before, size + 1))]
    page = rows[:size]
    return page, str(page[-1].key) if page and len(rows) > size else None


def events(
    connection: sqlite3.Connection, key: int, after: int, limit: int, max_bytes: int, include_raw: bool
) -> list[EventRow]:
    """Return events behind a sequence, at least one if there are any."""
    connection.execute("SAVEPOINT page")  # the statements see one state of the file
    try:
        return _events(connection, key, after, limit, max_bytes, include_raw)
    finally:
        connection.execute("RELEASE page")


def _events(
    connection: sqlite3.Connection, key: int, after: int, limit: int, max_bytes: int, include_raw: bool
) -> list[EventRow]:
    extent = (row_id(key, after), row_id(key, MAX_SEQUENCE))
    query = _SIZES.format(
        raw=" + coalesce(length(v.data), 0)" if include_raw else "", join=_JOIN if include_raw else ""
    )
    sizes = _numbers.decode(connection.execute(query, (*extent, _bounded(limit))).fetchone()[0])
    fitting = sum(total <= max_bytes for total in accumulate(size or 0 for size in sizes))
    count = max(fitting, min(len(sizes), 1))
    if not count:
        return []
    head, data = connection.execute(_EVENTS, (*extent, count)).fetchone()
    found: list[EventRow] = []
    start = 0
    for sequence, time, kind, envelope, size in _event_heads.decode(head):
        found.append(EventRow(key, sequence, time, kind, envelope, data[start : start + size]))
        start += size
    if include_raw:
        _add_raw(found, *connection.execute(_RAWS, (*extent, count)).fetchone())
    return found


def _add_raw(events: Sequence[EventRow], sizes: bytes, data: bytes) -> None:
    start = 0
    for event, size in zip(events, _numbers.decode(sizes), strict=True):
        if size is None:
            continue
        raw = data[start : start + size]
        start += size
        with_raw(event, raw)


def with_raw(event: EventRow, raw: bytes) -> None:
    """Give an event its member ``raw``: the envelope that it was made from."""
    if event.type != _UNPARSED:
        event.data = event.data[:-1] + b',"raw":' + _as_json(raw) + b"}"


def _as_json(raw: bytes) -> bytes:
    try:
        raw.decode()
        msgspec.json.decode(raw)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return msgspec.json.encode(raw.decode("utf-8", "replace"))
    # Between JSON's values a line's end is a blank; in an event stream it is more.
    return raw.replace(b"\r", b" ").replace(b"\n", b" ")


def envelopes(connection: sqlite3.Connection, key: int, after: int, limit: int) -> list[EnvelopeRow]:
    """Return envelopes behind an index."""
    return _envelopes(connection, key, after, limit, "ASC")


def newest_envelopes(connection: sqlite3.Connection, key: int, limit: int) -> list[EnvelopeRow]:
    """Return the newest envelopes, oldest of them first."""
    return _envelopes(connection, key, 0, limit, "DESC")[::-1]


def _envelopes(
    connection: sqlite3.Connection, key: int, after: int, limit: int, order: str
) -> list[EnvelopeRow]:
    extent = (row_id(key, after), row_id(key, MAX_SEQUENCE))
    head, data = connection.execute(_ENVELOPES.format(order=order), (*extent, _bounded(limit))).fetchone()
    found: list[EnvelopeRow] = []
    start = 0
    for index, time, sender, connection_id, size in _envelope_heads.decode(head):
        side = "client" if sender == "client" else "agent"
        found.append(EnvelopeRow(key, index, time, side, connection_id, data[start : start + size]))
        start += size
    return found


def snapshot(connection: sqlite3.Connection, key: int) -> SnapshotRow | None:
    """Return the session's newest snapshot."""
    query = "SELECT key, envelope, sequence, data FROM store_snapshots WHERE key = ?"
    row = connection.execute(query, (key,)).fetchone()
    return SnapshotRow(*row) if row else None


def turns(connection: sqlite3.Connection, key: int, limit: int) -> list[TurnRow]:
    """Return the newest turns, oldest of them first."""
    tail = "FROM store_turns AS t WHERE t.key = ? ORDER BY t.number DESC, t.turn_id DESC LIMIT ?"
    return [to_turn(row) for row in gather(connection, TURN_SELECTED, tail, (key, _bounded(limit)))][::-1]


def turn(connection: sqlite3.Connection, key: int, turn_id: str, idempotency_key: str) -> TurnRow | None:
    """Return the turn of that id, or of that key."""
    column, value = ("turn_id", turn_id) if turn_id else ("idempotency_key", idempotency_key)
    tail = f"FROM store_turns AS t WHERE t.key = ? AND t.{column} = ? LIMIT 1"
    found = gather(connection, TURN_SELECTED, tail, (key, clean(value)))
    return to_turn(found[0]) if found else None


def open_turns(connection: sqlite3.Connection) -> list[tuple[SessionRow, TurnRow]]:
    """Return all turns that are accepted or running, by session and number."""
    tail = (
        "FROM store_turns AS t JOIN store_sessions AS s ON s.key = t.key "
        "WHERE t.state IN ('accepted', 'running') AND NOT s.deleted ORDER BY t.key, t.number LIMIT -1"
    )
    found = gather(connection, [*SESSION_SELECTED, *TURN_SELECTED], tail)
    width = len(SESSION_COLUMNS)
    return [(to_session(row[:width]), to_turn(row[width:])) for row in found]


def permission(connection: sqlite3.Connection, key: int, permission_id: str) -> PermissionRow | None:
    """Return a permission or question."""
    tail = "FROM store_permissions AS p WHERE p.key = ? AND p.permission_id = ? LIMIT 1"
    found = gather(connection, PERMISSION_SELECTED, tail, (key, clean(permission_id)))
    return to_permission(found[0]) if found else None


def pending_permissions(connection: sqlite3.Connection, limit: int) -> list[tuple[SessionRow, PermissionRow]]:
    """Return what waits for an answer, oldest first."""
    tail = (
        "FROM store_permissions AS p JOIN store_sessions AS s ON s.key = p.key WHERE p.answered IS NULL "
        "AND NOT s.deleted ORDER BY p.requested_at, p.key, p.sequence, p.permission_id LIMIT ?"
    )
    found = gather(connection, [*SESSION_SELECTED, *PERMISSION_SELECTED], tail, (_bounded(limit),))
    width = len(SESSION_COLUMNS)
    return [(to_session(row[:width]), to_permission(row[width:])) for row in found]
