"""The server's store in SQLite: one file, a thread that writes and one that reads beside it."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Awaitable, Callable, Sequence
from heapq import heapify, heappop, heappush
from typing import TypeVar

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sqlite.thread import SQLiteThread
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
from sandbox_agent.persist.store.sqlite import erase, read
from sandbox_agent.persist.store.sqlite.clean import Cleaner
from sandbox_agent.persist.store.sqlite.schema import migrate, require_features
from sandbox_agent.persist.store.sqlite.search import Filters, search
from sandbox_agent.persist.store.sqlite.values import clean
from sandbox_agent.persist.store.sqlite.write import write

__all__ = ["SQLiteSessionStore"]

T = TypeVar("T")


class SQLiteSessionStore:
    """Implements SessionStore.

    Args:
        writer: the thread that owns the file's writing connection; others may keep tables in the file.
        reader: one that reads beside it; the same one for ``":memory:"``.
        searcher: one that searches beside both, so that no page waits for a search; else the reader does.

    Attributes:
        trouble: why nothing could be stored when ``check`` was called last; None where it could.
    """

    def __init__(
        self, writer: SQLiteThread, reader: SQLiteThread, searcher: SQLiteThread | None = None
    ) -> None:
        self._writer = writer
        self._reader = reader
        self._searcher = searcher or reader
        # The connection that was made ready last; a thread opens a new one after some failures.
        self._ready: sqlite3.Connection | None = None
        self._cleaner = Cleaner(writer, self._write, self._read)
        self.trouble: str | None = None

    async def check(self) -> None:
        """Find out whether something could be stored now, for ``trouble``; nothing is."""
        try:
            await self._write(lambda _: None)
        except PersistError as error:
            self.trouble = str(error)
        else:
            self.trouble = None

    async def open(self) -> None:
        """Make or migrate the tables; ``finish_deletes`` is for whoever opened it, and may take long."""

        def prepare(connection: sqlite3.Connection) -> None:
            require_features(connection)
            migrate(connection)

        await self._write(prepare)

    async def commit(self, changes: Changes) -> None:
        """Store all rows or none; the same ones again change nothing."""
        await self._write(lambda connection: write(connection, changes))

    async def next_key(self) -> int:
        """Return a session key that was never used here."""

        def take(connection: sqlite3.Connection) -> int:
            connection.execute(
                "UPDATE store_meta SET value = 1 + "
                "max(value, (SELECT coalesce(max(key), 0) FROM store_sessions)) WHERE name = 'last_key'"
            )
            query = "SELECT value FROM store_meta WHERE name = 'last_key'"
            return int(connection.execute(query).fetchone()[0])

        return await self._write(take)

    async def session(self, session_id: str) -> SessionRow | None:
        """Return the session of that name."""
        values = (clean(session_id),)
        return await self._read(lambda connection: read.session_where(connection, "s.session_id = ?", values))

    async def native_session(self, agent: str, native_session_id: str) -> SessionRow | None:
        """Return the newest session that the agent knows under that name."""
        condition, values = (
            "s.agent = ? AND s.native_session_id = ?",
            (clean(agent), clean(native_session_id)),
        )
        return await self._read(lambda connection: read.session_where(connection, condition, values))

    async def sessions(self, *, limit: int, cursor: str | None = None) -> tuple[list[SessionRow], str | None]:
        """Return a page of sessions, newest first, and the cursor of the next page."""
        return await self._read(lambda connection: read.session_page(connection, limit, cursor))

    async def events(
        self, key: int, *, after: int, limit: int, max_bytes: int, include_raw: bool = False
    ) -> list[EventRow]:
        """Return events with ``sequence > after``, at least one if there are any."""
        return await self._read(
            lambda connection: read.events(connection, key, after, limit, max_bytes, include_raw)
        )

    async def envelopes(self, key: int, *, after: int, limit: int) -> list[EnvelopeRow]:
        """Return envelopes with ``index > after``."""
        return await self._read(lambda connection: read.envelopes(connection, key, after, limit))

    async def newest_envelopes(self, key: int, *, limit: int) -> list[EnvelopeRow]:
        """Return the newest envelopes, oldest of them first."""
        return await self._read(lambda connection: read.newest_envelopes(connection, key, limit))

    async def snapshot(self, key: int) -> SnapshotRow | None:
        """Return the session's newest snapshot."""
        return await self._read(lambda connection: read.snapshot(connection, key))

    async def turns(self, key: int, *, limit: int) -> list[TurnRow]:
        """Return the newest turns, oldest of them first."""
        return await self._read(lambda connection: read.turns(connection, key, limit))

    async def turn(self, key: int, *, turn_id: str = "", idempotency_key: str = "") -> TurnRow | None:
        """Return the turn of that id, or of that key."""
        return await self._read(lambda connection: read.turn(connection, key, turn_id, idempotency_key))

    async def open_turns(self) -> list[tuple[SessionRow, TurnRow]]:
        """Return all turns that are accepted or running, by session and number."""
        return await self._read(read.open_turns)

    async def permission(self, key: int, permission_id: str) -> PermissionRow | None:
        """Return a permission or question."""
        return await self._read(lambda connection: read.permission(connection, key, permission_id))

    async def pending_permissions(self, *, limit: int) -> list[tuple[SessionRow, PermissionRow]]:
        """Return what waits for an answer, oldest first."""
        return await self._read(lambda connection: read.pending_permissions(connection, limit))

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
        return await self._searcher.run(
            lambda connection: search(connection, query, limit, offset, filters), transaction=False
        )

    async def delete(self, key: int) -> None:
        """Erase a session: rows, index and what the file still holds of them.

        It is out of sight at once. One that is interrupted is finished by ``finish_deletes``, as is one
        whose traces can't be taken out of the file in some seconds: that is logged as a warning.
        """
        if not await self._write(lambda connection: erase.begin_delete(connection, key)):
            return
        await self._erase(key)
        if await self._cleaner.clean():
            await self._write(lambda connection: erase.end_delete(connection, key))

    async def finish_deletes(self) -> None:
        """Go on with deletes and expiries that were interrupted, or have left traces in the file."""
        keys = await self._write(erase.deleted_keys)
        for key in keys:
            await self._erase(key)
        if not keys and not await self._write(erase.get_mark):
            return
        if not await self._cleaner.clean():
            return
        for key in keys:
            await self._write(lambda connection, key=key: erase.end_delete(connection, key))

    async def hide(self, key: int) -> None:
        """Take a session out of sight, to be deleted."""
        await self._write(lambda connection: erase.begin_delete(connection, key))

    async def used_bytes(self) -> int:
        """Return what ``expire(max_bytes=…)`` compares: the size of the file without its free pages."""
        return await self._read(erase.used_bytes)

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
            for aged in await self._aged():
                if aged.oldest < before and await self._erase(aged.key, before):
                    lost[aged.key] = None
        if max_bytes is not None:
            lost |= await self._shrink(max_bytes)
        if lost:
            await self._cleaner.clean()
        return await self._after_expiry([key for key in lost if key != NO_SESSION], retire)

    async def _aged(self) -> list[erase.Aged]:
        found: list[erase.Aged] = []
        after: int | None = -1
        while after is not None:
            page, after = await self._read(
                lambda connection, after=after: erase.aged_sessions(connection, after)
            )
            found += page
        return sorted(found)

    async def _shrink(self, max_bytes: int) -> dict[int, None]:
        lost: dict[int, None] = {}
        sessions = await self._aged()
        heapify(sessions)
        # The index gives its pages back when it is merged; until then, what it will give is a guess.
        pending = 0
        while sessions:
            excess = await self._read(erase.used_bytes) - max_bytes
            if excess <= pending:
                if not pending:
                    break
                await self._cleaner.merge()
                pending = 0
                continue
            key = heappop(sessions).key
            erased = await self._slice(key, max_bytes=excess - pending)
            if erased.rows:
                lost[key] = None
                pending += erased.text
            oldest = await self._read(lambda connection, key=key: erase.oldest_of(connection, key))
            if oldest is not None:
                heappush(sessions, oldest)
        return lost

    async def _after_expiry(
        self, keys: Sequence[int], retire: Callable[[SessionRow], Awaitable[bool]] | None
    ) -> list[SessionRow]:
        rows: list[SessionRow] = []
        for key in keys:
            values = (key,)
            row = await self._read(
                lambda connection, values=values: read.session_where(connection, "s.key = ?", values)
            )
            if row is None:
                continue
            rows.append(row)
            emptied = row.first_sequence > row.last_sequence and (row.ended or not row.managed)
            if emptied and (retire is None or await retire(row)):
                await self.delete(key)
        return rows

    async def _erase(self, key: int, before: int | None = None) -> bool:
        """Erase slice by slice; True if there was anything."""
        erased = False
        while (await self._slice(key, before=before)).rows:
            erased = True
        return erased

    async def _slice(
        self, key: int, *, before: int | None = None, max_bytes: int = sys.maxsize
    ) -> erase.Erased:
        def erase_one(connection: sqlite3.Connection) -> erase.Erased:
            erased = erase.erase_slice(connection, key, before=before, max_bytes=max_bytes)
            if erased.rows:
                erase.set_mark(connection)
                erase.set_first_sequence(connection, key)
            return erased

        return await self._write(erase_one)

    async def _write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        def ready(connection: sqlite3.Connection) -> T:
            if connection is not self._ready:
                # What is replaced or erased is overwritten, wherever SQLite moves it.
                connection.execute("PRAGMA secure_delete=ON")
                self._ready = connection
            return work(connection)

        return await self._writer.run(ready)

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        return await self._reader.run(work, transaction=False)
