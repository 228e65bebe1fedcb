"""What is searched, as PostgreSQL's ``tsvector`` and ``tsquery``; the words are made here."""

from __future__ import annotations

from typing import Final, NamedTuple

from sandbox_agent.persist.searching import Query, words_of

MAX_TEXT_BYTES = 256 * 1024

__all__ = ["Indexed", "Wanted", "index_text", "namespace_word"]

# What a tsvector takes: a word of 2 kB, 255 places of it, places up to this; and 1 MB of all.
_MAX_WORD: Final = 500
_MAX_PLACES: Final = 255
_LAST_PLACE: Final = 16_383
# With many different words in the text, this is below 1 MB.
_MAX_WORDS: Final = 60_000


class Indexed(NamedTuple):
    """An item's text, its words as a tsvector, and, where that can't hold their places, as text."""

    text: str
    words: str
    folded: str | None


class Wanted(NamedTuple):
    """A query: all words as a tsquery, the phrases as a tsquery, and each as text; empty where none."""

    words: str
    phrases: str
    folded: list[str]

    @classmethod
    def of(cls, query: Query) -> Wanted:
        """Return what it asks for."""
        parts = [[word[:_MAX_WORD] for word in part] for part in query.parts]
        phrases = [part for part in parts if len(part) > 1]
        return cls(
            " & ".join(dict.fromkeys(f"'{word}'" for part in parts for word in part)),
            " & ".join("(" + " <-> ".join(f"'{word}'" for word in part) + ")" for part in phrases),
            [f" {' '.join(part)} " for part in phrases],
        )


def namespace_word(number: int) -> str:
    """Return the word that all items of a namespace have; no text has it."""
    return f"':{number}'"


def index_text(text: str, namespace: int) -> Indexed:
    """Return how an item is stored; what is beyond 256 KiB of it is not found."""
    # A character is at least one byte.
    data = text[:MAX_TEXT_BYTES].replace("\0", " ").encode("utf-8", "replace")
    text = data[:MAX_TEXT_BYTES].decode("utf-8", "ignore")
    words = [word[:_MAX_WORD] for word in words_of(text)]
    places: dict[str, list[int]] = {}
    for place, word in enumerate(words, 1):
        places.setdefault(word, []).append(place)
    long = len(words) > _LAST_PLACE or any(len(found) > _MAX_PLACES for found in places.values())
    pieces = [namespace_word(namespace)]
    for word, found in list(places.items())[:_MAX_WORDS]:
        kept = [place for place in found[:_MAX_PLACES] if place <= _LAST_PLACE]
        pieces.append(f"'{word}':{','.join(map(str, kept))}" if kept else f"'{word}'")
    return Indexed(text, " ".join(pieces), f" {' '.join(words)} " if long else None)
