"""Cleaning leaves nothing of what was erased in the index, whatever shape the index has."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import TypeVar

import pytest

from sandbox_agent.persist.store.sqlite import index
from sandbox_agent.persist.store.sqlite.schema import migrate

T = TypeVar("T")

_UNINDEX = """
INSERT INTO store_text_index (store_text_index, rowid, text, scope)
SELECT 'delete', id, text, scope FROM store_texts WHERE id = ?
"""


class Index:
    """A store's index, changed one transaction at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self._ids = count(1)
        self._random = random.Random(7)

    def do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        self.connection.execute("BEGIN")
        result = work(self.connection)
        self.connection.execute("COMMIT")
        return result

    def add(self, texts: int, words: int, secret: str = "") -> list[int]:
        ids = [next(self._ids) for _ in range(texts)]

        def write(connection: sqlite3.Connection) -> None:
            for text_id in ids:
                text = " ".join(f"{self._random.getrandbits(30):x}" for _ in range(words)) + " " + secret
                row = (text_id, 1, text_id, 0, "s1", text)
                connection.execute("INSERT INTO store_texts VALUES (?, ?, ?, ?, ?, ?)", row)
                connection.execute(
                    "INSERT INTO store_text_index (rowid, text, scope) VALUES (?, ?, 's1')", (text_id, text)
                )

        self.do(write)
        return ids

    def erase(self, ids: list[int]) -> None:
        def write(connection: sqlite3.Connection) -> None:
            for text_id in ids:
                connection.execute(_UNINDEX, (text_id,))
                connection.execute("DELETE FROM store_texts WHERE id = ?", (text_id,))

        self.do(write)

    def clean(self) -> None:
        more: bool | None = None
        for _ in range(3):
            self.do(lambda connection: index.stir_index(connection, add=True))
            self.do(lambda connection: index.stir_index(connection, add=False))
            more = self.do(index.begin_merge)
            if more is not None:
                break
        else:
            self.do(index.rebuild_index)
        while more:
            more = self.do(index.merge_index)

    @property
    def data(self) -> bytes:
        return b"".join(
            block for (block,) in self.connection.execute("SELECT block FROM store_text_index_data")
        )


@pytest.fixture
def made(tmp_path: Path) -> Generator[Index]:
    with closing(sqlite3.connect(tmp_path / "store.db", isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("BEGIN")
        migrate(connection)
        connection.execute("COMMIT")
        yield Index(connection)


@pytest.mark.parametrize("texts", [10, 100, 1_000])
def test_index_holds_nothing_of_what_was_erased(
    texts: int, made: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Made anew only where nothing else is right.
    monkeypatch.setattr(index, "_FEW_PAGES", 5)
    made.add(texts, 20)
    choose = random.Random(texts)
    for number in range(60):
        ids = made.add(choose.choice((1, 5, 40)), choose.choice((3, 30)), f"secretive{number}word")
        if choose.random() < 0.5:
            made.add(choose.choice((1, 50)), 10)
        assert b"cretive" in made.data
        made.erase(ids)
        made.clean()
        assert b"cretive" not in made.data
    made.connection.execute("INSERT INTO store_text_index (store_text_index) VALUES ('integrity-check')")


def test_index_that_was_cleaned_often_is_made_anew_before_sqlite_refuses_it(
    made: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    # SQLite 3.40 takes a file for malformed whose index has more than 2,000 levels.
    monkeypatch.setattr(index, "_MANY_LEVELS", 20)
    made.add(1_000, 20)
    for _ in range(60):
        made.clean()
    levels = index._levels(made.connection)  # pyright: ignore[reportPrivateUsage] - no SQL tells it
    assert levels is not None
    assert len(levels) <= 24
    made.connection.execute("INSERT INTO store_text_index (store_text_index) VALUES ('integrity-check')")


@pytest.mark.parametrize("data", [b"", b"\0\0\0\0", b"\0\0\0\0\x81", b"\0\0\0\0\x02\x01\x00\x00\x00"])
def test_index_of_unknown_form_is_made_anew(data: bytes, made: Index) -> None:
    made.add(2, 3, "before")
    connection = made.connection
    connection.execute("DELETE FROM store_texts")
    connection.execute("UPDATE store_text_index_data SET block = ? WHERE id = 10", (data,))
    assert index.begin_merge(connection) is False
    assert b"before" not in made.data


@pytest.mark.parametrize(("texts", "size"), [(1, 60), (3, 60), (10, 10), (10, 60)])
def test_index_whose_segments_all_sank_below_empty_levels_keeps_nothing(
    texts: int, size: int, made: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "_FEW_PAGES", 0)
    made.add(texts, 20)
    made.clean()
    for number in range(4):
        # Segments as large as the older ones draw them down to their own level.
        ids = made.add(size, 20, "secretiveword")
        if number % 2:
            made.clean()
        made.erase(ids)
        made.clean()
        assert b"cretive" not in made.data
    made.connection.execute("INSERT INTO store_text_index (store_text_index) VALUES ('integrity-check')")
