"""Erasing from PostgreSQL in slices: each is a short transaction, so commits go on between them.

What was erased leaves the files when the database's vacuum gets to it; only PostgreSQL's own tools overwrite
it there.
"""

from __future__ import annotations

import sys
from typing import Final, NamedTuple

from sandbox_agent.persist.postgres.library import Connection
from sandbox_agent.persist.store.postgres.owner import Owner
from sandbox_agent.persist.store.postgres.schema import Sql
from sandbox_agent.persist.store.postgres.values import bounded
from sandbox_agent.persist.store.postgres.write import ROW_BYTES, TEXT_FACTOR

__all__ = ["Aged", "Eraser"]

# A slice has no more rows, nor bytes if it has more than one row: it holds up commits for some 20 ms.
_SLICE_ROWS: Final = 2_000
_SLICE_BYTES: Final = 2 * 1024 * 1024

_HIDE: Final = """
UPDATE @.store_sessions SET deleted = true, session_id = NULL, session_digest = NULL,
  native_session_id = NULL, native_digest = NULL, server_id = NULL, directory = NULL, title = NULL,
  model = NULL, variant = NULL, usage = NULL, settings = NULL
WHERE namespace = $1 AND key = $2"""
# The last row of a slice: before the first that is too new, and of no more rows and bytes than one may have.
_END: Final = """
SELECT max({number}) FROM (
  SELECT {number}, bool_and(time < $3) OVER w AS old, sum(octet_length(data)) OVER w AS total,
    row_number() OVER w AS place
  FROM (SELECT * FROM {table} WHERE namespace = $1 AND key = $2 ORDER BY {number} LIMIT {rows}) AS first
  WINDOW w AS (ORDER BY {number} ROWS UNBOUNDED PRECEDING)
) AS page WHERE old AND (place = 1 OR total <= $4)"""
_DELETE: Final = """
WITH gone AS (
  DELETE FROM {table} WHERE namespace = $1 AND key = $2 AND {number} <= $3 RETURNING {size} AS size
), freed AS (
  UPDATE @.store_namespaces SET bytes = bytes - (SELECT coalesce(sum(size), 0) FROM gone) WHERE number = $1
)
SELECT count(*) FROM gone"""
_TABLES: Final = (("@.store_events", "sequence"), ("@.store_envelopes", "index"))
_DATA_SIZE: Final = f"octet_length(data) + {ROW_BYTES}"
_TEXT_SIZE: Final = f"{TEXT_FACTOR} * octet_length(text) + {ROW_BYTES}"
# The rows of ended turns and answers stay: they number the turns, and tell a repeated message.
_FIRST: Final = """
UPDATE @.store_sessions AS s SET first_sequence = coalesce(
  (SELECT min(sequence) FROM @.store_events WHERE namespace = $1 AND key = $2), s.last_sequence + 1)
WHERE s.namespace = $1 AND s.key = $2"""
_BLANK_TURNS: Final = """
UPDATE @.store_turns SET prompt = '[]'
WHERE namespace = $1 AND key = $2 AND prompt <> '[]' AND state NOT IN ('accepted', 'running')
  AND last_sequence < (SELECT first_sequence FROM @.store_sessions WHERE namespace = $1 AND key = $2)"""
_BLANK_PERMISSIONS: Final = """
UPDATE @.store_permissions SET metadata = '{}', action = ''
WHERE namespace = $1 AND key = $2 AND metadata <> '{}' AND answered IS NOT NULL
  AND sequence < (SELECT first_sequence FROM @.store_sessions WHERE namespace = $1 AND key = $2)"""
_AGED: Final = """
SELECT least(
  (SELECT time FROM @.store_events WHERE namespace = $1 AND key = s.key ORDER BY sequence LIMIT 1),
  (SELECT time FROM @.store_envelopes WHERE namespace = $1 AND key = s.key ORDER BY index LIMIT 1)
) AS oldest, s.key
FROM (
  SELECT 0::bigint AS key UNION ALL SELECT key FROM @.store_sessions WHERE namespace = $1 AND NOT deleted
) AS s
WHERE ($2::bigint IS NULL OR s.key = $2) AND NOT EXISTS (
  SELECT 1 FROM @.store_turns AS t
  WHERE t.namespace = $1 AND t.key = s.key AND t.state IN ('accepted', 'running')
)"""


