"""The PostgreSQL driver: the TypeScript driver's tables in a database that the user has."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from sandbox_agent.persist.base import UNFENCED, Keyset
from sandbox_agent.persist.follow import Mark
from sandbox_agent.persist.postgres.dialect import PostgresDatabase, PostgresDialect
from sandbox_agent.persist.postgres.link import (
    DEFAULT_MAX_SIZE,
    DEFAULT_TIMEOUT,
    Connection,
    Pool,
    PostgresLink,
)
from sandbox_agent.persist.postgres.listen import NotificationHint
from sandbox_agent.persist.postgres.schema import prepare_store
from sandbox_agent.persist.postgres.writing import Appender, PostgresWriters, Sealed, decode_payloads
from sandbox_agent.persist.sql.driver import SqlSessionPersistDriver
from sandbox_agent.persist.sql.work import Query, Row, Work, reading
from sandbox_agent.wire.records import SessionEvent

if TYPE_CHECKING:
    from sandbox_agent.wire.sessions import SearchHit

_MARKS: Final = """
SELECT asked.session_id, coalesce(writer.deletions, 0),
  (SELECT coalesce(max(event_index), 0) FROM {events} WHERE session_id = asked.session_id)
FROM unnest($1::text[]) AS asked (session_id) LEFT JOIN {session_writers} AS writer USING (session_id)
"""
_HEAD: Final = "SELECT head_time, head FROM {session_writers} WHERE session_id = $1 AND head IS NOT NULL"


class PostgresSessionPersistDriver(SqlSessionPersistDriver):
    """Keeps sessions and events in a PostgreSQL database, shared with the TypeScript SDK's driver.

    What a method acknowledged is committed. Appends that wait at the same time are committed together, by one
    statement. The first call makes the tables, or migrates older ones. Many processes may use one
    database; a writer that was replaced is refused. After an outage the same object works again.

    Needs ``pip install 'sandbox-agent-py[postgres]'``. Belongs to the event loop of its first call.

    Args:
        connection_string: ``postgresql://user:password@host:port/database``; None, without a pool, reads
            libpq's environment variables (PGHOST, PGUSER, …).
        pool: an asyncpg pool to use instead; it is never closed.
        schema: the schema of the tables, made where missing.
        max_size: connections at most (and one more while sessions are followed); not for a pool.
        timeout: seconds that one call may take once it has a connection.
        statement_cache_size: prepared statements that a connection keeps; 0 behind a pool that gives each
            transaction another connection (pgbouncer), which is detected if it is None.
    """

    def __init__(
        self,
        connection_string: str | None = None,
        *,
        pool: Pool | None = None,
        schema: str = "public",
        max_size: int = DEFAULT_MAX_SIZE,
        timeout: float = DEFAULT_TIMEOUT,
        statement_cache_size: int | None = None,
    ) -> None:
        self._schema = schema
        self._dialect = PostgresDialect(schema)
        self._link = PostgresLink(
            connection_string,
            pool=pool,
            max_size=max_size,
            timeout=timeout,
            statement_cache_size=statement_cache_size,
            prepare=self._prepare,
        )
        self._writers = PostgresWriters(self._link.target)
        database = PostgresDatabase(self._link, self._dialect)
        hint = partial(NotificationHint, self._link, self._dialect.channel)
        super().__init__(database, self._writers, make_hint=hint)
        self._appender = Appender(database, self._writers, self._log)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._link.target}, schema={self._schema!r})"

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert the event as it is, or replace the one of that id.

        Raises:
            PersistError: another event of the session has its index, or the store failed.
        """
        decode_payloads([event])
        await super().insert_event(session_id, event)

    async def append_sealed(
        self,
        session_id: str,
        events: Sequence[SessionEvent],
        head: SessionEvent,
        /,
        *,
        after: int,
        generation: int = UNFENCED,
    ) -> None:
        await self._appender.append(session_id, events, generation, Sealed(after, head))
        self._following.stored(session_id, events)

    @reading
    def _kept_head(self, session_id: str) -> Work[Row | None]:
        rows = yield Query(_HEAD, (session_id,))
        return rows[0] if rows else None

    async def find_head(self, session_id: str, head_id: str, /) -> SessionEvent | None:
        kept = await self._kept_head(session_id)
        if kept is not None:
            return SessionEvent(head_id, 1, head_id, kept[0], "", "client", kept[1].encode())
        # Of an older release.
        return await super().find_head(session_id, head_id)

    async def replace_head(self, session_id: str, head: SessionEvent, /) -> None:
        await self._database.write(
            partial(self._writers.replace_head, session_id, head), session_id=session_id
        )

    async def delete_sessions(self, session_ids: Sequence[str], /) -> None:
        await super().delete_sessions(session_ids)
        for session_id in session_ids:
            self._appender.forget(session_id)

    @reading
    def marks(self, session_ids: Collection[str], /) -> Work[Mapping[str, Mark]]:
        rows = yield Query(_MARKS, (list(session_ids),))
        return {session_id: Mark(last, deletions) for session_id, deletions, last in rows}

    async def close(self) -> None:
        """Store what was accepted and close what was opened; never a pool that was handed in."""
        if not self._link.is_elsewhere:
            await super().close()
            await self._appender.close()
        await self._link.close()

    async def _prepare(self, connection: Connection) -> None:
        self._writers.store_id = await self._dialect.run(connection, partial(prepare_store, self._schema))

    async def _append(self, session_id: str, events: Sequence[SessionEvent], generation: int) -> list[int]:
        return await self._appender.append(session_id, events, generation)

    async def _search(self, query: str, session_id: str | None, limit: int) -> list[SearchHit]:
        # Most programs never search.
        from sandbox_agent.persist.postgres.search import search_events

        return await search_events(self._database, query, session_id, limit)

    def _after(self, cursor: str | None) -> Keyset | None:
        after = super()._after(cursor)
        # A cursor may be a stranger's; PostgreSQL's texts have no null characters.
        return after and after._replace(id=after.id.replace("\0", ""))
