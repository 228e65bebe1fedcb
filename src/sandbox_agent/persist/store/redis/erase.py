"""Erasing in slices: each is a short script, so commits go on between them."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Final, NamedTuple

import msgspec

from sandbox_agent.persist.redis.scripts import Script
from sandbox_agent.persist.store.redis import erase_scripts as scripts
from sandbox_agent.persist.store.redis.owner import Owner
from sandbox_agent.persist.store.redis.read import Reader, unpacked
from sandbox_agent.persist.store.redis.rows import MAX_NUMBER, parts, to_text
from sandbox_agent.persist.store.redis.words import words

__all__ = ["Eraser"]

# A slice has no more rows, nor bytes if it has more than one row.
_SLICE_ROWS: Final = 2_000
_SLICE_BYTES: Final = 2 * 1024 * 1024
# Texts take longer: each of their words is taken out of the index. Places of the index in one call.
_SLICE_TEXTS: Final = 200
_SLICE_TEXT_BYTES: Final = 256 * 1024
_PLACES: Final = 200
_SESSIONS_PAGE: Final = 250
# Texts that the index counts as one block.
_BLOCK: Final = 512

_aged: Final = Script(scripts.AGED)
_deleted: Final = Script("return redis.call('SMEMBERS', KEYS[1]..'deleted')")
_end: Final = Script(scripts.END)
_hide: Final = Script(scripts.HIDE)
_oldest: Final = Script(scripts.OLDEST)
_texts: Final = Script(scripts.TEXTS)
_trim: Final = Script(scripts.TRIM)
_unindex: Final = Script(scripts.UNINDEX)
_used: Final = Script(scripts.USED)


class _Aged(NamedTuple):
    oldest: int
    key: int


class Eraser:
    """Erases what an owner keeps."""

    def __init__(self, owner: Owner, reader: Reader) -> None:
        self._owner = owner
        self._reader = reader
        # A slice is found first and erased then.
        self._one_by_one = asyncio.Lock()

    async def used_bytes(self) -> int:
        """Return about how many bytes the rows that can expire take, and the texts with their index."""
        return int(await self._owner.read(_used))

    async def hide(self, key: int) -> bool:
        """Take the session out of sight; True if there was one. Its rows go, but for the many."""
        answer = await self._owner.write(_hide, key)
        return answer is None or bool(answer[0])

    async def delete(self, key: int) -> None:
        """Erase a hidden session."""
        while await self._erase_texts(key, MAX_NUMBER):
            pass
        await self._owner.write(_end, key)

    async def deleted_keys(self) -> list[int]:
        """Return the sessions whose delete has not ended."""
        return sorted(int(key) for key in await self._owner.read(_deleted))

    async def expire(self, before: int) -> list[int]:
        """Erase what is older, and return the sessions that lost some, oldest first."""
        lost: list[int] = []
        for aged in await self._all_aged():
            if aged.oldest < before:
                erased = False
                while await self._slice(aged.key, before, _SLICE_BYTES):
                    erased = True
                if erased:
                    lost.append(aged.key)
        return lost

    async def shrink(self, max_bytes: int) -> list[int]:
        """Erase the oldest until no more is used, and return the sessions that lost some."""
        lost: dict[int, None] = {}
        sessions = await self._all_aged()
        heapify(sessions)
        while sessions:
            excess = await self.used_bytes() - max_bytes
            if excess <= 0:
                break
            key = heappop(sessions).key
            if await self._slice(key, None, min(excess, _SLICE_BYTES)):
                lost[key] = None
            for oldest in (await self._aged("one", key))[1]:
                heappush(sessions, oldest)
        return list(lost)

    async def _all_aged(self) -> list[_Aged]:
        found: list[_Aged] = []
        last = -1
        while True:
            last, page = await self._aged("page", last, _SESSIONS_PAGE)
            found += page
            if last < 0:
                return sorted(found)

    async def _aged(self, *words: str | int) -> tuple[int, list[_Aged]]:
        """Return the key to go on behind, and the sessions that may lose rows."""
        answer: Sequence[bytes] = await self._owner.read(_aged, *words)
        last, *found = (int(number) for number in answer)
        return last, [_Aged(time, key) for key, time in zip(found[::2], found[1::2], strict=True)]

    async def _slice(self, key: int, before: int | None, max_bytes: int) -> bool:
        """Erase some of a session's oldest events and their texts, or envelopes; False if there are none."""
        async with self._one_by_one:
            for kind in ("e", "v"):
                limits = ("" if before is None else before, _SLICE_ROWS, min(max_bytes, _SLICE_BYTES))
                found = await self._owner.read(_oldest, key, kind, *limits)
                if not found:
                    continue
                last, _, size = found
                if kind == "e":
                    # First what is found by them: a slice that is interrupted is found again.
                    while await self._erase_texts(key, last):
                        pass
                await self._owner.write(_trim, key, kind, last, size)
                return True
        # Texts whose events were never stored.
        return before is None and await self._erase_texts(key, MAX_NUMBER)

    async def _erase_texts(self, key: int, last: int) -> bool:
        numbers, blob = unpacked(await self._owner.read(_texts, key, last, _SLICE_TEXTS, _SLICE_TEXT_BYTES))
        sizes = numbers[1::2]
        values = parts([max(size, 0) for size in sizes], blob)
        places: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
        done: list[tuple[int, int]] = []
        for number, size, value in zip(numbers[::2], sizes, values, strict=True):
            done.append((number, max(size, 0)))
            if size < 0:
                continue
            block, place = divmod(number, _BLOCK)
            text = to_text(value)
            for word in words(text.text):
                places[f"w:{word}", block].append(place)
            places[f"ws:{key}", block].append(place)
            places["wa", block].append(place)
        work = [(word, block, found) for (word, block), found in places.items()]
        for start in range(0, len(work) or 1, _PLACES):
            some = work[start : start + _PLACES]
            ends = start + _PLACES >= len(work)
            packed = msgspec.msgpack.encode((some, done if ends else []))
            if done:
                await self._owner.write(_unindex, key, packed)
        return bool(done)
