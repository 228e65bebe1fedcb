"""The persist driver for Redis and Valkey. Each session is a stream."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import ClassVar, Final

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.base import (
    UNFENCED,
    Capability,
    NotLastError,
    check_session,
    decode_cursor,
    event_position,
    make_page,
    normalize_limit,
    record_position,
    taken_index_error,
)
from sandbox_agent.persist.follow import FollowedDriver, Mark
from sandbox_agent.persist.redis.append import Appender, KnownHistories
from sandbox_agent.persist.redis.client import Argument, BoundedClient, RedisClient
from sandbox_agent.persist.redis.follow import Life, StreamHint
from sandbox_agent.persist.redis.rows import (
    Keys,
    index_entry,
    pack_event,
    pack_head,
    pack_record,
    read_events,
    read_head,
    read_record,
    session_of_entry,
)
from sandbox_agent.persist.redis.scripts import CLAIM, DELETE, INSERT, READ, REPLACE_HEAD, SAVE
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

logger: logging.Logger = logging.getLogger("sandbox_agent.persist")

# One answer of the server has at most so many bytes or one event, and so many events or records.
_READ_BYTES: Final = 8 * 1024 * 1024
_READ_EVENTS: Final = 2_000
_READ_RECORDS: Final = 100
# The largest index that a number of Lua holds exactly.
_MAX_INDEX: Final = 2**53
# How long the generation of a deleted session is kept, in ms. After that its old writers are refused because
# the session is unknown.
_TOMBSTONE_MS: Final = 7 * 24 * 3600 * 1000


class RedisSessionPersistDriver(FollowedDriver):
    """Keeps sessions and events in Redis (6.2 or later) or Valkey, one server or a cluster.

    Events are in a stream with the ids ``<event_index>-0``. All keys of a session carry its id as hash tag.
    Event ids are unique within a session. How durable an acknowledged write is depends on the server's
    settings: see the page on Redis. A driver belongs to the event loop of its first call.

    Args:
        url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://``.
        client: instead of a URL, a client of ``redis.asyncio`` (``Redis`` or ``RedisCluster``). The driver
            never closes it.
        prefix: of all keys; drivers with different prefixes don't see each other's sessions.
        ttl: after how many seconds without a write a session and its events expire; None: never.
        timeout: of one call, in seconds.
        wait_replicas: how many replicas must confirm each write (``WAIT``).

    Raises:
        ImportError: the package redis is not installed.
        ValueError: not exactly one of url and client is given, or an argument is invalid.
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
    appends_head: ClassVar[bool] = True

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
        super().__init__(make_hint=self._make_hint)
        self._keys = Keys(prefix)
        self._client = BoundedClient(url, client, timeout=timeout, wait_replicas=wait_replicas)
        self._ttl_ms = max(1, int(ttl * 1000)) if ttl is not None else 0
        self._known = KnownHistories(ttl or 0)
        self._appender = Appender(self._client, self._ttl_ms)
        self._eviction_check: asyncio.Task[None] | None = None

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        key = self._keys.of_session(session_id).record
        return read_record(await self._client.call("HGETALL", key, session_id=session_id))

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        size = normalize_limit(limit)
        after = decode_cursor(cursor)
        skip = after.offset if after is not None else 0
        start = b"-" if after is None or skip else b"(" + index_entry(after.position, after.id)
        records: list[SessionRecord] = []
        while len(records) <= size:
            wanted = size + 1 - len(records) + min(skip, _READ_RECORDS)
            entries: list[bytes] = await self._client.call(
                "ZRANGEBYLEX", self._keys.index, start, "+", "LIMIT", 0, wanted
            )
            if not entries:
                break
            start = b"(" + entries[-1]
            for begin in range(0, len(entries), _READ_RECORDS):
                found = await self._read_records(entries[begin : begin + _READ_RECORDS])
                records += found[skip:]
                skip = max(0, skip - len(found))
        return make_page(records, size, record_position)

    async def update_session(self, session: SessionRecord, /) -> None:
        await self.save_session(session)

    async def save_session(self, session: SessionRecord, /, *, generation: int = UNFENCED) -> None:
        self._check_eviction_once()
        fields = pack_record(session)
        known = self._known.get(session.id)
        entry = index_entry(session.created_at, session.id)
        # The entry comes first. An interruption leaves an entry without a record, which a listing removes,
        # never a record that no listing shows.
        await self._client.call("ZADD", self._keys.index, 0, entry, session_id=session.id)
        words: list[Argument] = [self._ttl_ms, generation, known.life, known.last, *fields]
        keys = self._keys.of_session(session.id).data
        answer: Sequence[bytes] = await self._client.run(SAVE, keys, words, session_id=session.id, write=True)
        self._check_answer(session.id, generation, answer)
        # A listing may have removed the entry before the record was there.
        await self._client.call("ZADD", self._keys.index, 0, entry, session_id=session.id)
        self._known.note_write(session.id, answer[1], 0)

    async def claim_session(self, session_id: str, /) -> int:
        self._check_eviction_once()
        keys = self._keys.of_session(session_id)
        generation, life, last = await self._client.run(
            CLAIM, keys.data, [self._ttl_ms], session_id=session_id, write=True
        )
        self._known.replace(session_id, life, int(last))
        return int(generation)

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        size = normalize_limit(limit)
        after = decode_cursor(cursor)
        if after is None or after.offset:
            skip = after.offset if after is not None else 0
            events = await self._read_events(session_id, "-", size + 1, skip=skip)
        else:
            # One more, because the page may begin with the event at which the last page ended.
            events = await self._read_events(session_id, after.position, size + 2)
            events = [event for event in events if (event.event_index, event.id) > after[:2]]
        return make_page(events, size, event_position)

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert the event as it is, or replace the one with its id.

        Raises:
            PersistError: another event of the session has its index, or the store failed.
        """
        self._check_eviction_once()
        check_session(session_id, event)
        if abs(event.event_index) > _MAX_INDEX:
            raise PersistError(
                f"event '{event.id}' was not stored: its index {event.event_index} is beyond what the "
                "store can hold",
                session_id=session_id,
            )
        keys = self._keys.of_session(session_id)
        words: list[Argument] = [self._ttl_ms, event.event_index, *pack_event(event)]
        answer: Sequence[bytes] = await self._client.run(
            INSERT, keys.data, words, session_id=session_id, write=True
        )
        if answer[0] == b"taken":
            raise taken_index_error(event)
        self._known.replace(session_id, answer[1], int(answer[2]))

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
        for event, index in zip(events, await self._append(session_id, events, generation), strict=True):
            event.event_index = index

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
        await self._append(session_id, events, generation, after, pack_head(head))

    async def find_head(self, session_id: str, head_id: str, /) -> SessionEvent | None:
        key = self._keys.of_session(session_id).meta
        packed: bytes | None = await self._client.call("HGET", key, "head", session_id=session_id)
        if packed is not None:
            return read_head(head_id, packed)
        # Of an older release.
        return await super().find_head(session_id, head_id)

    async def replace_head(self, session_id: str, head: SessionEvent, /) -> None:
        keys = self._keys.of_session(session_id).data
        words: list[Argument] = [self._ttl_ms, pack_head(head)]
        await self._client.run(REPLACE_HEAD, keys, words, session_id=session_id, write=True)

    async def _append(
        self,
        session_id: str,
        events: Sequence[SessionEvent],
        generation: int,
        after: int = -1,
        head: bytes = b"",
    ) -> Sequence[int]:
        self._check_eviction_once()
        known = self._known.get(session_id)
        words: list[Argument] = [generation, known.life, known.last, len(events), after, head]
        size = 0
        for event in events:
            check_session(session_id, event)
            words += pack_event(event)
            size += len(event.payload_json)
        batch = list(events)
        keys = self._keys.of_session(session_id)
        answer = await self._appender.append(session_id, keys, words, events=len(batch), size=size)
        if answer[0] == b"other":
            found = zip(batch, map(int, answer[3:]), strict=len(answer) > 3)
            raise NotLastError(session_id, {event.id: index for event, index in found if index <= after})
        self._check_answer(session_id, generation, answer)
        first = int(answer[2])
        indexes = range(first, first + len(batch)) if first > 0 else [int(word) for word in answer[3:]]
        self._known.note_write(session_id, answer[1], max(indexes))
        return indexes

    async def last_event_index(self, session_id: str, /) -> int:
        key = self._keys.of_session(session_id).meta
        return int(await self._client.call("HGET", key, "last", session_id=session_id) or 0)

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        return (await self._read_events(session_id, "+", limit, newest_first=True))[::-1]

    async def delete_session(self, session_id: str, /) -> None:
        """Erase the record and its events, if there are any.

        Writers that claimed the session before are refused from then on.
        """
        await self.delete_sessions([session_id])

    async def delete_sessions(self, session_ids: Sequence[str], /) -> None:
        # In a cluster each session is on a node of its own.
        together = len(session_ids) if not self._client.is_cluster else 1
        for start in range(0, len(session_ids), max(1, together)):
            await self._delete_together(session_ids[start : start + together])

    async def _delete_together(self, session_ids: Sequence[str]) -> None:
        records = [await self.get_session(session_id) for session_id in session_ids]
        keys: list[Argument] = []
        for one in map(self._keys.of_session, session_ids):
            keys += (*one.data, one.end)
        await self._client.run(DELETE, keys, [_TOMBSTONE_MS], session_id=session_ids[0], write=True)
        for record in records:
            if record is not None:
                entry = index_entry(record.created_at, record.id)
                await self._client.call("ZREM", self._keys.index, entry, session_id=record.id)
        for session_id in session_ids:
            self._known.forget(session_id)

    async def marks(self, session_ids: Collection[str], /) -> Mapping[str, Mark]:
        commands: list[Sequence[Argument]] = []
        for keys in map(self._keys.of_session, session_ids):
            commands.append(("HMGET", keys.meta, "life", "last"))
            commands.append(("XREVRANGE", keys.end, "+", "-", "COUNT", 1))
        answers = await self._client.call_all(commands)
        return {
            session_id: Mark(int(last or 0), Life(life, ends[0][0] if ends else b"0-0"))
            for session_id, (life, last), ends in zip(session_ids, answers[::2], answers[1::2], strict=True)
        }

    async def close(self) -> None:
        """Send what was accepted, end the followers, and close the client if it was opened here."""
        if not self._client.is_elsewhere:
            await self._appender.close()
            await super().close()
            if self._eviction_check is not None:
                # Cancelling it could leave a half-open connection.
                await asyncio.wait({self._eviction_check})
        await self._client.close()

    def _make_hint(self, wakeup: asyncio.Event) -> StreamHint:
        return StreamHint(self._client, self._keys, self._following, wakeup, expiring=self._ttl_ms > 0)

    def _check_answer(self, session_id: str, generation: int, answer: Sequence[bytes]) -> None:
        match answer[0]:
            case b"ok":
                return
            case b"fenced":
                raise SessionFencedError(session_id, generation)
            case b"lost":
                raise self._client.loss(session_id)
            case _:
                cause = Exception(answer[1].decode(errors="replace"))
                raise self._client.error(cause, session_id, write=True)

    async def _read_events(
        self, session_id: str, start: Argument, count: int, *, skip: int = 0, newest_first: bool = False
    ) -> list[SessionEvent]:
        """Return up to ``count`` events from an index on, without the first ``skip``."""
        events: list[SessionEvent] = []
        while len(events) < count:
            wanted = min(count - len(events) + skip, _READ_EVENTS)
            found, cut = await self._read(session_id, start, wanted, newest_first=newest_first)
            events += found[skip:]
            skip = max(0, skip - len(found))
            if not cut and len(found) < wanted:
                break
            start = found[-1].event_index + (-1 if newest_first else 1)
        return events

    async def _read(
        self, session_id: str, start: Argument, count: int, *, newest_first: bool = False
    ) -> tuple[list[SessionEvent], bool]:
        """Return up to ``count`` events from an index on, and whether the size limit cut them off."""
        keys = self._keys.of_session(session_id)
        lengths, texts, cut = await self._client.run(
            READ,
            [keys.events, keys.order, keys.side],
            [start, count, int(newest_first), _READ_BYTES],
            session_id=session_id,
        )
        return read_events(session_id, lengths, texts), bool(cut)

    async def _read_records(self, entries: Sequence[bytes]) -> list[SessionRecord]:
        """Return the records of index entries. An entry without its record (deleted, expired) is removed."""
        ids = [session_of_entry(entry) for entry in entries]
        commands = [("HGETALL", self._keys.of_session(session_id).record) for session_id in ids]
        records: list[SessionRecord] = []
        for entry, session_id, row in zip(entries, ids, await self._client.call_all(commands), strict=True):
            record = read_record(row)
            if record is None or index_entry(record.created_at, session_id) != entry:
                record = await self._repair_entry(entry, session_id)
            if record is not None:
                records.append(record)
        return records

    async def _repair_entry(self, entry: bytes, session_id: str) -> SessionRecord | None:
        await self._client.call("ZREM", self._keys.index, entry)
        # The record may have been stored since it was read. Its writer restores the entry, too.
        record = await self.get_session(session_id)
        if record is None or index_entry(record.created_at, session_id) != entry:
            return None
        await self._client.call("ZADD", self._keys.index, 0, entry)
        return record

    def _check_eviction_once(self) -> None:
        if self._eviction_check is None and not self._client.closed:
            loop = asyncio.get_running_loop()
            self._eviction_check = loop.create_task(self._check_eviction(), name="check Redis for eviction")

    async def _check_eviction(self) -> None:
        """Log a warning if the server may evict what it acknowledged."""
        policy = await self._client.eviction_policy()
        if policy.startswith("allkeys") or (self._ttl_ms > 0 and policy.startswith("volatile")):
            logger.warning(
                "Redis at %s evicts keys when its memory is full (maxmemory-policy %s), sessions too: "
                "set it to noeviction",
                self._client.address,
                policy,
            )
