"""Moving many rows in and out of SQLite with few statements.

The sqlite3 module gives the interpreter's lock away for every statement that it runs and for every row that
it fetches, and a busy event loop takes milliseconds to give it back. So a batch goes in as one statement,
and a page comes out as one row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any, Final, TypeVar

import msgspec

__all__ = ["MAX_SEQUENCE", "as_bytes", "clean", "gather", "insert", "row_id", "statement"]

T = TypeVar("T")

MAX_SEQUENCE: Final = 2**32 - 1
# Rows of one statement.
_CHUNKS: Final = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
_decode: Final[Callable[[bytes], list[list[Any]]]] = msgspec.json.Decoder(list[list[Any]]).decode


def row_id(key: int, number: int) -> int:
    """Return the id of a session's event or envelope; an absurd number is taken for the nearest real one."""
    return key << 32 | min(max(number, 0), MAX_SEQUENCE)


def clean(text: str) -> str:
    """Return the text as SQLite can hold it: a lone surrogate becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def as_bytes(text: str | None) -> bytes | None:
    """Return a JSON column that ``gather`` made text of."""
    return None if text is None else text.encode()


def statement(head: str, width: int, tail: str = "") -> dict[int, str]:
    """Return the statements that insert rows of ``width`` values, by how many rows they take."""
    row = "(" + ", ".join("?" * width) + ")"
    return {
        rows: f"{head} SELECT * FROM (VALUES {', '.join([row] * rows)}) WHERE column1 IS NOT NULL {tail}"  # noqa: S608
        for rows in _CHUNKS
    }


def insert(connection: sqlite3.Connection, statements: dict[int, str], rows: Sequence[Iterable[Any]]) -> int:
    """Run the statements over all rows and return how many the tables took."""
    taken = start = 0
    while start < len(rows):
        chunk = rows[start : start + _CHUNKS[0]]
        # The smallest statement that takes them all; what it has too much of is filled with nothing.
        size = 1 << (len(chunk) - 1).bit_length()
        values = list(chain.from_iterable(chunk))
        values += [None] * (len(values) // len(chunk) * (size - len(chunk)))
        taken += connection.execute(statements[size], values).rowcount
        start += len(chunk)
    return taken


def gather(
    connection: sqlite3.Connection, columns: Sequence[str], tail: str, values: Sequence[Any] = ()
) -> list[list[Any]]:
    """Return all rows of ``SELECT columns tail``, fetched as one; none of the values may be binary."""
    names = [f"c{number}" for number in range(len(columns))]
    selected = ", ".join(f"{column} AS {name}" for column, name in zip(columns, names, strict=True))
    query = (
        f"SELECT CAST(json_group_array(json_array({', '.join(names)})) AS BLOB) "  # noqa: S608 - constants only
        f"FROM (SELECT {selected} {tail})"
    )
    return _decode(connection.execute(query, values).fetchone()[0])
