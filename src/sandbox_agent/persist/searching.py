"""Full-text search: the query syntax (words and phrases), whether a text matches a query, and where.

A store without an index is searched by reading it: every event of every session, the newest hits kept.
"""

from __future__ import annotations

import heapq
import itertools
import re
import unicodedata
from collections.abc import AsyncIterator, Iterable, Sequence
from functools import partial
from typing import Final, NamedTuple

from sandbox_agent.persist.base import SessionPersistDriver, all_pages
from sandbox_agent.persist.folding import Folder, Said
from sandbox_agent.wire.records import SessionRecord
from sandbox_agent.wire.sessions import SearchHit

# A number before the hit: where indexes are not unique the heap must still order hits.
_Ranked = tuple[int, str, int, int, SearchHit]

# The rest of a longer query is ignored.
_MAX_QUERY: Final = 1_024
_MAX_PARTS: Final = 32
SNIPPET_WORDS: Final = 24
_PARTS: Final = re.compile(r'"([^"]*)"?|([^\s"]+)')
_WORDS: Final = re.compile(r"[^\W_]+")
# With the marks that follow their letter: SQLite's tokenizer treats it as one word, too.
_MARKED_WORDS: Final = re.compile("[^\\W_](?:[^\\W_]|[\u0300-\u036f])*")
_MARKS: Final = re.compile("[\u0300-\u036f]")


class _Word(NamedTuple):
    text: str
    start: int
    end: int


def parse_query(query: str) -> list[str]:
    """Return the words and phrases of a query, those without a letter or digit left out."""
    text = query[:_MAX_QUERY].encode("utf-8", "replace").decode().replace("\0", " ")
    parts = (phrase or word for phrase, word in _PARTS.findall(text))
    return [part for part in parts if _WORDS.search(part)][:_MAX_PARTS]


def words_of(text: str) -> list[str]:
    """Return the words of a text as they are compared: without accents, in small letters."""
    return [_folded(word) for word in _MARKED_WORDS.findall(text)]


class Query:
    """A query's parts, all of which must be found.

    A part is a word or a phrase, which is words that follow each other; a word with punctuation in it
    (``foo.bar``) is a phrase, too. Letters are compared without case and accents.

    Args:
        query: as the user typed it; nothing in it is an error.
    """

    def __init__(self, query: str) -> None:
        self.parts: list[list[str]] = [words for words in map(words_of, parse_query(query)) if words]

    def __bool__(self) -> bool:
        """Whether the query has any words."""
        return bool(self.parts)

    def snippet(self, text: str) -> str | None:
        """Return words around the first place, what was found between [ and ], or None."""
        if not self.parts or not self._may_have(text):
            return None
        words = [
            _Word(_folded(match[0]), match.start(), match.end()) for match in _MARKED_WORDS.finditer(text)
        ]
        places: list[tuple[int, int]] = []
        for part in self.parts:
            found = _places(words, part)
            if not found:
                return None
            places += [(at, at + len(part)) for at in found]
        return _cut_out(text, words, _joined(places))

    def _may_have(self, text: str) -> bool:
        """Whether the text may have all words: a fast check for ASCII texts."""
        if not text.isascii():
            return True
        lowered = text.lower()
        return all(word in lowered for part in self.parts for word in part)


def _folded(word: str) -> str:
    if not word.isascii():
        word = unicodedata.normalize("NFC", _MARKS.sub("", unicodedata.normalize("NFD", word)))
    return word.lower()


def _places(words: Sequence[_Word], part: Sequence[str]) -> list[int]:
    first, rest = part[0], part[1:]
    return [
        at
        for at, word in enumerate(words)
        if word.text == first and [one.text for one in words[at + 1 : at + 1 + len(rest)]] == rest
    ]


def _joined(places: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the places in order, those that overlap as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(places):
        if joined and start < joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return joined


def _cut_out(text: str, words: Sequence[_Word], places: list[tuple[int, int]]) -> str:
    begin = max(0, min(places[0][0] - 4, len(words) - SNIPPET_WORDS))
    end = min(max(begin + SNIPPET_WORDS, places[0][1]), len(words))
    pieces: list[str] = []
    at = words[begin].start if begin else 0
    for start, stop in places:
        if stop > end:
            break
        pieces += [text[at : words[start].start], "[", text[words[start].start : words[stop - 1].end], "]"]
        at = words[stop - 1].end
    pieces.append(text[at : words[end].start].rstrip() if end < len(words) else text[at:])
    return ("…" if begin else "") + "".join(pieces) + ("…" if end < len(words) else "")


class Hits:
    """The newest hits, of which there are at most ``limit``."""

    def __init__(self, query: Query, limit: int) -> None:
        self._query = query
        self._limit = limit
        self._newest: list[_Ranked] = []
        self._numbers = itertools.count()

    def add_texts(self, record: SessionRecord, texts: Iterable[Said]) -> None:
        """Look through texts of a session."""
        for said in texts:
            rank = (said.time, record.id, said.first)
            full = len(self._newest) == self._limit
            if full and rank <= self._newest[0][:3]:
                continue
            snippet = self._query.snippet(said.text)
            if snippet is not None:
                hit = SearchHit(
                    session_id=record.id,
                    agent=record.agent,
                    sequence=said.first,
                    time=said.time,
                    snippet=snippet,
                )
                (heapq.heapreplace if full else heapq.heappush)(
                    self._newest, (*rank, next(self._numbers), hit)
                )

    def newest_first(self) -> list[SearchHit]:
        """Return them by (time, session id, sequence), backwards."""
        return [hit for *_, hit in sorted(self._newest, reverse=True)]


async def search_by_reading(
    store: SessionPersistDriver, query: str, session_id: str | None, limit: int
) -> list[SearchHit]:
    """Return the newest hits, whole histories read for it."""
    wanted = Query(query)
    hits = Hits(wanted, limit)
    if wanted:
        async for record in _records(store, session_id):
            await _look(store, record, hits)
    return hits.newest_first()


async def _records(store: SessionPersistDriver, session_id: str | None) -> AsyncIterator[SessionRecord]:
    if session_id is not None:
        record = await store.get_session(session_id)
        if record is not None:
            yield record
        return
    async for records in all_pages(store.list_sessions):
        for record in records:
            yield record


async def _look(store: SessionPersistDriver, record: SessionRecord, hits: Hits) -> None:
    folder = Folder()
    async for events in all_pages(partial(store.list_events, record.id)):
        for event in events:
            folder.add(event)
        hits.add_texts(record, folder.finished())
    hits.add_texts(record, folder.unfinished())
