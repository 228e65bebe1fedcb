"""A sink that mirrors sessions into a PostgreSQL database: the table agent_events."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from sandbox_agent.client.sinks import ClosableSink, gap_error, other_event_error
from sandbox_agent.persist.postgres.link import DEFAULT_TIMEOUT, Connection, Pool, PostgresLink, Row
from sandbox_agent.persist.postgres.schema import lock_number, quoted
from sandbox_agent.wire.universal import UniversalEvent

__all__ = ["PostgresSink"]

_TABLE: Final = "agent_events"
# The table of the TypeScript SDK's documentation.
_CREATE: Final = """
CREATE TABLE IF NOT EXISTS {table} (
  event_id TEXT PRIMARY KEY,
  session_id TEXT NOT NULL,
  native_session_id TEXT,
  sequence INTEGER NOT NULL,
  time TIMESTAMPTZ NOT NULL,
  type TEXT NOT NULL,
  source TEXT NOT NULL,
  synthetic BOOLEAN NOT NULL DEFAULT FALSE,
  data JSONB NOT NULL,
  UNIQUE(session_id, sequence)
);
CREATE INDEX IF NOT EXISTS {index} ON {table} (session_id, sequence)
"""
_LAST: Final = "SELECT coalesce(max(sequence), 0) FROM {table} WHERE session_id = $1"
_COLUMNS: Final = """
unnest($2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[], $7::text[], $8::boolean[], $9::text[])
  AS event (event_id, native_session_id, sequence, time, type, source, synthetic, data)
"""
_DIFFERENT: Final = """
SELECT event.sequence FROM {columns}
WHERE event.sequence <= $10 AND $1::text IS NOT NULL AND NOT EXISTS (
  SELECT FROM {table} AS stored
  WHERE stored.session_id = $1 AND stored.sequence = event.sequence AND stored.event_id = event.event_id
    AND stored.time = event.time::timestamptz AND stored.type = event.type
)
ORDER BY event.sequence LIMIT 1
"""
_INSERT: Final = """
INSERT INTO {table}
  (event_id, session_id, native_session_id, sequence, time, type, source, synthetic, data)
SELECT event.event_id, $1, event.native_session_id, event.sequence, event.time::timestamptz, event.type,
  event.source, event.synthetic, event.data::jsonb
FROM {columns}
WHERE event.sequence > $10
"""
# Replaces characters that JSONB and TEXT cannot store.
_REPLACEMENT: Final = "\ufffd"

_encoder = msgspec.json.Encoder()


class PostgresSink(ClosableSink):
    """Stores mirrored events in the table ``agent_events`` of a PostgreSQL database.

    Acknowledged events are committed. Events that are already stored are skipped, so two mirrors of one
    session are safe. The table is created if it is missing. JSONB cannot store null characters and lone
    surrogates: they are stored as U+FFFD.

    Needs ``pip install 'sandbox-agent-py[postgres]'``.

    Args:
        connection_string: ``postgresql://user:password@host:port/database``; None, without a pool, reads
            libpq's environment variables.
        pool: an asyncpg pool to use instead; it is never closed.
        table: the name of the table.
        schema: its schema, which must exist; None uses the user's default.
        allow_gaps: also store events after a gap (the server no longer has the missing ones).
        timeout: seconds that one call may take once it has a connection.
    """

    def __init__(
        self,
        connection_string: str | None = None,
        *,
        pool: Pool | None = None,
        table: str = _TABLE,
        schema: str | None = None,
        allow_gaps: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._link = PostgresLink(
            connection_string, pool=pool, max_size=2, timeout=timeout, prepare=self._prepare
        )
        self._table = quoted(table) if schema is None else f"{quoted(schema)}.{quoted(table)}"
        self._index = quoted("idx_events_session" if table == _TABLE else f"idx_{table}_session")
        self._allow_gaps = allow_gaps

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._link.target}, table={self._table})"

    async def last_sequence(self, session_id: str, /) -> int:
        async def last(connection: Connection) -> int:
            return int(await connection.fetchval(self._sql(_LAST), session_id))

        return await self._link.run(last, session_id=session_id)

    async def insert_events(self, session_id: str, events: Sequence[UniversalEvent], /) -> None:
        columns = _columns(events)

        async def insert(connection: Connection) -> None:
            # One mirror of the session at a time, across processes.
            await connection.fetch(f"SELECT pg_advisory_xact_lock({self._lock(session_id)})")
            last = int(await connection.fetchval(self._sql(_LAST), session_id))
            different: list[Row] = await connection.fetch(self._sql(_DIFFERENT), session_id, *columns, last)
            if different:
                raise other_event_error(session_id, different[0][0], "table")
            if not self._allow_gaps:
                _refuse_gaps(session_id, last, [event.sequence for event in events])
            await connection.execute(self._sql(_INSERT), session_id, *columns, last)

        await self._link.run(insert, transaction=True, session_id=session_id)

    async def close(self) -> None:
        await self._link.close()

    async def _prepare(self, connection: Connection) -> None:
        if await connection.fetchval("SELECT to_regclass($1)::text", self._table) is None:
            await connection.execute(f"SELECT pg_advisory_xact_lock({self._lock('')})")
            await connection.execute(self._sql(_CREATE))

    def _lock(self, session_id: str) -> int:
        return lock_number(f"{self._table} {session_id}")

    def _sql(self, statement: str) -> str:
        return statement.format(table=self._table, index=self._index, columns=_COLUMNS)


def _refuse_gaps(session_id: str, last: int, sequences: list[int]) -> None:
    for sequence in sequences:
        if sequence > last + 1:
            raise gap_error(session_id, sequence, last + 1)
        last = max(last, sequence)


def _columns(events: Sequence[UniversalEvent]) -> tuple[list[Any], ...]:
    return (
        [_text(event.event_id) for event in events],
        [None if event.native_session_id is None else _text(event.native_session_id) for event in events],
        [event.sequence for event in events],
        [event.time for event in events],
        [event.type for event in events],
        [event.source for event in events],
        [bool(event.synthetic) for event in events],
        [_json(event.data) for event in events],
    )


def _json(data: Any) -> str:
    try:
        text = _encoder.encode(data).decode()
        if "\\u0000" not in text:
            return text
    except (UnicodeEncodeError, OverflowError):
        # Lone surrogates and huge numbers, in JSON's notation.
        pass
    return json.dumps(_storable(msgspec.to_builtins(data)), separators=(",", ":"))


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {_text(name): _storable(member) for name, member in members.items()}
    if isinstance(value, list):
        return [_storable(item) for item in cast("list[Any]", value)]
    return value


def _text(text: str) -> str:
    text = text.replace("\0", _REPLACEMENT)
    try:
        text.encode()
    except UnicodeEncodeError:
        return "".join(_REPLACEMENT if "\ud800" <= one <= "\udfff" else one for one in text)
    return text
