"""Reading the store's rows from PostgreSQL: each page is one statement."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sandbox_agent.persist.postgres.library import Connection
from sandbox_agent.persist.sql.ledger import add_raw as with_raw
from sandbox_agent.persist.store.cursor import key_before
from sandbox_agent.persist.store.postgres.schema import Sql
from sandbox_agent.persist.store.postgres.values import (
    MAX_NUMBER,
    PERMISSION_COLUMNS,
    SESSION_COLUMNS,
    TURN_COLUMNS,
    bounded,
    digest,
    from_text,
    selected,
    to_permission,
    to_session,
    to_turn,
)
from sandbox_agent.persist.store.rows import (
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SnapshotRow,
    TurnRow,
)

__all__ = ["Reader"]

_MOST: Final = 2**31 - 1
_SESSION: Final = selected("s", SESSION_COLUMNS)
_TURN: Final = selected("t", TURN_COLUMNS)
_PERMISSION: Final = selected("p", PERMISSION_COLUMNS)
_WIDTH: Final = len(SESSION_COLUMNS)

_BY_KEY: Final = "s.key = $2"
_BY_NAME: Final = "s.session_digest = $2"
_BY_NATIVE: Final = "s.native_digest = $2 AND s.agent = $3"
_EVENTS: Final = """
SELECT sequence, time, type, envelope, data{raw} FROM (
  SELECT e.sequence, e.time, e.type, e.envelope, e.data{raw_column},
    row_number() OVER w AS place, sum(octet_length(e.data){raw_size}) OVER w AS total
  FROM @.store_events AS e {join}
  WHERE e.namespace = $1 AND e.key = $2 AND e.sequence > $3
  WINDOW w AS (ORDER BY e.sequence ROWS UNBOUNDED PRECEDING)
  ORDER BY e.sequence LIMIT $4
) AS page WHERE total <= $5 OR place = 1 ORDER BY sequence"""
_PLAIN: Final = _EVENTS.format(raw="", raw_column="", raw_size="", join="")
_WITH_RAW: Final = _EVENTS.format(
    raw=", raw",
    raw_column=", v.data AS raw",
    raw_size=" + coalesce(octet_length(v.data), 0)",
    join="LEFT JOIN @.store_envelopes AS v "
    "ON v.namespace = e.namespace AND v.key = e.key AND v.index = e.envelope",
)


def _bounded(limit: int) -> int:
    return min(max(limit, 0), _MOST)


class Reader:
    """Reads one namespace's rows.

    Args:
        sql: puts the schema's name into statements.
        number: the namespace's.
    """

    def __init__(self, sql: Sql, number: int) -> None:
        self.sql: Sql = sql
        self.number: int = number

    async def session(self, connection: Connection, session_id: str) -> SessionRow | None:
        """Return the session of that name."""
        return await self._session(connection, _BY_NAME, digest(session_id))

    async def session_of(self, connection: Connection, key: int) -> SessionRow | None:
        """Return the session of that number."""
        return await self._session(connection, _BY_KEY, bounded(key))

    async def native_session(self, connection: Connection, agent: str, native: str) -> SessionRow | None:
        """Return the newest session that the agent knows under that name."""
        return await self._session(connection, _BY_NATIVE, digest(native), agent)

    async def _session(self, connection: Connection, condition: str, *values: object) -> SessionRow | None:
        statement = (
            f"SELECT {_SESSION} FROM @.store_sessions AS s WHERE s.namespace = $1 AND {condition} "  # noqa: S608
            "AND NOT s.deleted ORDER BY s.key DESC LIMIT 1"
        )
        row = await connection.fetchrow(self.sql(statement), self.number, *values)
        return None if row is None else to_session(row)

    async def sessions(
        self, connection: Connection, limit: int, cursor: str | None
    ) -> tuple[list[SessionRow], str | None]:
        """Return a page of sessions, newest first, and the next cursor: the key of the page's last.

        Raises:
            InvalidRequestError: it is no such cursor.
        """
        before = key_before(cursor, MAX_NUMBER)
        size = _bounded(limit)
        statement = (
            f"SELECT {_SESSION} FROM @.store_sessions AS s WHERE s.namespace = $1 AND s.key < $2 "  # noqa: S608
            "AND NOT s.deleted ORDER BY s.key DESC LIMIT $3"
        )
        found = await connection.fetch(self.sql(statement), self.number, before, size + 1)
        page = [to_session(row) for row in found[:size]]
        return page, str(page[-1].key) if page and len(found) > size else None

    async def events(
        self, connection: Connection, key: int, after: int, limit: int, max_bytes: int, include_raw: bool
    ) -> list[EventRow]:
        """Return events behind a sequence, at least one if there are any."""
        key = bounded(key)
        rows = await connection.fetch(
            self.sql(_WITH_RAW if include_raw else _PLAIN),
            self.number,
            key,
            bounded(max(after, 0)),
            _bounded(limit),
            bounded(max_bytes),
        )
        found: list[EventRow] = []
        for sequence, time, kind, envelope, data, *raw in rows:
            event = EventRow(key, sequence, time, from_text(kind), envelope, data)
            if raw and raw[0] is not None:
                with_raw(event, raw[0])
            found.append(event)
        return found

    async def envelopes(
        self, connection: Connection, key: int, after: int, limit: int, *, newest: bool = False
    ) -> list[EnvelopeRow]:
        """Return envelopes behind an index, or the newest of them."""
        statement = (
            "SELECT index, time, sender, connection_id, data FROM @.store_envelopes "  # noqa: S608
            "WHERE namespace = $1 AND key = $2 AND index > $3 "
            f"ORDER BY index {'DESC' if newest else 'ASC'} LIMIT $4"
        )
        key = bounded(key)
        rows = await connection.fetch(
            self.sql(statement), self.number, key, bounded(max(after, 0)), _bounded(limit)
        )
        found = [
            EnvelopeRow(key, index, time, "client" if sender == "client" else "agent", from_text(epoch), data)
            for index, time, sender, epoch, data in rows
        ]
        return found[::-1] if newest else found

    async def snapshot(self, connection: Connection, key: int) -> SnapshotRow | None:
        """Return the session's newest snapshot."""
        row = await connection.fetchrow(
            self.sql(
                "SELECT key, envelope, sequence, data FROM @.store_snapshots "
                "WHERE namespace = $1 AND key = $2"
            ),
            self.number,
            bounded(key),
        )
        return None if row is None else SnapshotRow(*row)

    async def turns(self, connection: Connection, key: int, limit: int) -> list[TurnRow]:
        """Return the newest turns, oldest of them first."""
        statement = (
            f"SELECT {_TURN} FROM @.store_turns AS t WHERE t.namespace = $1 AND t.key = $2 "  # noqa: S608
            'ORDER BY t.number DESC, t.turn_id COLLATE "C" DESC LIMIT $3'
        )
        rows = await connection.fetch(self.sql(statement), self.number, bounded(key), _bounded(limit))
        return [to_turn(row) for row in rows][::-1]

    async def turn(
        self, connection: Connection, key: int, turn_id: str, idempotency_key: str
    ) -> TurnRow | None:
        """Return the turn of that id, or of that key."""
        column, value = ("turn", turn_id) if turn_id else ("idempotency", idempotency_key)
        statement = (
            f"SELECT {_TURN} FROM @.store_turns AS t WHERE t.namespace = $1 AND t.key = $2 "  # noqa: S608
            f"AND t.{column}_digest = $3"
        )
        row = await connection.fetchrow(self.sql(statement), self.number, bounded(key), digest(value))
        return None if row is None else to_turn(row)

    async def open_turns(self, connection: Connection) -> list[tuple[SessionRow, TurnRow]]:
        """Return all turns that are accepted or running, by session and number."""
        statement = (
            f"SELECT {_SESSION}, {_TURN} FROM @.store_turns AS t "  # noqa: S608
            "JOIN @.store_sessions AS s ON s.namespace = t.namespace AND s.key = t.key "
            "WHERE t.namespace = $1 AND t.state IN ('accepted', 'running') AND NOT s.deleted "
            "ORDER BY t.key, t.number"
        )
        rows = await connection.fetch(self.sql(statement), self.number)
        return [(to_session(_values(row)[:_WIDTH]), to_turn(_values(row)[_WIDTH:])) for row in rows]

    async def permission(self, connection: Connection, key: int, permission_id: str) -> PermissionRow | None:
        """Return a permission or question."""
        statement = (
            f"SELECT {_PERMISSION} FROM @.store_permissions AS p "  # noqa: S608
            "WHERE p.namespace = $1 AND p.key = $2 AND p.permission_digest = $3"
        )
        row = await connection.fetchrow(self.sql(statement), self.number, bounded(key), digest(permission_id))
        return None if row is None else to_permission(row)

    async def pending_permissions(
        self, connection: Connection, limit: int
    ) -> list[tuple[SessionRow, PermissionRow]]:
        """Return what waits for an answer, oldest first."""
        statement = (
            f"SELECT {_SESSION}, {_PERMISSION} FROM @.store_permissions AS p "  # noqa: S608
            "JOIN @.store_sessions AS s ON s.namespace = p.namespace AND s.key = p.key "
            "WHERE p.namespace = $1 AND p.answered IS NULL AND NOT s.deleted "
            'ORDER BY p.requested_at, p.key, p.sequence, p.permission_id COLLATE "C" LIMIT $2'
        )
        rows = await connection.fetch(self.sql(statement), self.number, _bounded(limit))
        return [(to_session(_values(row)[:_WIDTH]), to_permission(_values(row)[_WIDTH:])) for row in rows]


def _values(row: Sequence[object]) -> tuple[object, ...]:
    return tuple(row)
