"""The server's store in Redis or Valkey: any number of servers in one database, each in its namespace."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from sandbox_agent.persist.redis.client import RedisClient
from sandbox_agent.persist.redis.scripts import Script
from sandbox_agent.persist.store.redis.erase import Eraser
from sandbox_agent.persist.store.redis.owner import Owner
from sandbox_agent.persist.store.redis.read import Reader
from sandbox_agent.persist.store.redis.rows import pack_changes
from sandbox_agent.persist.store.redis.scripts import COMMIT, NEXT_KEY
from sandbox_agent.persist.store.redis.search import search
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

__all__ = ["RedisSessionStore"]

_TIMEOUT: Final = 15.0
_commit: Final = Script(COMMIT)
_next_key: Final = Script(NEXT_KEY)


class RedisSessionStore:
    """Implements SessionStore.

    Of Redis >= 6.2 or Valkey it needs nothing but scripts: no modules. It is durable as the server is
    (``appendonly yes``, ``appendfsync always``).

    Args:
        url: ``redis://[[name]:password@]host[:port][/database]``, ``rediss://…`` or ``valkey://…``; None
            where a client is given.
        client: a client of ``redis.asyncio``, of a cluster too; it is never closed here.
        namespace: the server's own part of the database; its keys are in one slot of a cluster.
        prefix: of all keys.
        timeout: how long a call may take, in seconds.

    Raises:
        ImportError: the extra ``redis`` is not installed.
        ValueError: the URL is none, or the namespace is empty.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        client: RedisClient | None = None,
        namespace: str,
        prefix: str = "sandbox-agent",
        timeout: float = _TIMEOUT,
    ) -> None:
        self._owner = Owner(url, client, namespace=namespace, prefix=prefix, timeout=timeout)
        self._reader = Reader(self._owner)
        self._eraser = Eraser(self._owner, self._reader)

    @property
    def trouble(self) -> str | None:
        """Why nothing can be stored now (another server has taken over), in one line; None while it can."""
        return self._owner.trouble

    async def open(self) -> None:
        """Become the namespace's owner; ``finish_deletes`` is for whoever opened it, and may take long.

        Raises:
            PersistError: the server can't be used, another server lives in the namespace, or a newer
                version made it.
        """
        await self._owner.open()

    async def close(self) -> None:
        """Let the namespace go. Safe to call twice."""
        await self._owner.close()

    async def commit(self, changes: Changes) -> None:
        """Store all rows or none; the same ones again change nothing."""
        await self._owner.write(_commit, *pack_changes(changes))

    async def next_key(self) -> int:
        """Return a session key that was never used here."""
        answer = None
        while answer is None:  # a key whose answer was lost is left out
            answer = await self._owner.write(_next_key)
        return int(answer[0])

    async def session(self, session_id: str) -> SessionRow | None:
        """Return the session of that name."""
        return next(iter(await self._reader.sessions_where("name", session_id)), None)

    async def native_session(self, agent: str, native_session_id: str) -> SessionRow | None:
        """Return the newest session that the agent knows under that name."""
        return next(iter(await self._reader.sessions_where("native", agent, native_session_id)), None)

    async def sessions(self, *, limit: int, cursor: str | None = None) -> tuple[list[SessionRow], str | None]:
        """Return a page of sessions, newest first, and the cursor of the next page."""
        return await self._reader.session_page(limit, cursor)

    async def events(
        self, key: int, *, after: int, limit: int, max_bytes: int, include_raw: bool = False
    ) -> list[EventRow]:
        """Return events with ``sequence > after``, at least one if there are any."""
        return await self._reader.events(key, after, limit, max_bytes, include_raw)

    async def envelopes(self, key: int, *, after: int, limit: int) -> list[EnvelopeRow]:
        """Return envelopes with ``index > after``."""
        return await self._reader.envelopes(key, after, limit)

    async def newest_envelopes(self, key: int, *, limit: int) -> list[EnvelopeRow]:
        """Return the newest envelopes, oldest of them first."""
        return (await self._reader.envelopes(key, 0, limit, "newest"))[::-1]

    async def snapshot(self, key: int) -> SnapshotRow | None:
        """Return the session's newest snapshot."""
        return await self._reader.snapshot(key)

    async def turns(self, key: int, *, limit: int) -> list[TurnRow]:
        """Return the newest turns, oldest of them first."""
        return (await self._reader.turns(key, "newest", limit))[::-1]

    async def turn(self, key: int, *, turn_id: str = "", idempotency_key: str = "") -> TurnRow | None:
        """Return the turn of that id, or of that key."""
        how, what = ("id", turn_id) if turn_id else ("key", idempotency_key)
        return next(iter(await self._reader.turns(key, how, what)), None)

    async def open_turns(self) -> list[tuple[SessionRow, TurnRow]]:
        """Return all turns that are accepted or running, by session and number."""
        return await self._reader.open_turns()

    async def permission(self, key: int, permission_id: str) -> PermissionRow | None:
        """Return a permission or question."""
        return await self._reader.permission(key, permission_id)

    async def pending_permissions(self, *, limit: int) -> list[tuple[SessionRow, PermissionRow]]:
        """Return what waits for an answer, oldest first."""
        return await self._reader.pending_permissions(limit)

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
        return await search(
            self._owner,
            self._reader,
            query,
            limit=limit,
            offset=offset,
            agent=agent,
            session_id=session_id,
            since=since,
            until=until,
        )

    async def delete(self, key: int) -> None:
        """Erase a session: rows and index; what an append-only file holds of it goes when that is rewritten.

        It is out of sight at once; a delete that is interrupted is finished by ``finish_deletes``.
        """
        if await self._eraser.hide(key):
            await self._eraser.delete(key)

    async def finish_deletes(self) -> None:
        """Go on with deletes that were interrupted."""
        for key in await self._eraser.deleted_keys():
            await self._eraser.delete(key)

    async def hide(self, key: int) -> None:
        """Take a session out of sight, to be deleted."""
        await self._eraser.hide(key)

    async def used_bytes(self) -> int:
        """Return what ``expire(max_bytes=…)`` compares.

        The sum over events and envelopes of their data, its few columns and 16 bytes; and twice the
        searched texts, compressed, for them and their index. Redis needs somewhat more memory than that.
        """
        return await self._eraser.used_bytes()

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
            lost |= dict.fromkeys(await self._eraser.expire(before))
        if max_bytes is not None:
            lost |= dict.fromkeys(await self._eraser.shrink(max_bytes))
        rows: list[SessionRow] = []
        for key in lost:
            found = await self._reader.sessions_where("keys", key) if key != NO_SESSION else []
            for row in found:
                rows.append(row)
                emptied = row.first_sequence > row.last_sequence and (row.ended or not row.managed)
                if emptied and (retire is None or await retire(row)):
                    await self.delete(key)
        return rows
