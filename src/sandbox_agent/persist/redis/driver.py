"""The Redis and Valkey driver: a stream a session (seed 000, database options)."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Sequence
from typing import ClassVar, Final

from sandbox_agent.errors import PersistError, SessionFencedError
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
from sandbox_agent.persist.redis.append import Appends
from sandbox_agent.persist.redis.client import RedisClient, RedisLink, Word
from sandbox_agent.persist.redis.follow import Followers
from sandbox_agent.persist.redis.keys import Keys, index_entry
from sandbox_agent.persist.redis.knowledge import Knowledge
from sandbox_agent.persist.redis.listing import Listing
from sandbox_agent.persist.redis.rows import event_words, read_events, record_words, to_record
from sandbox_agent.persist.redis.scripts import CLAIM, DELETE, INSERT, READ, SAVE
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

__all__ = ["RedisSessionPersistDriver"]

logger: logging.Logger = logging.getLogger("sandbox_agent.persist")

# An answer of the server's holds up to this much, or one event; longer pages take several.
_READ_BYTES: Final = 8 * 1024 * 1024
_READ_EVENTS: Final = 2_000
# What the server's numbers hold exactly.
_MAX_INDEX: Final = 2**53
# How long a deleted session's last generation is kept, in ms. After that its old writers are refused
# because the store doesn't know them.
_TOMBSTONE_MS: Final = 7 * 24 * 3600 * 1000


class RedisSessionPersistDriver(SessionPersistDriver):
    """Keeps sessions and events in Redis (6.2 or later) or Valkey, one server or a cluster.

    Events are in a stream whose ids are ``<event_index>-0``; all keys of a session carry its id as hash
    tag. Event ids are unique within a session. How durable an acknowledged write is, the server's settings
    say: see the page on Redis. Belongs to the event loop of its first call.

    Args:
        url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://``.
        client: a client of ``redis.asyncio`` (``Redis`` or ``RedisCluster``) in its place; never closed here.
        prefix: what all keys begin with; drivers with different ones don't see each other's sessions.
        ttl: after how many seconds without a write a session and its events vanish; None: never.
        timeout: how long a call may take, in seconds.
        wait_replicas: how many replicas have to confirm each write (``WAIT``).

    Raises:
        ImportError: the package redis is not installed.
        ValueError: both or none of url and client, or one that can't be used.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {
            Capability.APPEND,
            Capability.TAIL,
            Capability.LAST_INDEX,
            Capability.DELETE,
            Capability.FENCE,
            Capability.FOLLOW,
        }
    )

    def __init__(
        self,
        url: str | None = None,
        *,
        client: RedisClient | None = None,
        prefix: str = "sandbox-agent",
        ttl: float | None = None,
        timeout: float = 10.0,
        wait_replicas: int = 0,
    ) -> None:
        if ttl is not None and not (math.isfinite(ttl) and ttl > 0):
            raise ValueError("ttl must be a number of seconds above 0, or None")
        self._keys = Keys(prefix)
        self._link = RedisLink(url, client, timeout=timeout, wait_replicas=wait_replicas)
        self._ttl_ms = max(1, int(ttl * 1000)) if ttl is not None else 0
        self._knowledge = Knowledge(ttl or 0)
        self._appends = Appends(self._link, self._ttl_ms)
        self._listing = Listing(self._link, self._keys)
        self._followers = Followers(self._link, self._keys, self._read_on, expiring=ttl is not None)
        self._looked: asyncio.Task[None] | None = None

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        """Return the record, or None."""
        key = self._keys.of(session_id).record
        return to_record(await self._link.call("HGETALL", key, session_id=session_id))

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        """Return a page of records by (created_at, id), oldest first."""
        return await self._listing.page(normalize_limit(limit), decode_cursor(cursor))

    async def update_session(self, session: SessionRecord, /) -> None:
        """Insert the record, or replace the one of that id."""
        await self.save_session(session)

    async def save_session(self, session: SessionRecord, /, *, generation: int = UNFENCED) -> None:
        """``update_session`` by the session's writer.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
            PersistError: the server lost the session, refused, or can't be reached.
        """
        self._look_once()
        fields = record_words(session)
        keys = self._keys.of(session.id)
        known = self._knowledge.of(session.id)
        entry = index_entry(session.created_at, session.id)
        # The entry first: whatever ends between the two leaves an entry without a record, which a
        # listing takes away, never a record that no listing shows.
        await self._link.call("ZADD", self._keys.index, 0, entry, session_id=session.id)
        words: list[Word] = [self._ttl_ms, generation, known.life, known.last, *fields]
        answer: Sequence[bytes] = await self._link.run(
            SAVE, keys.data, words, session_id=session.id, write=True
        )
        self._check(session.id, generation, answer)
        # A listing may have taken the entry away before the record was there.
        await self._link.call("ZADD", self._keys.index, 0, entry, session_id=session.id)
        self._knowledge.note(session.id, answer[1], 0)

    async def claim_session(self, session_id: str, /) -> int:
        """Become the session's only writer and return the generation to write with, above all before."""
        self._look_once()
        keys = self._keys.of(session_id)
        generation, life, last = await self._link.run(
            CLAIM, keys.data, [self._ttl_ms], session_id=session_id, write=True
        )
        self._knowledge.replace(session_id, life, int(last))
        return int(generation)

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        """Return a page of a session's events by index, oldest first."""
        size = normalize_limit(limit)
        after = decode_cursor(cursor)
        events = await self._page(session_id, size + 1, after)
        page = events[:size]
        end = page[-1] if len(events) > size else None
        return ListPage(page, encode_cursor(end.event_index, end.id) if end else None)

    def cursor_after(self, event_index: int, /) -> str:
        """Return the cursor of ``list_events`` behind that index."""
        return encode_cursor(event_index + 1, "")

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert the event as it is, or replace the one of that id.

        Raises:
            PersistError: another event of the session has its index, or the store failed.
        """
        self._look_once()
        check_session(session_id, event)
        if abs(event.event_index) > _MAX_INDEX:
            raise PersistError(
                f"event '{event.id}' was not stored: its index {event.event_index} is beyond what the "
                "store can hold",
                session_id=session_id,
            )
        keys = self._keys.of(session_id)
        words: list[Word] = [self._ttl_ms, event.event_index, *event_words(event)]
        answer: Sequence[bytes] = await self._link.run(
            INSERT, keys.data, words, session_id=session_id, write=True
        )
        if answer[0] == b"taken":
            raise PersistError(
                f"event '{event.id}' was not stored: session '{session_id}' has another event with index "
                f"{event.event_index}",
                session_id=session_id,
            )
        self._knowledge.replace(session_id, answer[1], int(answer[2]))

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        """Append the events and set their ``event_index``, in one step of the server: all or none.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
            PersistError: the server lost the session, refused, or can't be reached.
        """
        if not events:
            return
        self._look_once()
        known = self._knowledge.of(session_id)
        words: list[Word] = [generation, known.life, known.last, len(events)]
        size = 0
        for event in events:
            check_session(session_id, event)
            words += event_words(event)
            size += len(event.payload_json)
        batch = list(events)
        answer = await self._appends.append(
            session_id, self._keys.of(session_id), words, count=len(batch), size=size
        )
        self._check(session_id, generation, answer)
        first = int(answer[2])
        indexes = range(first, first + len(batch)) if first > 0 else [int(word) for word in answer[3:]]
        for event, index in zip(batch, indexes, strict=True):
            event.event_index = index
        self._knowledge.note(session_id, answer[1], max(indexes))

    async def last_event_index(self, session_id: str, /) -> int:
        """Return the highest event index of the session, 0 where it has none."""
        last = await self._link.call("HGET", self._keys.of(session_id).meta, "last", session_id=session_id)
        return int(last or 0)

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        """Return the newest ``limit`` events, oldest of them first."""
        newest_first: list[SessionEvent] = []
        start: Word = "+"
        more = True
        while more and len(newest_first) < limit:
            wanted = min(limit - len(newest_first), _READ_EVENTS)
            events, cut = await self._read(session_id, start, wanted, newest_first=True)
            more = cut or len(events) == wanted
            newest_first += events
            start = events[-1].event_index - 1 if events else start
        return newest_first[::-1]

    async def delete_session(self, session_id: str, /) -> None:
        """Erase the record and its events; nothing happens where there is none.

        Writers that claimed it before are refused from then on.
        """
        keys = self._keys.of(session_id)
        record = await self.get_session(session_id)
        await self._link.run(
            DELETE, [*keys.data, keys.end], [_TOMBSTONE_MS], session_id=session_id, write=True
        )
        if record is not None:
            entry = index_entry(record.created_at, session_id)
            await self._link.call("ZREM", self._keys.index, entry, session_id=session_id)
        self._knowledge.forget(session_id)

    def follow_events(self, session_id: str, /, *, after: int = 0) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events behind an index and those that are stored meanwhile, by whomever.

        Each comes once, in order, until the driver is closed or the session is deleted or has expired.

        Raises:
            PersistError: the server can't be reached, or has lost the session.
        """
        return self._followers.follow(session_id, after)

    async def close(self) -> None:
        """Send what was accepted, end the followers, and close the client if it was opened here."""
        if not self._link.is_elsewhere:
            await self._appends.close()
            await self._followers.close()
            if self._looked is not None:
                # Not cancelled: a connection that is just being made would be left half-open.
                await asyncio.wait({self._looked})
        await self._link.close()

    def _check(self, session_id: str, generation: int, answer: Sequence[bytes]) -> None:
        match answer[0]:
            case b"ok":
                return
            case b"fenced":
                raise SessionFencedError(session_id, generation)
            case b"lost":
                raise self._link.lost(session_id)
            case _:
                cause = Exception(answer[1].decode(errors="replace"))
                raise self._link.error(cause, session_id, write=True)

    async def _page(self, session_id: str, count: int, after: Keyset | None) -> list[SessionEvent]:
        start: Word = "-"
        skip = 0
        if after is not None:
            start, skip = ("-", after.offset) if after.offset else (after.position, 0)
        events: list[SessionEvent] = []
        more = True
        while more and len(events) < count:
            # One more where the page may begin with the event that the one before ended with.
            wanted = min(count - len(events) + skip + (start == (after and after.position)), _READ_EVENTS)
            found, cut = await self._read(session_id, start, wanted)
            more = cut or len(found) == wanted
            start = found[-1].event_index + 1 if found else start
            kept = found[skip:]
            skip = max(0, skip - len(found))
            if after is not None and not after.offset:
                kept = [one for one in kept if (one.event_index, one.id) > after[:2]]
            events += kept
        return events[:count]

    async def _read_on(self, session_id: str, start: int, count: int) -> list[SessionEvent]:
        return (await self._read(session_id, start, count))[0]

    async def _read(
        self, session_id: str, start: Word, count: int, *, newest_first: bool = False
    ) -> tuple[list[SessionEvent], bool]:
        """Return up to that many events from an index on, and whether they were too large to have all."""
        keys = self._keys.of(session_id)
        lengths, texts, cut = await self._link.run(
            READ,
            [keys.events, keys.order, keys.side],
            [start, count, int(newest_first), _READ_BYTES],
            session_id=session_id,
        )
        return read_events(session_id, lengths, texts), bool(cut)

    def _look_once(self) -> None:
        if self._looked is None and not self._link.closed:
            self._looked = asyncio.get_running_loop().create_task(self._look(), name="look at Redis")

    async def _look(self) -> None:
        """Warn where the server may throw away what it acknowledged."""
        found = await self._link.info()
        policy = str(found.get("maxmemory_policy", "noeviction"))
        risky = policy.startswith("allkeys") or (self._ttl_ms > 0 and policy.startswith("volatile"))
        if found.get("maxmemory") and risky:
            logger.warning(
                "Redis at %s throws keys away when its memory is full (maxmemory-policy %s), sessions too: "
                "set it to noeviction",
                self._link.address,
                policy,
            )
