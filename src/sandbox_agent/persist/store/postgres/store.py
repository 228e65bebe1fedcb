"""The server's store in PostgreSQL: one namespace of tables that several servers share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import Final, TypeVar

import anyio.to_thread

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.library import Connection
from sandbox_agent.persist.postgres.link import PostgresLink
from sandbox_agent.persist.sql.ledger import Filters
from sandbox_agent.persist.store.postgres.erase import Aged, Eraser
from sandbox_agent.persist.store.postgres.owner import Owner
from sandbox_agent.persist.store.postgres.read import Reader
from sandbox_agent.persist.store.postgres.schema import (
    DEFAULT_SCHEMA,
    check_version,
    in_schema,
    lock_class,
    migrate,
)
from sandbox_agent.persist.store.postgres.search import search
from sandbox_agent.persist.store.postgres.write import Batch, write
from sandbox_agent.persist.store.rows import (
    NO_SESSION,
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SearchRow,
    SessionRow,
    SnapshotRow,
    TurnRow,
)

__all__ = ["PostgresSessionStore"]

T = TypeVar("T")

_MAX_SIZE: Final = 6
# Longer texts are taken apart in a thread.
_LONG_TEXTS: Final = 16 * 1024


class PostgresSessionStore:
    """Implements SessionStore.

    Nothing is connected to before ``open``. After an outage the same object goes on.

    Args:
        connection_string: ``postgresql://user:password@host:port/database``.
        namespace: whose sessions these are; one server at a time has it.
        schema: where the tables are; made if there is none.
        max_size: connections at most, beside the one that holds the namespace.
        read_only: look at another server's sessions: nothing is made, migrated, owned or written.
    """

    def __init__(
        self,
        connection_string: str,
        *,
        namespace: str,
        schema: str = DEFAULT_SCHEMA,
        max_size: int = _MAX_SIZE,
        read_only: bool = False,
    ) -> None:
        self._sql = in_schema(schema)

        async def prepare(connection: Connection) -> None:
            await (check_version if read_only else migrate)(connection, schema)

        self._link = PostgresLink(
            connection_string, max_size=max_size, prepare=prepare, name="sandbox-agent server"
        )
        self._owner = Owner(self._link, self._sql, lock_class(schema), namespace)
        self._reader = Reader(self._sql, 0)
        self._eraser = Eraser(self._sql, self._owner)
        self._read_only = read_only

    @property
    def trouble(self) -> str | None:
        """Why the database can't be used now, or the namespace is another server's; None while it works."""
        return self._owner.replaced or self._owner.trouble

    async def open(self) -> None:
        """Make or migrate the tables, and take the namespace.

        Raises:
            PersistError: another server has it, a newer version made the tables, or the database fails.
        """
        await (self._owner.look() if self._read_only else self._owner.take())
        self._reader.number = self._owner.number

    async def close(self) -> None:
        """Let go of the namespace and close the connections. Safe to call twice."""
        await self._owner.let_go()
        await self._link.close()

    async def commit(self, changes: Changes) -> None:
        """Store all rows or none; the same ones again change nothing."""
        self._check_owned()
        if sum(len(row.text) for row in changes.texts) > _LONG_TEXTS:
            batch = await anyio.to_thread.run_sync(Batch.of, changes, self._owner)
        else:
            batch = Batch.of(changes, self._owner)
        await self._link.transaction(
            lambda connection: write(connection, self._sql, self._owner, batch, changes)
        )

    async def next_key(self) -> int:
        """Return a session key that was never used here."""
        statement = self._sql(
            "UPDATE @.store_namespaces SET last_key = 1 + greatest(last_key, "
            "(SELECT max(key) FROM @.store_sessions WHERE namespace = $1)) "
            "WHERE number = $1 AND generation = $2 RETURNING last_key"
        )

        async def take(connection: Connection) -> int:
            found = await connection.fetchval(statement, self._owner.number, self._owner.generation)
            if found is None:
                raise await self._owner.lost(connection)
            return int(found)

        return await self._write(take)

    async def session(self, session_id: str) -> SessionRow | None:
        """Return the session of that name."""
        return await self._link.run(lambda connection: self._reader.session(connection, session_id))

    async def native_session(self, agent: str, native_session_id: str) -> SessionRow | None:
        """Return the newest session that the agent knows under that name."""
        return await self._link.run(
            lambda connection: self._reader.native_session(connection, agent, native_session_id)
        )

    async def sessions(self, *, limit: int, cursor: str | None = None) -> tuple[list[SessionRow], str | None]:
        """Return a page of sessions, newest first, and the cursor of the next page."""
        return await self._link.run(lambda connection: self._reader.sessions(connection, limit, cursor))

    async def events(
        self, key: int, *, after: int, limit: int, max_bytes: int, include_raw: bool = False
    ) -> list[EventRow]:
        """Return events with ``sequence > after``, at least one if there are any."""
        return await self._link.run(
            lambda connection: self._reader.events(connection, key, after, limit, max_bytes, include_raw)
        )

    async def envelopes(self, key: int, *, after: int, limit: int) -> list[EnvelopeRow]:
        """Return envelopes with ``index > after``."""
        return await self._link.run(lambda connection: self._reader.envelopes(connection, key, after, limit))

    async def newest_envelopes(self, key: int, *, limit: int) -> list[EnvelopeRow]:
        """Return the newest envelopes, oldest of them first."""
        return await self._link.run(
            lambda connection: self._reader.envelopes(connection, key, 0, limit, newest=True)
        )

    async def snapshot(self, key: int) -> SnapshotRow | None:
        """Return the session's newest snapshot."""
        return await self._link.run(lambda connection: self._reader.snapshot(connection, key))

    async def turns(self, key: int, *, limit: int) -> list[TurnRow]:
        """Return the newest turns, oldest of them first."""
        return await self._link.run(lambda connection: self._reader.turns(connection, key, limit))

    async def turn(self, key: int, *, turn_id: str = "", idempotency_key: str = "") -> TurnRow | None:
        """Return the turn of that id, or of that key."""
        return await self._link.run(
            lambda connection: self._reader.turn(connection, key, turn_id, idempotency_key)
        )

    async def open_turns(self) -> list[tuple[SessionRow, TurnRow]]:
        """Return all turns that are accepted or running, by session and number."""
        return await self._link.run(self._reader.open_turns)

    async def permission(self, key: int, permission_id: str) -> PermissionRow | None:
        """Return a permission or question."""
        return await self._link.run(
            lambda connection: self._reader.permission(connection, key, permission_id)
        )

    async def pending_permissions(self, *, limit: int) -> list[tuple[SessionRow, PermissionRow]]:
        """Return what waits for an answer, oldest first."""
        return await self._link.run(lambda connection: self._reader.pending_permissions(connection, limit))

    async def search(
        self,
        query: str,
        *,
        limit: int,
        offset: int = 0,
        agent: str | None = None,
        session_id: str | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> list[SearchRow]:
        """Return where the words are found, best first; ``since <= time < until``."""
        filters = Filters(agent, session_id, since, until)
        return await search(self._link, self._reader, query, limit, offset, filters)

    async def delete(self, key: int) -> None:
        """Erase a session: rows and index. One that is interrupted is finished by ``finish_deletes``."""
        if await self._write(lambda connection: self._eraser.hide(connection, key)):
            await self._end_delete(key)

    async def finish_deletes(self) -> None:
        """Go on with deletes that were interrupted."""
        for key in await self._link.run(self._eraser.hidden):
            await self._end_delete(key)

    async def hide(self, key: int) -> None:
        """Take a session out of sight, to be deleted."""
        await self._write(lambda connection: self._eraser.hide(connection, key))

    async def used_bytes(self) -> int:
        """Return what ``expire(max_bytes=…)`` compares: its data, with an allowance for the index."""
        return await self._link.run(self._eraser.used_bytes)

    async def expire(
        self,
        *,
        before: int | None = None,
        max_bytes: int | None = None,
        retire: Callable[[SessionRow], Awaitable[bool]] | None = None,
    ) -> Sequence[SessionRow]:
        """Erase events and envelopes older than that, or the oldest until the store is that small."""
        lost: dict[int, None] = {}
        if before is not None:
            for aged in await self._link.run(self._eraser.aged):
                if aged.oldest < before and await self._erase(aged.key, before):
                    lost[aged.key] = None
        if max_bytes is not None:
            lost |= await self._shrink(max_bytes)
        return await self._after_expiry([key for key in lost if key != NO_SESSION], retire)

    async def _shrink(self, max_bytes: int) -> dict[int, None]:
        lost: dict[int, None] = {}
        sessions: list[Aged] = []
        if await self.used_bytes() > max_bytes:
            sessions = await self._link.run(self._eraser.aged)
        heapify(sessions)
        while sessions:
            excess = await self.used_bytes() - max_bytes
            if excess <= 0:
                break
            key = heappop(sessions).key
            if await self._write(
                lambda connection, key=key, excess=excess: self._eraser.erase(
                    connection, key, max_bytes=excess
                )
            ):
                lost[key] = None
            for again in await self._link.run(lambda connection, key=key: self._eraser.aged(connection, key)):
                heappush(sessions, again)
        return lost

    async def _after_expiry(
        self, keys: Sequence[int], retire: Callable[[SessionRow], Awaitable[bool]] | None
    ) -> list[SessionRow]:
        rows: list[SessionRow] = []
        for key in keys:
            row = await self._link.run(lambda connection, key=key: self._reader.session_of(connection, key))
            if row is None:
                continue
            rows.append(row)
            emptied = row.first_sequence > row.last_sequence and (row.ended or not row.managed)
            if emptied and (retire is None or await retire(row)):
                await self.delete(key)
        return rows

    async def _end_delete(self, key: int) -> None:
        await self._erase(key)
        await self._write(lambda connection: self._eraser.forget(connection, key))

    async def _erase(self, key: int, before: int | None = None) -> bool:
        """Erase slice by slice; True if there was anything."""
        erased = False
        while await self._write(lambda connection: self._eraser.erase(connection, key, before=before)):
            erased = True
        return erased

    async def _write(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        self._check_owned()
        return await self._link.transaction(work)

    def _check_owned(self) -> None:
        if self._owner.replaced is not None:
            raise PersistError(self._owner.replaced)
