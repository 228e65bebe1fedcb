"""What a word is, which part of a text is shown, and that both are as in the store of SQLite."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from sandbox_agent.persist.store.redis.words import (
    MAX_TEXT_BYTES,
    has_phrases,
    parse,
    searchable,
    snippet,
    words,
)

TEXTS = [
    "the quick brown Fox",
    "Crème brûlée, naïve CAFÉ cafe\u0301 Ångström",
    "foo-bar (foo_baz) 100% C++ \u4f60\u597d x2 2x",
    "Привет МИР ё Ёлка \u0391\u03b8\u03ae\u03bd\u03b1",
    "a\u00a0b\u2003c\td\r\ne\0f",
    "\u20ac 5 \u2192 \u0416\u0436 \u0439\u0418 \u05d0\u05d1 \u0627\u0628 \ud55c\uad6d\uc5b4",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_words_are_those_of_sqlite(text: str) -> None:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.execute("CREATE VIRTUAL TABLE t USING fts5(x, tokenize='unicode61 remove_diacritics 2')")
        connection.execute("CREATE VIRTUAL TABLE v USING fts5vocab(t, row)")
        connection.execute("INSERT INTO t VALUES (?)", (text.replace("\0", " "),))
        theirs = dict(connection.execute("SELECT term, cnt FROM v").fetchall())
    assert dict(words(searchable(text))) == theirs


def test_words_count_how_often_they_are_there_whatever_their_case() -> None:
    assert words("Fox FOX fox, dog") == {"fox": 3, "dog": 1}
    assert words("Füchse FUCHSE") == {"fuchse": 2}


def test_words_of_endless_length_are_told_apart_by_their_beginnings() -> None:
    assert words("x" * 5_000) == words("x" * 6_000) == {"x" * 64: 1}
    assert parse("x" * 900).words == ["x" * 64]


def test_query_is_words_and_phrases() -> None:
    assert parse('a "B c" foo-bar "d" a "b c" -e "" ("') == (
        ["a", "b", "c", "foo", "bar", "d", "e"],
        [["b", "c"], ["foo", "bar"]],
        ["a", "d", "e"],
    )
    assert len(parse(" ".join(map(str, range(1_000)))).words) == 32
    assert parse('"*" - ()') == ([], [], [])


def test_only_the_beginning_of_a_text_is_kept() -> None:
    assert len(searchable("x" * 3_000_000)) == MAX_TEXT_BYTES
    assert len(searchable("ä" * 3_000_000).encode()) == MAX_TEXT_BYTES
    assert searchable("a\0b\ud800") == "a b?"


@pytest.mark.parametrize(
    ("text", "phrase", "found"),
    [
        ("a b c", "b c", True),
        ("a b c", "a c", False),
        ("ab c", "b c", False),
        ("A, B! c", "a b c", True),
        ("Ä b", "a B", True),
        ("ä b", "b a", False),
    ],
)
def test_phrase_is_its_words_side_by_side(text: str, phrase: str, found: bool) -> None:
    assert has_phrases(text, parse(f'"{phrase}"').phrases) is found


MANY = " ".join(f"w{number}" for number in range(100))


@pytest.mark.parametrize(
    ("text", "query", "shown"),
    [
        ("Crème brûlée with naïve café", "CAFE naive", "Crème brûlée with [naïve] [café]"),
        ("the quick, brown fox!", '"quick brown" fox', "the [quick, brown] [fox]!"),
        ("b a c, A b.", '"a b" b', "[b] a c, [A b]."),
        (f"({MANY})", "w0", "([w0] " + " ".join(f"w{number}" for number in range(1, 24)) + "…"),
        (
            MANY,
            "w50",
            "…w46 w47 w48 w49 [w50] " + " ".join(f"w{number}" for number in range(51, 70)) + "…",
        ),
        (f"{MANY}", "w99", "…" + " ".join(f"w{number}" for number in range(76, 99)) + " [w99]"),
        (f"near {MANY} far near the far", "near far", None),
        ("nothing of it", "x", "nothing of it"),
        ("", "x", ""),
        ("...", "x", ""),
    ],
)
def test_snippet_is_where_most_of_the_words_are(text: str, query: str, shown: str | None) -> None:
    found = snippet(text, parse(query))
    if shown is None:
        assert found.endswith("[far] [near] the [far]")
    else:
        assert found == shown
