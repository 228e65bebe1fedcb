"""The words of a text, of a query and of a hit's snippet: what the Redis store's own index is made of.

The grammar is that of the store in SQLite: a word is a run of letters and digits of any script; its case
doesn't count, nor do accents of Latin letters.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter, deque
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Final, NamedTuple

__all__ = ["MAX_TEXT_BYTES", "Query", "Word", "has_phrases", "parse", "searchable", "snippet", "words"]

# What is indexed of one item; the rest of a longer one is not found.
MAX_TEXT_BYTES: Final = 256 * 1024
# More of a query is not looked at.
_MAX_QUERY: Final = 1_024
_MAX_PARTS: Final = 32
# Beyond so many characters (a checksum, a picture in base64) words that begin alike are one.
_MAX_WORD: Final = 64
_SNIPPET_WORDS: Final = 24
_SNIPPET_CHARACTERS: Final = 160
# Words before the first that is looked for, where the text goes on beyond the snippet.
_SNIPPET_LEAD: Final = 4
# Marks that stand behind the letter that they belong to.
_MARKS: Final = "\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
_WORD: Final = re.compile(rf"[^\W_](?:[^\W_]|[{_MARKS}])*")
_ASCII_WORD: Final = re.compile(r"[a-z0-9]+")
# Only Latin letters lose their accents, as in SQLite: elsewhere they make another letter.
_ACCENTED: Final = re.compile(f"([a-z])[{_MARKS}]+")
_PARTS: Final = re.compile(r'"([^"]*)"?|([^\s"]+)')


class Word(NamedTuple):
    """A word as the index has it, and where it is in its text."""

    word: str
    start: int
    end: int


class Query(NamedTuple):
    """What is looked for.

    Attributes:
        words: each once; all must be there.
        phrases: those of them that must be there side by side.
        single: those that are looked for by themselves.
    """

    words: list[str]
    phrases: list[list[str]]
    single: list[str]


@lru_cache(4096)
def _fold(word: str) -> str:
    if word.isascii():
        return word.lower()[:_MAX_WORD]
    bare = _ACCENTED.sub(r"\1", unicodedata.normalize("NFD", word.casefold()))
    return unicodedata.normalize("NFC", bare)[:_MAX_WORD]


def words(text: str) -> Counter[str]:
    """Return how often a text has each word."""
    if text.isascii():
        found = Counter(_ASCII_WORD.findall(text.lower()))
        if any(len(word) > _MAX_WORD for word in found):
            return _folded(found)
        return found
    return _folded(Counter(_WORD.findall(text)))


def _folded(found: Counter[str]) -> Counter[str]:
    folded: Counter[str] = Counter()
    for word, count in found.items():
        folded[_fold(word)] += count
    return folded


def searchable(text: str) -> str:
    """Return what of a text is kept to be searched."""
    # A character is at least one byte.
    data = text[:MAX_TEXT_BYTES].replace("\0", " ").encode("utf-8", "replace")
    return data[:MAX_TEXT_BYTES].decode("utf-8", "ignore")


def parse(query: str) -> Query:
    """Return the words and phrases of a query; nothing in it is an error."""
    found: dict[str, None] = {}
    phrases: list[list[str]] = []
    single: dict[str, None] = {}
    parts = (phrase or word for phrase, word in _PARTS.findall(searchable(query[:_MAX_QUERY])))
    usable = [folded for part in parts if (folded := [_fold(word) for word in _WORD.findall(part)])]
    for part in usable[:_MAX_PARTS]:
        found |= dict.fromkeys(part)
        if len(part) > 1 and part not in phrases:
            phrases.append(part)
        elif len(part) == 1:
            single[part[0]] = None
    return Query(list(found), phrases, list(single))


def has_phrases(text: str, phrases: list[list[str]]) -> bool:
    """Whether a text has all the phrases."""
    if text.isascii():
        found = [word[:_MAX_WORD] for word in _ASCII_WORD.findall(text.lower())]
    else:
        found = [word.word for word in _iterate(text)]
    line = f" {' '.join(found)} "
    return all(f" {' '.join(phrase)} " in line for phrase in phrases)


def _iterate(text: str, start: int = 0, end: int = sys.maxsize) -> Iterator[Word]:
    for match in _WORD.finditer(text, start, end):
        yield Word(_fold(match.group()), match.start(), match.end())


def snippet(text: str, query: Query) -> str:
    """Return the part of a text that has most of the words, which are put between ``[`` and ``]``.

    It is up to 24 words long; ``…`` stands for what is left out before and behind it.
    """
    start, end = _extent(_units(text, query), len(query.single) + len(query.phrases))
    # A word may be as long as the text is; its beginning and end are enough to see.
    before = list(_iterate(text, max(start - _SNIPPET_CHARACTERS, 0), start))
    behind = list(islice(_iterate(text, start, end + _SNIPPET_CHARACTERS), _SNIPPET_WORDS))
    room = _SNIPPET_WORDS - len(behind)
    shown = before[len(before) - min(max(room, _SNIPPET_LEAD), len(before)) :] + behind
    shown = shown[:_SNIPPET_WORDS]
    if not shown:
        return ""
    first, last = shown[0].start, shown[-1].end
    head, tail = _WORD.search(text, 0, first) is not None, _WORD.search(text, last) is not None
    out = ["…" if head else text[:first]]
    at = first
    for begin, finish in _marked(text[:last], first, query):
        out += [text[at:begin], "[", text[begin:finish], "]"]
        at = finish
    return "".join([*out, text[at:last], "…" if tail else text[last:]])


def _found(text: str, wanted: list[str], start: int) -> Iterator[Word]:
    if text.isascii() and all(word.isascii() and len(word) < _MAX_WORD for word in wanted):
        choice = "|".join(sorted(wanted, key=len, reverse=True))
        pattern = re.compile(rf"(?<![a-z0-9])(?:{choice})(?![a-z0-9])")
        for match in pattern.finditer(text.lower(), start):
            yield Word(match.group(), match.start(), match.end())
    else:
        kept = set(wanted)
        yield from (word for word in _iterate(text, start) if word.word in kept)


def _units(text: str, query: Query, start: int = 0) -> Iterator[Word]:
    """Return the phrases and single words of a query where they are in a text, by their ends."""
    single = set(query.single)
    # The words before this one that nothing but blanks and marks is between.
    run: list[Word] = []
    for word in _found(text, query.words, start):
        if query.phrases:
            run = [] if run and _WORD.search(text, run[-1].end, word.start) else run[-_MAX_QUERY:]
            run.append(word)
            for phrase in query.phrases:
                if [one.word for one in run[-len(phrase) :]] == phrase:
                    yield Word(" ".join(phrase), run[-len(phrase)].start, word.end)
        if word.word in single:
            yield word


def _extent(units: Iterator[Word], wanted: int) -> tuple[int, int]:
    """Return where, in about a snippet's length, most of what is wanted is."""
    window: deque[Word] = deque()
    counts: Counter[str] = Counter()
    most = 0
    extent = (0, 0)
    for word in units:
        window.append(word)
        counts[word.word] += 1
        while counts[window[0].word] > 1 or word.end - window[0].start > _SNIPPET_CHARACTERS:
            if len(window) == 1:
                break
            gone = window.popleft().word
            counts[gone] -= 1
            if not counts[gone]:
                del counts[gone]
        if len(counts) > most:
            most, extent = len(counts), (min(one.start for one in window), word.end)
            if most == wanted:
                break
    return extent


def _marked(text: str, start: int, query: Query) -> list[tuple[int, int]]:
    """Return from where to where there is what is looked for, in order; what overlaps is one."""
    found: list[tuple[int, int]] = []
    for begin, end in sorted((unit.start, unit.end) for unit in _units(text, query, start)):
        if found and begin < found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((begin, end))
    return found
