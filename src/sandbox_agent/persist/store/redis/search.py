"""Full text search in bounded time, by the store's own index.

All words must be in a text; those in double quotes side by side. Where a word of the query is in fewer than
2,000 texts, the texts come by how often they have the words, then newest first. A query of nothing but
common words finds the newest first, by when they were stored. Phrases are looked for in the texts
themselves, in up to 2,000 that have all their words.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final, NamedTuple

import msgspec

from sandbox_agent.persist.redis.scripts import Script
from sandbox_agent.persist.store.redis.owner import Owner
from sandbox_agent.persist.store.redis.read import Reader, unpacked
from sandbox_agent.persist.store.redis.rows import Text, clean, parts, to_text
from sandbox_agent.persist.store.redis.search_scripts import COUNT, DOCUMENTS, FIND
from sandbox_agent.persist.store.redis.words import Query, has_phrases, parse, snippet
from sandbox_agent.persist.store.rows import SearchRow

__all__ = ["search"]

# A word in fewer texts than these is rare.
_RARE: Final = 2_000
# So many texts are read for the sake of a phrase.
_MAX_READ: Final = 2_000
_MAX_LIMIT: Final = 1_000
# Postings that one call looks at: some milliseconds of the server's.
_WORK: Final = 20_000
# Texts of one call; the first that are read for a phrase are often enough.
_PAGE: Final = 100
_FIRST_PAGE: Final = 25
_FOREVER: Final = 2**62

_count: Final = Script(COUNT)
_find: Final = Script(FIND)
_documents: Final = Script(DOCUMENTS)


class _Found(NamedTuple):
    number: int
    time: int
    times: int


async def search(
    owner: Owner,
    reader: Reader,
    query: str,
    *,
    limit: int,
    offset: int,
    agent: str | None,
    session_id: str | None,
    since: int | None,
    until: int | None,
) -> list[SearchRow]:
    """Return where all parts of the query are found, best first."""
    asked = parse(query)
    limit, offset = min(max(limit, 0), _MAX_LIMIT), max(offset, 0)
    if not asked.words or not limit:
        return []
    scopes: list[str] = []
    if session_id is not None:
        sessions = await reader.sessions_where("name", session_id)
        if not sessions:
            return []
        scopes.append(f"s:{sessions[0].key}")
    if agent is not None:
        scopes.append(f"a:{clean(agent)}")
    extent = (_clipped(since, -_FOREVER), _clipped(until, _FOREVER))
    rare = bool(await owner.read(_count, _RARE, *asked.words))
    finding = _newest(owner, asked, scopes, extent, _RARE if rare else limit)
    numbers: list[int] = []
    async with aclosing(_ranked(finding) if rare else finding) as candidates:
        if asked.phrases:
            candidates = _with_phrases(owner, candidates, asked)
        async with aclosing(candidates):
            async for found in candidates:
                if offset:
                    offset -= 1
                    continue
                numbers.append(found.number)
                if len(numbers) == limit:
                    break
    return await _hits(owner, reader, numbers, asked)


def _clipped(time: int | None, default: int) -> int:
    return default if time is None else min(max(time, -_FOREVER), _FOREVER)


async def _newest(
    owner: Owner, asked: Query, scopes: list[str], extent: tuple[int, int], wanted: int
) -> AsyncGenerator[_Found]:
    """Yield the texts that have all words, newest first."""
    block = -1
    while True:
        work = [asked.words, scopes, *extent, block, wanted, _WORK]
        (answer,) = _wrapped(await owner.read(_find, msgspec.msgpack.encode(work)))
        block, *found = answer
        texts = [_Found(*found[at : at + 3]) for at in range(0, len(found), 3)]
        for text in sorted(texts, key=lambda text: (-text.time, -text.number)):
            yield text
        if block < 0:
            return


def _wrapped(answer: list[bytes | int]) -> list[list[int]]:
    (found,) = answer
    return [[found] if isinstance(found, int) else msgspec.msgpack.decode(found, type=list[int])]


async def _ranked(candidates: AsyncGenerator[_Found]) -> AsyncGenerator[_Found]:
    """Yield those that have the words most often first."""
    async with aclosing(candidates):
        found = [text async for text in candidates]
    for text in sorted(found, key=lambda text: (-text.times, -text.time, -text.number)):
        yield text


async def _with_phrases(
    owner: Owner, candidates: AsyncGenerator[_Found], asked: Query
) -> AsyncGenerator[_Found]:
    """Yield those that have the words side by side; the first ones alone, if there are very many."""
    read = 0
    page: list[_Found] = []
    async with aclosing(candidates):
        async for found in candidates:
            page.append(found)
            read += 1
            if len(page) == _PAGE or read in (_FIRST_PAGE, _MAX_READ):
                for one in await _checked(owner, page, asked):
                    yield one
                page = []
            if read == _MAX_READ:
                return
    for one in await _checked(owner, page, asked):
        yield one


async def _checked(owner: Owner, page: list[_Found], asked: Query) -> list[_Found]:
    texts = await _texts(owner, [found.number for found in page])
    return [
        found
        for found in page
        if found.number in texts and has_phrases(texts[found.number].text, asked.phrases)
    ]


async def _texts(owner: Owner, numbers: list[int]) -> dict[int, Text]:
    """Return those of the texts that are not erased."""
    found: dict[int, Text] = {}
    start = 0
    while start < len(numbers):
        sizes, blob = unpacked(await owner.read(_documents, *numbers[start : start + _PAGE]))
        values = parts([max(size, 0) for size in sizes], blob)
        for number, size, value in zip(numbers[start:], sizes, values, strict=False):
            if size >= 0:
                found[number] = to_text(value)
        start += len(sizes)
    return found


async def _hits(owner: Owner, reader: Reader, numbers: list[int], asked: Query) -> list[SearchRow]:
    """Return the hits of these texts, in their order; those of a session that is hidden are left out."""
    if not numbers:
        return []
    texts = await _texts(owner, numbers)
    keys = sorted({text.key for text in texts.values()})
    sessions = {row.key: row for row in await reader.sessions_where("keys", *keys)}
    hits: list[SearchRow] = []
    for number in numbers:
        text = texts.get(number)
        row = sessions.get(text.key) if text else None
        if text and row:
            shown = snippet(text.text, asked)
            hits.append(SearchRow(row.session_id, row.agent, row.title, text.sequence, text.time, shown))
    return hits