class Aged(NamedTuple):
    """A session that may lose events, and when its oldest event or envelope is from."""

    oldest: int
    key: int


class Eraser:
    """Erases rows of one namespace, each call in the caller's transaction.

    Args:
        sql: puts the schema's name into statements.
        owner: who has the namespace.
    """

    def __init__(self, sql: Sql, owner: Owner) -> None:
        self._sql = sql
        self._owner = owner

    async def own(self, connection: Connection) -> None:
        """Hold the namespace for the length of a transaction.

        Raises:
            PersistError: another server has it.
        """
        statement = "SELECT 1 FROM @.store_namespaces WHERE number = $1 AND generation = $2 FOR UPDATE"
        owner = self._owner
        if not await connection.fetchval(self._sql(statement), owner.number, owner.generation):
            raise await owner.lost(connection)

    async def hide(self, connection: Connection, key: int) -> bool:
        """Take the session out of sight: only what is to be erased is left; False where there is none."""
        await self.own(connection)
        values = (self._owner.number, bounded(key))
        status = await connection.execute(self._sql(_HIDE), *values)
        for table in ("snapshots", "turns", "permissions"):
            statement = f"DELETE FROM @.store_{table} WHERE namespace = $1 AND key = $2"  # noqa: S608
            await connection.execute(self._sql(statement), *values)
        return not status.endswith(" 0")

    async def hidden(self, connection: Connection) -> list[int]:
        """Return the sessions whose delete has not ended."""
        statement = "SELECT key FROM @.store_sessions WHERE namespace = $1 AND deleted"
        return [int(row[0]) for row in await connection.fetch(self._sql(statement), self._owner.number)]

    async def forget(self, connection: Connection, key: int) -> None:
        """Forget that there was a session; nothing of it is left by now."""
        await self.own(connection)
        statement = "DELETE FROM @.store_sessions WHERE namespace = $1 AND key = $2 AND deleted"
        await connection.execute(self._sql(statement), self._owner.number, bounded(key))

    async def erase(
        self, connection: Connection, key: int, *, before: int | None = None, max_bytes: int = sys.maxsize
    ) -> bool:
        """Erase some of a session's oldest events, with their texts, or else envelopes.

        Args:
            connection: in a transaction.
            key: the session's.
            before: erase only what is older; a row that isn't ends it, whatever comes behind that one.
            max_bytes: erase about as much.

        Returns:
            False if there was nothing left.
        """
        await self.own(connection)
        number, key = self._owner.number, bounded(key)
        bound = bounded(sys.maxsize if before is None else before)
        for table, column in _TABLES:
            end = await connection.fetchval(
                self._sql(_END.format(table=table, number=column, rows=_SLICE_ROWS)),
                number,
                key,
                bound,
                min(max(max_bytes, 0), _SLICE_BYTES),
            )
            if end is None:
                continue
            if column == "sequence":
                await self._delete(connection, "@.store_texts", "sequence", _TEXT_SIZE, key, end)
            await self._delete(connection, table, column, _DATA_SIZE, key, end)
            for statement in (_FIRST, _BLANK_TURNS, _BLANK_PERMISSIONS):
                await connection.execute(self._sql(statement), number, key)
            return True
        if before is not None:
            return False
        return await self._delete(connection, "@.store_texts", "sequence", _TEXT_SIZE, key, sys.maxsize) > 0

    async def _delete(
        self, connection: Connection, table: str, column: str, size: str, key: int, last: int
    ) -> int:
        statement = self._sql(_DELETE.format(table=table, number=column, size=size))
        return int(await connection.fetchval(statement, self._owner.number, key, last))

    async def aged(self, connection: Connection, key: int | None = None) -> list[Aged]:
        """Return the sessions that may lose events, or the one; the key 0 is among them."""
        rows = await connection.fetch(self._sql(_AGED), self._owner.number, key)
        return sorted(Aged(oldest, found) for oldest, found in rows if oldest is not None)

    async def used_bytes(self, connection: Connection) -> int:
        """Return what is counted of the namespace: data, and an allowance for rows and indexes."""
        statement = "SELECT bytes FROM @.store_namespaces WHERE number = $1"
        return int(await connection.fetchval(self._sql(statement), self._owner.number) or 0)
