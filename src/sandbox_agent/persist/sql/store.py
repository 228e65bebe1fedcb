"""The one session store over SQL; an engine gives it a database and the dialect of its tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from typing import Any

from sandbox_agent.persist.sql.erase import Aged, EraseDialect, Eraser
from sandbox_agent.persist.sql.ledger import Filters, Ledger
from sandbox_agent.persist.sql.work import Database
from sandbox_agent.persist.store import (
    NO_SESSION,
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SearchRow,
    SessionRow,
    SnapshotRow,
    TextRow,
    TurnRow,
)


class SqlSessionStore(ABC):
    """Implements SessionStore.

    Args:
        database: runs works.
        dialect: of its tables.
    """

    def __init__(self, database: Database, dialect: EraseDialect) -> None:
        self._database = database
        self._ledger = Ledger(dialect)
        self._eraser = Eraser(dialect)

    @abstractmethod
    async def open(self) -> None:
        """Make or migrate the tables, and become their only writer."""

    @abstractmethod
    async def close(self) -> None:
        """Release the store. Safe to call twice."""

    @property
    @abstractmethod
    def trouble(self) -> str | None:
        """Why nothing can be stored now, in one line; None while the store works."""

    async def check(self) -> None:  # noqa: B027 - optional hook
        """Update ``trouble``, in a store that does not watch its connection by itself."""

    async def commit(self, changes: Changes) -> None:
        """Store all rows or none; the same ones again change nothing."""
        texts = await self._prepare_texts(changes.texts)
        await self._database.write(partial(self._ledger.commit, changes, texts))

    async def next_key(self) -> int:
        """Return a session key that was never used here."""
        return await self._database.write(self._ledger.next_key)

    async def session(self, session_id: str) -> SessionRow | None:
        """Return the session of that name."""
        return await self._database.read(partial(self._ledger.session, session_id))

    async def native_session(self, agent: str, native_session_id: str) -> SessionRow | None:
        """Return the newest session that the agent knows under that name."""
        return await self._database.read(partial(self._ledger.native_session, agent, native_session_id))

    async def sessions(self, *, limit: int, cursor: str | None = None) -> tuple[list[SessionRow], str | None]:
        """Return a page of sessions, newest first, and the cursor of the next page."""
        return await self._database.read(partial(self._ledger.sessions, limit, cursor))

    async def events(
        self, key: int, *, after: int, limit: int, max_bytes: int, include_raw: bool = False
    ) -> list[EventRow]:
        """Return events with ``sequence > after``, at least one if there are any."""
        return await self._database.read(
            partial(self._ledger.events, key, after, limit, max_bytes, include_raw)
        )

    async def envelopes(self, key: int, *, after: int, limit: int) -> list[EnvelopeRow]:
        """Return envelopes with ``index > after``."""
        return await self._database.read(partial(self._ledger.envelopes, key, after, limit))

    async def newest_envelopes(self, key: int, *, limit: int) -> list[EnvelopeRow]:
        """Return the newest envelopes, oldest of them first."""
        return await self._database.read(partial(self._ledger.envelopes, key, 0, limit, newest=True))

    async def snapshot(self, key: int) -> SnapshotRow | None:
        """Return the session's newest snapshot."""
        return await self._database.read(partial(self._ledger.snapshot, key))

    async def turns(self, key: int, *, limit: int) -> list[TurnRow]:
        """Return the newest turns, oldest of them first."""
        return await self._database.read(partial(self._ledger.turns, key, limit))

    async def turn(self, key: int, *, turn_id: str = "", idempotency_key: str = "") -> TurnRow | None:
        """Return the turn of that id, or of that key."""
        return await self._database.read(partial(self._ledger.turn, key, turn_id, idempotency_key))

    async def open_turns(self) -> list[tuple[SessionRow, TurnRow]]:
        """Return all turns that are accepted or running, by session and number."""
        return await self._database.read(self._ledger.open_turns)

    async def permission(self, key: int, permission_id: str) -> PermissionRow | None:
        """Return a permission or question."""
        return await self._database.read(partial(self._ledger.permission, key, permission_id))

    async def pending_permissions(self, *, limit: int) -> list[tuple[SessionRow, PermissionRow]]:
        """Return the permissions that wait for an answer, oldest first."""
        return await self._database.read(partial(self._ledger.pending_permissions, limit))

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
        return await self._search(query, limit, offset, Filters(agent, session_id, since, until))

    async def delete(self, key: int) -> None:
        """Erase a session: rows, index and what the files still hold of them.

        It is out of sight at once. One that is interrupted is finished by ``finish_deletes``, as is one whose
        traces can't be removed from a file in some seconds: that is logged as a warning.
        """
        if await self._database.write(partial(self._eraser.hide, key)):
            await self._erase(key)
            if await self._clean():
                await self._database.write(partial(self._eraser.forget, key))

    async def finish_deletes(self) -> None:
        """Continue deletions and expiries that were interrupted, or have left traces in a file."""
        keys = await self._database.read(self._eraser.hidden)
        # Older releases stored envelopes that belong to no session.
        for key in (NO_SESSION, *keys):
            await self._erase(key)
        if await self._clean():
            for key in keys:
                await self._database.write(partial(self._eraser.forget, key))

    async def hide(self, key: int) -> None:
        """Take a session out of sight, to be deleted."""
        await self._database.write(partial(self._eraser.hide, key))

    @abstractmethod
    async def used_bytes(self) -> int:
        """Return what ``expire(max_bytes=…)`` compares."""

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
            await self._clean()
        return await self._after_expiry(list(lost), retire)

    async def _aged(self) -> list[Aged]:
        found: list[Aged] = []
        after: int | None = 0
        while after is not None:
            page, after = await self._database.read(partial(self._eraser.aged, after))
            found += page
        return sorted(found)

    async def _shrink(self, max_bytes: int) -> dict[int, None]:
        lost: dict[int, None] = {}
        sessions = await self._aged()
        heapify(sessions)
        while sessions:
            excess = await self.used_bytes() - max_bytes
            if excess <= 0:
                # Until the index is complete, how large it will be is an estimate.
                if await self._complete_index():
                    continue
                break
            key = heappop(sessions).key
            if await self._database.write(partial(self._eraser.erase, key, max_bytes=excess)):
                lost[key] = None
            for again in await self._database.read(partial(self._eraser.aged_one, key)):
                heappush(sessions, again)
        return lost

    async def _after_expiry(
        self, keys: Sequence[int], retire: Callable[[SessionRow], Awaitable[bool]] | None
    ) -> list[SessionRow]:
        rows: list[SessionRow] = []
        for key in keys:
            row = await self._database.read(partial(self._ledger.session_of, key))
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
        while await self._database.write(partial(self._eraser.erase, key, before=before)):
            erased = True
        return erased

    async def _prepare_texts(self, texts: Sequence[TextRow]) -> Sequence[Any]:
        """Return texts as the dialect gets them."""
        return texts

    @abstractmethod
    async def _search(self, query: str, limit: int, offset: int, filters: Filters) -> list[SearchRow]: ...

    async def _complete_index(self) -> bool:
        """Complete the search's index; True if it was not complete."""
        return False

    async def _clean(self) -> bool:
        """Remove the traces of what was erased; False if that has to be tried again."""
        return True
