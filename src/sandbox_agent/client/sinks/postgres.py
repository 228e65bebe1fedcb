"""A mirror of sessions in a PostgreSQL database: the table agent_events (seed 000)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Final, cast

import msgspec

from sandbox_agent.client.sinks.base import ClosedSink
from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.library import Connection, Pool, Row
from sandbox_agent.persist.postgres.link import DEFAULT_TIMEOUT, PostgresLink
from sandbox_agent.persist.postgres.schema import quoted
from sandbox_agent.wire.universal import UniversalEvent

__all__ = ["PostgresSink"]

_TABLE: Final = "agent_events"
# As seed 000 has it.
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
_STRANGE: Final = """
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
# What JSONB and TEXT can't hold, as Unicode shows what can't be shown.
_REPLACEMENT: Final = "\ufffd"

_encoder = msgspec.json.Encoder()


class PostgresSink(ClosedSink):
    """Keeps mirrored events in seed 000's table ``agent_events`` of a PostgreSQL database.

    What ``insert_events`` acknowledged is committed. Events that are there already are not stored again, so
    two mirrors of one session do no harm. The table is made where it is missing. JSONB holds no null
    character and no half of a surrogate pair: in the table there is U+FFFD for them.

    Needs ``pip install 'sandbox-agent-py[postgres]'``.

    Args:
        connection_string: ``postgresql://user:password@host:port/database``; None, without a pool, reads
            libpq's environment variables.
        pool: an asyncpg pool to use instead; it is never closed.
        table: the table's name.
        schema: its schema, which must be there; None: the user's default.
        allow_gaps: store events behind a hole, too (the server no longer has what is missing).
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
        """Return the highest stored sequence of a session; 0 where there is none.

        Raises:
            PersistError: the database can't be read.
        """

        async def last(connection: Connection) -> int:
            return int(await connection.fetchval(self._sql(_LAST), session_id))

        return await self._link.run(last, session_id=session_id)

    async def insert_events(self, session_id: str, events: Sequence[UniversalEvent], /) -> None:
        """Store events in one transaction.

        Raises:
            PersistError: an event between those stored and these is missing; another event is stored
                under the sequence of one of them; or the database can't be written.
        """
        columns = _columns(events)

        async def insert(connection: Connection) -> None:
            # One mirror of the session at a time, in whatever process.
            await connection.fetch(f"SELECT pg_advisory_xact_lock({self._lock(session_id)})")
            last = int(await connection.fetchval(self._sql(_LAST), session_id))
            strange: list[Row] = await connection.fetch(self._sql(_STRANGE), session_id, *columns, last)
            if strange:
                raise PersistError(
                    f"session '{session_id}': another event {strange[0][0]} is stored (the session was "
                    "deleted and made anew, or is another server's): mirror it into another table",
                    session_id=session_id,
                )
            if not self._allow_gaps:
                _refuse_gaps(session_id, last, [event.sequence for event in events])
            await connection.execute(self._sql(_INSERT), session_id, *columns, last)

        await self._link.transaction(insert, session_id=session_id)

    async def close(self) -> None:
        """Close what was opened; never a pool that was handed in. Safe to call twice."""
        await self._link.close()

    async def _prepare(self, connection: Connection) -> None:
        async with connection.transaction(isolation="read_committed"):
            if await connection.fetchval("SELECT to_regclass($1)::text", self._table) is None:
                await connection.execute(f"SELECT pg_advisory_xact_lock({self._lock('')})")
                await connection.execute(self._sql(_CREATE))

    def _lock(self, session_id: str) -> int:
        text = f"sandbox-agent {self._table} {session_id}".encode("utf-8", "replace")
        return int.from_bytes(hashlib.blake2s(text, digest_size=8).digest(), signed=True)

    def _sql(self, statement: str) -> str:
        return statement.format(table=self._table, index=self._index, columns=_COLUMNS)


def _refuse_gaps(session_id: str, last: int, sequences: list[int]) -> None:
    for sequence in sequences:
        if sequence > last + 1:
            raise PersistError(
                f"session '{session_id}': event {sequence} came, {last + 1} is missing, nothing was stored",
                session_id=session_id,
            )
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
        # Lone surrogates and huge numbers, as JSON has them.
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
