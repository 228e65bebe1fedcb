"""Listing sessions: an index of its own, which is put right where it and the records differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sandbox_agent.persist.base import Keyset, encode_cursor
from sandbox_agent.persist.redis.client import RedisLink
from sandbox_agent.persist.redis.keys import Keys, index_entry, session_of_entry
from sandbox_agent.persist.redis.rows import to_record
from sandbox_agent.wire.records import ListPage, SessionRecord

__all__ = ["Listing"]

# Records that are asked for at once.
_AT_ONCE: Final = 100


class Listing:
    """The sessions of a prefix, by (created_at, id)."""

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def page(self, size: int, after: Keyset | None) -> ListPage[SessionRecord]:
        """Return a page of records; entries without their record (deleted, expired) are taken away."""
        start = b"-"
        skip = 0
        if after is not None:
            skip = after.offset
            start = b"-" if skip else b"(" + index_entry(after.position, after.id)
        records: list[SessionRecord] = []
        while len(records) <= size:
            wanted = size + 1 - len(records) + min(skip, _AT_ONCE)
            entries: list[bytes] = await self._link.call(
                "ZRANGEBYLEX", self._keys.index, start, "+", "LIMIT", 0, wanted
            )
            if not entries:
                break
            start = b"(" + entries[-1]
            for begin in range(0, len(entries), _AT_ONCE):
                there = await self._records(entries[begin : begin + _AT_ONCE])
                records += there[skip:]
                skip = max(0, skip - len(there))
        page = records[:size]
        end = page[-1] if len(records) > size else None
        return ListPage(page, encode_cursor(end.created_at, end.id) if end else None)

    async def _records(self, entries: Sequence[bytes]) -> list[SessionRecord]:
        ids = [session_of_entry(entry) for entry in entries]
        found = await self._link.many([("HGETALL", self._keys.of(session_id).record) for session_id in ids])
        records: list[SessionRecord] = []
        for entry, session_id, row in zip(entries, ids, found, strict=True):
            record = to_record(row)
            if record is None or index_entry(record.created_at, session_id) != entry:
                record = await self._repair(entry, session_id)
            if record is not None:
                records.append(record)
        return records

    async def _repair(self, entry: bytes, session_id: str) -> SessionRecord | None:
        await self._link.call("ZREM", self._keys.index, entry)
        # It may have been stored since it was looked for; who stores it puts the entry back, too.
        record = to_record(await self._link.call("HGETALL", self._keys.of(session_id).record))
        if record is None or index_entry(record.created_at, session_id) != entry:
            return None
        await self._link.call("ZADD", self._keys.index, 0, entry)
        return record
