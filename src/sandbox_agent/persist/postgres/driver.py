"""The PostgreSQL driver: the TypeScript driver's tables in a database that the user has (seed 001)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import (
    UNFENCED,
    Capability,
    Keyset,
    SessionPersistDriver,
    check_session,
    decode_cursor,
    encode_cursor,
    normalize_limit,
)
from sandbox_agent.persist.columns import to_record
from sandbox_agent.persist.postgres.append import Appender
from sandbox_agent.persist.postgres.errors import sqlstate
from sandbox_agent.persist.postgres.follow import Followers
from sandbox_agent.persist.postgres.library import Connection, Pool, Row
from sandbox_agent.persist.postgres.link import DEFAULT_MAX_SIZE, DEFAULT_TIMEOUT, PostgresLink
from sandbox_agent.persist.postgres.rows import (
    EVENT_COLUMNS,
    SESSION_COLUMNS,
    check_texts,
    to_event,
)
from sandbox_agent.persist.postgres.schema import Tables, prepare_store
from sandbox_agent.persist.postgres.writing import Writing
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

if TYPE_CHECKING:
    from sandbox_agent.wire.sessions import SearchHit

__all__ = ["PostgresSessionPersistDriver"]

_BEGINNING: Final = Keyset(0, "")
# More than any memory holds.
_MAX_ROWS: Final = 2**31
_UNIQUE_VIOLATION: Final = "23505"


class PostgresSessionPersistDriver(SessionPersistDriver):
    """Keeps sessions and events in a PostgreSQL database, shared with the TypeScript SDK's driver.

    What a method acknowledged is committed. Appends that wait at one time are committed together, by one
    statement. The first call makes the tables, or migrates older ones. Many processes may use one
    database; a writer that was replaced is refused. After an outage the same object works again.

    Needs ``pip install 'sandbox-agent-py[postgres]'``. Belongs to the event loop of its first call.

    Args:
        connection_string: ``postgresql://user:password@host:port/database``; None, without a pool, reads
            libpq's environment variables (PGHOST, PGUSER, …).
        pool: an asyncpg pool to use instead; it is never closed.
        schema: the schema of the tables, made where missing.
        max_size: connections at most (and one more while somebody follows); not for a pool.
        timeout: seconds that one call may take once it has a connection.
        statement_cache_size: prepared statements that a connection keeps; 0 behind a pool that gives each
            transaction another connection (pgbouncer), which is found out where it is None.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.APPEND,
            Capability.TAIL,
            Capability.LAST_INDEX,
            Capability.DELETE,
            Capability.FENCE,
            Capability.SEARCH,
            Capability.FOLLOW,
        }
    )

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
        self._tables = Tables.of(schema)
        self._link = PostgresLink(
            connection_string,
            pool=pool,
            max_size=max_size,
            timeout=timeout,
            statement_cache_size=statement_cache_size,
            prepare=self._prepare,
        )
        self._writing = Writing(self._tables, self._link.target)
        self._followers = Followers(self._link, self._tables)
        self._appender = Appender(self._link, self._writing, self._followers.stored)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._link.target}, schema={self._tables.schema!r})"

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        """Return the record, or None."""
        query = f"SELECT {SESSION_COLUMNS} FROM {self._tables.sessions} WHERE id = $1"
        rows = await self._rows(query, session_id)
        return to_record(rows[0]) if rows else None

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        """Return a page of records by (created_at, id), oldest first."""
        size = normalize_limit(limit)
        after = decode_cursor(cursor) or _BEGINNING
        query = f"SELECT {SESSION_COLUMNS} FROM {self._tables.sessions}"
        values: list[Any] = [size + 1, after.offset]
        if after is not _BEGINNING and not after.offset:
            query += ' WHERE (created_at, id COLLATE "C") > ($3, $4)'
            values += [after.position, _text(after.id)]
        query += ' ORDER BY created_at, id COLLATE "C" LIMIT $1 OFFSET $2'
        rows = await self._rows(query, *values)
        records = [to_record(row) for row in rows[:size]]
        end = records[-1] if len(rows) > size else None
        return ListPage(records, encode_cursor(end.created_at, end.id) if end else None)

    async def update_session(self, session: SessionRecord, /) -> None:
        """Insert the record, or replace the one of that id."""
        await self.save_session(session)

    async def save_session(self, session: SessionRecord, /, *, generation: int = UNFENCED) -> None:
        """``update_session`` by the session's writer.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
            PersistError: the store failed, or has lost what it knew of the session.
        """

        async def save(connection: Connection) -> None:
            await self._writing.save(connection, session, generation)

        await self._link.transaction(save, session_id=session.id)

    async def claim_session(self, session_id: str, /) -> int:
        """Become the session's only writer and return the generation to write with, above all before."""

        async def claim(connection: Connection) -> int:
            return await self._writing.claim(connection, session_id)

        return await self._link.transaction(claim, session_id=session_id)

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        """Return a page of a session's events by (event_index, id), oldest first."""
        size = normalize_limit(limit)
        after = decode_cursor(cursor) or _BEGINNING
        query = f"SELECT {EVENT_COLUMNS} FROM {self._tables.events} WHERE session_id = $1"
        values: list[Any] = [session_id, size + 1, after.offset]
        if after is not _BEGINNING and not after.offset:
            # No two events of a session have one index: behind (index, id) is behind the index, or at it.
            query += ' AND event_index >= $4 AND (event_index, id COLLATE "C") > ($4, $5)'
            values += [after.position, _text(after.id)]
        query += " ORDER BY event_index LIMIT $2 OFFSET $3"
        rows = await self._rows(query, *values)
        events = [to_event(row) for row in rows[:size]]
        end = events[-1] if len(rows) > size else None
        return ListPage(events, encode_cursor(end.event_index, end.id) if end else None)

    def cursor_after(self, event_index: int, /) -> str:
        """Return the cursor of ``list_events`` behind that index."""
        return encode_cursor(event_index + 1, "")

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert the event as it is, or replace the one of that id.

        Raises:
            PersistError: another event of the session has its index, or the store failed.
        """
        check_session(session_id, event)
        check_texts([event])

        async def insert(connection: Connection) -> None:
            await self._writing.replace(connection, session_id, event)

        try:
            await self._link.transaction(insert, session_id=session_id)
        except PersistError as error:
            if error.__cause__ is not None and sqlstate(error.__cause__) == _UNIQUE_VIOLATION:
                raise PersistError(
                    f"event '{event.id}' was not stored: session '{session_id}' has another event with index "
                    f"{event.event_index}",
                    session_id=session_id,
                ) from error
            raise

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        """Append the events and set their ``event_index``: all of them or none.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
            PersistError: an id is stored in another session; the store failed, or has lost events that
                this driver has seen in the session.
        """
        for event in events:
            check_session(session_id, event)
        indexes = await self._appender.append(session_id, events, generation)
        for event, index in zip(events, indexes, strict=True):
            event.event_index = index

    async def last_event_index(self, session_id: str, /) -> int:
        """Return the highest event index of the session, 0 where it has none."""
        query = f"SELECT coalesce(max(event_index), 0) FROM {self._tables.events} WHERE session_id = $1"
        return int((await self._rows(query, session_id) or [(0,)])[0][0])

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        """Return the newest ``limit`` events, oldest of them first."""
        if limit < 1:
            return []
        query = (
            f"SELECT {EVENT_COLUMNS} FROM {self._tables.events} WHERE session_id = $1 "
            "ORDER BY event_index DESC LIMIT $2"
        )
        rows = await self._rows(query, session_id, min(limit, _MAX_ROWS))
        return [to_event(row) for row in reversed(rows)]

    async def delete_session(self, session_id: str, /) -> None:
        """Erase the record and its events; nothing happens where there is none.

        Whoever claimed the session before is refused from now on.
        """

        async def delete(connection: Connection) -> None:
            await self._writing.delete(connection, session_id)

        await self._link.transaction(delete, session_id=session_id)
        self._appender.forget(session_id)

    def follow_events(self, session_id: str, /, *, after: int = 0) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events behind an index and those that are stored meanwhile, by whomever.

        It ends when the driver is closed or the session is deleted, and waits out what breaks the
        connection.

        Raises:
            PersistError: the store can't be reached when it begins.
        """
        return self._followers.follow(self, session_id, after)

    async def search_events(
        self, query: str, /, *, session_id: str | None = None, limit: int | None = None
    ) -> list[SearchHit]:
        """Return where all words of the query are said or done, the newest first.

        An index over the texts is brought up to date first, so the first search of a long history takes
        its time; appends pay nothing for it.
        """
        # Most programs never search.
        from sandbox_agent.persist.postgres.search import search

        return await search(self._link, self._tables, query, session_id, normalize_limit(limit))

    async def close(self) -> None:
        """Store what was accepted and close what was opened; never a pool that was handed in."""
        if not self._link.is_elsewhere:
            await self._followers.close()
            await self._appender.close()
        await self._link.close()

    async def _prepare(self, connection: Connection) -> None:
        self._writing.store_id = await prepare_store(connection, self._tables)

    async def _rows(self, query: str, *values: Any) -> list[Row]:
        if any(isinstance(value, str) and "\0" in value for value in values):
            return []  # PostgreSQL's texts have none, and so no row has

        async def read(connection: Connection) -> list[Row]:
            return await connection.fetch(query, *values)

        return await self._link.run(read)


def _text(cursor_id: str) -> str:
    """Return the id of a cursor, which may be a stranger's, as a text of PostgreSQL's."""
    return cursor_id.replace("\0", "")
