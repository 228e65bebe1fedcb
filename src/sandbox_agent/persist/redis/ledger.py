"""The server's store in Redis or Valkey. Many servers can share a database, each in its own namespace."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal

import anyio.to_thread

from sandbox_agent.persist.redis import ledger_rows as codec
from sandbox_agent.persist.redis import ledger_scripts as scripts
from sandbox_agent.persist.redis.client import RedisClient
from sandbox_agent.persist.redis.erase import Eraser
from sandbox_agent.persist.redis.ledger_rows import MAX_NUMBER, Answer, StoredText
from sandbox_agent.persist.redis.owner import Owner
from sandbox_agent.persist.searching import Query
from sandbox_agent.persist.store import (
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SearchRow,
    SessionRow,
    SnapshotRow,
    TurnRow,
    key_before,
)
from sandbox_agent.persist.store.values import add_raw, clean

_TIMEOUT: Final = 15.0
_MAX_LIMIT: Final = 2**31 - 1
# Permissions per call.
_PAGE: Final = 100
# A search reads at most so many texts. Its first call reads few: they have enough hits of a common word.
MAX_TEXTS = 100_000
FIRST_PAGE = 100
TEXTS_PAGE = 2_000
_TEXTS_BYTES: Final = 512 * 1024
_MAX_HITS: Final = 1_000


class RedisSessionStore:
    """Implements SessionStore.

    It needs Redis >= 6.2 or Valkey, without modules. How durable a commit is depends on the server's settings
    (``appendonly yes``, ``appendfsync always``). A page is one call, or one for each 2 MiB of it.

    Args:
        url: ``redis://[[name]:password@]host[:port][/database]``, ``rediss://…`` or ``valkey://…``; None
            with ``client``.
        client: a client of ``redis.asyncio``, also of a cluster. It is never closed here.
        namespace: separates servers that share a database. In a cluster, all of its keys are on one node.
        prefix: of all keys.
        timeout: of one call, in seconds.

    Raises:
        ImportError: the extra ``redis`` is not installed.
        ValueError: the URL is invalid, or the namespace is empty.
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
        self._eraser = Eraser(self._owner)

    @property
    def trouble(self) -> str | None:
        """Why commits fail now (another server took over), in one line; None while they succeed."""
        return self._owner.trouble

    async def open(self) -> None:
        """Acquire the namespace. ``finish_deletes`` must be called after it, and may take long.

        Raises:
            PersistError: the server can't be used, another server uses the namespace, or a newer release
                wrote it.
        """
        await self._owner.open()

    async def check(self) -> None:
        """Do nothing: ``trouble`` follows the lease, which is renewed all the time."""

    async def close(self) -> None:
        await self._owner.close()

    async def commit(self, changes: Changes) -> None:
        await self._owner.write(scripts.COMMIT, *codec.pack_changes(changes))

    async def next_key(self) -> int:
        answer = None
        while answer is None:  # A key whose answer was lost stays unused.
            answer = await self._owner.write(scripts.NEXT_KEY)
        return int(answer[0])

    async def session(self, session_id: str) -> SessionRow | None:
        return next(iter(await self._sessions("name", clean(session_id))), None)

    async def native_session(self, agent: str, native_session_id: str) -> SessionRow | None:
        words = (clean(agent), clean(native_session_id))
        return next(iter(await self._sessions("native", *words)), None)

    async def sessions(self, *, limit: int, cursor: str | None = None) -> tuple[list[SessionRow], str | None]:
        size = _clamp(limit)
        rows = await self._sessions("page", key_before(cursor, MAX_NUMBER), size + 1)
        page = rows[:size]
        return page, str(page[-1].key) if page and len(rows) > size else None

    async def events(
        self, key: int, *, after: int, limit: int, max_bytes: int, include_raw: bool = False
    ) -> list[EventRow]:
        found: list[EventRow] = []
        first, limit, room = max(after, 0) + 1, _clamp(limit), max_bytes
        more = first <= MAX_NUMBER
        while more and len(found) < limit and (room > 0 or not found):
            words = (limit - len(found), min(max(room, 0), sys.maxsize), "raw" if include_raw else "")
            answer = Answer(await self._owner.read(scripts.EVENTS, "e", key, first, *words))
            more = bool(answer and answer.number())
            while answer:
                row = codec.read_event(key, answer.number(), answer.value() or b"")
                raw = answer.value() if include_raw else None
                room -= len(row.data) + len(raw or b"")
                if found and room < 0:
                    return found
                if raw is not None:
                    add_raw(row, raw)
                found.append(row)
            first = found[-1].sequence + 1 if found else first
        return found

    async def envelopes(self, key: int, *, after: int, limit: int) -> list[EnvelopeRow]:
        return await self._envelopes(key, max(after, 0) + 1, limit, "")

    async def newest_envelopes(self, key: int, *, limit: int) -> list[EnvelopeRow]:
        return (await self._envelopes(key, MAX_NUMBER, limit, "newest"))[::-1]

    async def snapshot(self, key: int) -> SnapshotRow | None:
        value = await self._owner.call("HGET", f"x:{key}", "d")
        return codec.read_snapshot(value) if value else None

    async def turns(self, key: int, *, limit: int) -> list[TurnRow]:
        if limit < 1:
            return []
        names: list[bytes] = await self._owner.call("ZREVRANGE", f"tn:{key}", 0, _clamp(limit) - 1)
        return await self._turns(key, names[::-1])

    async def turn(self, key: int, *, turn_id: str = "", idempotency_key: str = "") -> TurnRow | None:
        name: str | bytes | None = clean(turn_id)
        if not turn_id:
            name = await self._owner.call("HGET", f"ti:{key}", clean(idempotency_key))
        return next(iter(await self._turns(key, [name])), None) if name else None

    async def open_turns(self) -> list[tuple[SessionRow, TurnRow]]:
        keys = sorted(int(key) for key in await self._owner.call("SMEMBERS", "open"))
        found: list[tuple[SessionRow, TurnRow]] = []
        for session in await self._sessions("keys", *keys):
            names = list(await self._owner.call("SMEMBERS", f"to:{session.key}"))
            turns = await self._turns(session.key, names)
            found += [(session, turn) for turn in sorted(turns, key=lambda turn: turn.number)]
        return found

    async def permission(self, key: int, permission_id: str) -> PermissionRow | None:
        return next(iter(await self._permissions([(key, clean(permission_id))])), None)

    async def pending_permissions(self, *, limit: int) -> list[tuple[SessionRow, PermissionRow]]:
        limit = _clamp(limit)
        found: list[tuple[SessionRow, PermissionRow]] = []
        start = 0
        while len(found) < limit:
            members: list[bytes] = await self._owner.call("ZRANGE", "pending", start, start + _PAGE - 1)
            places = [(int(member[:10]), member[22:]) for member in members]
            rows = await self._permissions(places)
            sessions = await self._sessions("keys", *{key for key, _ in places})
            by_key = {session.key: session for session in sessions}
            found += [(by_key[row.key], row) for row in rows if row.key in by_key and row.answered is None]
            if len(members) < _PAGE:
                break
            start += _PAGE
        return found[:limit]

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
        """Return the newest texts that have all words, last committed first; ``since <= time < until``.

        There is no index. It reads texts, newest first, until it has enough hits or has read ``MAX_TEXTS``.
        """
        wanted, scope, cursor = Query(query), "", ""
        limit, offset = min(max(limit, 0), _MAX_HITS), max(offset, 0)
        if session_id is not None:
            session = await self.session(session_id)
            if session is None:
                return []
            scope = str(session.key)
        hits: list[SearchRow] = []
        sessions: dict[int, SessionRow | None] = {}
        count, page = 0, FIRST_PAGE
        while wanted and len(hits) < limit and count < MAX_TEXTS and cursor != "-1":
            answer = Answer(await self._owner.read(scripts.TEXTS, scope, cursor, page, _TEXTS_BYTES))
            page = min(4 * page, TEXTS_PAGE)
            cursor = str(answer.number())
            texts: list[StoredText] = []
            while answer:
                text = codec.read_text(answer.value() or b"")
                if (since is None or text.time >= since) and (until is None or text.time < until):
                    texts.append(text)
                count += 1
            # A long text takes milliseconds, so the event loop must not wait for this.
            matches = await anyio.to_thread.run_sync(_match_texts, texts, wanted)
            unknown = {text.key for text, _ in matches} - sessions.keys()
            sessions |= dict.fromkeys(unknown)
            sessions |= {row.key: row for row in await self._sessions("keys", *unknown)}
            for text, snippet in matches:
                row = sessions[text.key]
                if row is None or (agent is not None and row.agent != clean(agent)):
                    continue
                if not offset and len(hits) < limit:
                    place = (text.sequence, text.time, snippet)
                    hits.append(SearchRow(row.session_id, row.agent, row.title, *place))
                offset = max(offset - 1, 0)
        return hits

    async def delete(self, key: int) -> None:
        """Erase a session. An append-only file keeps its bytes until it is rewritten.

        The session is invisible at once. ``finish_deletes`` finishes a deletion that was interrupted.
        """
        if await self._eraser.hide(key):
            await self._eraser.delete(key)

    async def finish_deletes(self) -> None:
        """Finish interrupted deletions, and remove what only earlier releases used."""
        await self._eraser.finish_deletes()
        await self._eraser.sweep()

    async def hide(self, key: int) -> None:
        await self._eraser.hide(key)

    async def used_bytes(self) -> int:
        """Return what ``expire(max_bytes=…)`` compares; Redis needs somewhat more memory than that.

        It is the data of events and envelopes with 16 bytes each, and twice the compressed texts.
        """
        return await self._eraser.used_bytes()

    async def expire(
        self,
        *,
        before: int | None = None,
        max_bytes: int | None = None,
        retire: Callable[[SessionRow], Awaitable[bool]] | None = None,
    ) -> Sequence[SessionRow]:
        affected: dict[int, None] = {}
        if before is not None:
            affected |= dict.fromkeys(await self._eraser.expire(before))
        if max_bytes is not None:
            affected |= dict.fromkeys(await self._eraser.shrink(max_bytes))
        rows: list[SessionRow] = []
        for key in affected:
            for row in await self._sessions("keys", key):
                rows.append(row)
                emptied = row.first_sequence > row.last_sequence and (row.ended or not row.managed)
                if emptied and (retire is None or await retire(row)):
                    await self.delete(key)
        return rows

    async def _sessions(
        self, by: Literal["name", "native", "page", "keys"], *words: str | int
    ) -> list[SessionRow]:
        answer = Answer(await self._owner.read(scripts.SESSIONS, by, *words))
        rows: list[SessionRow] = []
        while answer:
            rows.append(codec.read_session(answer))
        return rows

    async def _turns(self, key: int, names: Sequence[str | bytes]) -> list[TurnRow]:
        found = await self._fields("t", "tp", [(key, name) for name in names])
        return [codec.read_turn(row, prompt) for row, prompt in found]

    async def _permissions(self, places: Sequence[tuple[int, str | bytes]]) -> list[PermissionRow]:
        return [codec.read_permission(row, details) for row, details in await self._fields("q", "qd", places)]

    async def _fields(
        self, kind: str, second: str, places: Sequence[tuple[int, str | bytes]]
    ) -> list[tuple[bytes, bytes | None]]:
        """Return the values of rows and of what is stored beside them, without rows that are gone."""
        words = [word for key, name in places for word in (f"{kind}:{key}", name, f"{second}:{key}", name)]
        answer = Answer(await self._owner.read(scripts.FIELDS, *words)) if words else None
        found: list[tuple[bytes, bytes | None]] = []
        while answer:
            row, beside = answer.value(), answer.value()
            if row is not None:
                found.append((row, beside))
        return found

    async def _envelopes(
        self, key: int, first: int, limit: int, order: Literal["", "newest"]
    ) -> list[EnvelopeRow]:
        found: list[EnvelopeRow] = []
        limit = _clamp(limit)
        more = first <= MAX_NUMBER
        while more and len(found) < limit:
            words = (key, first, limit - len(found), sys.maxsize, order)
            answer = Answer(await self._owner.read(scripts.EVENTS, "v", *words))
            more = bool(answer and answer.number())
            while answer:
                found.append(codec.read_envelope(key, answer.number(), answer.value() or b""))
            if found:
                first = found[-1].index + (-1 if order else 1)
        return found


def _match_texts(texts: Sequence[StoredText], query: Query) -> list[tuple[StoredText, str]]:
    return [(text, snippet) for text in texts if (snippet := query.snippet(text.text)) is not None]


def _clamp(limit: int) -> int:
    return min(max(limit, 0), _MAX_LIMIT)
