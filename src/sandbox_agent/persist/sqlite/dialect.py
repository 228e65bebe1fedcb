"""How works run in an SQLite file: few statements, each of which moves many rows.

The sqlite3 module releases the interpreter's lock for every statement that it runs and every row that it
fetches, and with a busy event loop it waits milliseconds to acquire it again. So a batch is inserted by one
statement, and a page is selected as one row.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from itertools import chain
from types import MappingProxyType
from typing import Any, Final, TypeVar

import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sql.tables import EVENT_COLUMNS, SESSION_COLUMNS, STORE_TABLES, names
from sandbox_agent.persist.sql.work import (
    Bundle,
    ConflictError,
    Insert,
    Make,
    OfAlias,
    OfName,
    Query,
    Select,
    Step,
    Table,
)
from sandbox_agent.persist.sqlite.thread import SQLiteThread

T = TypeVar("T")

# Below a session's key in the id of its events and envelopes.
_NUMBER_BITS: Final = 32
MAX_SEQUENCE: Final = 2**_NUMBER_BITS - 1


_OF_SESSION: Final = OfAlias(
    f"id > @.key << {_NUMBER_BITS} AND id <= (@.key << {_NUMBER_BITS} | {MAX_SEQUENCE})"
)
# What the templates of sql/ mean here.
_FRAGMENTS: Final[Mapping[str, object]] = MappingProxyType(
    {
        "collate": "",
        "as_json": "",
        "for_update": "",
        "row": "rowid",
        # The SDK's layout.
        "sessions": "sessions",
        "events": "events",
        "extents": "session_texts_extents",
        "session_columns": ", ".join(names(SESSION_COLUMNS)),
        # The payload as bytes: no decoding to text and back.
        "event_columns": ", ".join((*names(EVENT_COLUMNS)[:-1], "CAST(payload_json AS BLOB)")),
        # The server's layout: key << 32 | number is the id of an event or envelope.
        **{name: name for name in STORE_TABLES},
        "mine": OfAlias(""),
        "name": OfName({}),
        **dict.fromkeys(("in_events", "in_envelopes"), OfAlias("@.id > $1 AND @.id <= $2")),
        **dict.fromkeys(("of_events", "of_envelopes"), _OF_SESSION),
        **dict.fromkeys(("sequence", "index"), OfAlias(f"@.id & {MAX_SEQUENCE}")),
        **dict.fromkeys(("sequence_order", "index_order"), OfAlias("@.id")),
        "true": "1",
        "no_digests": "",
    }
)
_PARAMETER: Final = re.compile(r"\$(?=\d)")
# The most rows of one statement; SQLite takes up to 32,766 values.
_MOST_ROWS: Final = 512
_decode_column: Final[Callable[[bytes], list[Any]]] = msgspec.json.Decoder(list[Any]).decode
_decode: Final[Callable[[bytes], list[list[Any]]]] = msgspec.json.Decoder(list[list[Any]]).decode


def row_id(key: int, number: int) -> int:
    """Return the id of a session's event or envelope; an absurd number becomes the nearest real one."""
    return key << _NUMBER_BITS | min(max(number, 0), MAX_SEQUENCE)


@lru_cache(maxsize=512)
def render(template: str) -> str:
    """Return the SQL of a template."""
    return _PARAMETER.sub("?", template.format_map(_FRAGMENTS))


def run(connection: sqlite3.Connection, make: Make[T]) -> T:
    """Run a work on the connection, in the caller's transaction, and return what it returns.

    Raises:
        sqlite3.Error: a statement failed.
        Exception: what the work raised.
    """
    work = make()
    try:
        step = next(work)
        while True:
            try:
                result = _perform(connection, step)
            except sqlite3.IntegrityError as error:
                conflict = ConflictError(str(error))
                conflict.__cause__ = error
                step = work.throw(conflict)
            except sqlite3.OperationalError as error:
                step = work.throw(error)
            else:
                step = work.send(result)
    except StopIteration as end:
        return end.value
    except ConflictError as conflict:
        raise conflict.__cause__ or conflict from None


def _perform(connection: sqlite3.Connection, step: Step) -> Any:
    if isinstance(step, Query):
        return connection.execute(render(step.text), step.values).fetchall()
    if isinstance(step, Insert):
        return _insert(connection, step)
    if isinstance(step, Bundle):
        return [_insert(connection, one) for one in step.inserts]
    if isinstance(step, Select):
        return _select(connection, step)
    connection.execute(render(step.text)).close()
    return None


def _insert(connection: sqlite3.Connection, step: Insert) -> int:
    """Insert the rows with as few statements as possible and return how many the table took."""
    table, rows = step
    inserted = start = 0
    while start < len(rows):
        chunk = rows[start : start + _MOST_ROWS]
        # The smallest statement that takes them all; its surplus is filled with NULL, which it leaves out.
        size = 1 << (len(chunk) - 1).bit_length()
        values = list(chain.from_iterable(chunk))
        values += [None] * (len(table.columns) * (size - len(chunk)))
        inserted += connection.execute(_insert_statement(table, size), values).rowcount
        start += len(chunk)
    return inserted


@lru_cache(maxsize=256)
def _insert_statement(table: Table, rows: int) -> str:
    columns = names(table.columns)
    row = "(" + ", ".join("?" * len(columns)) + ")"
    updated = [name for name in columns if name not in table.identity]
    return render(
        f"INSERT INTO {table.name} ({', '.join(columns)}) "
        f"SELECT * FROM (VALUES {', '.join([row] * rows)}) WHERE column1 IS NOT NULL "
        + table.conflict(table.identity, updated, "max")
    )


def _select(connection: sqlite3.Connection, step: Select) -> list[list[Any]]:
    """Return all rows, fetched as one; binary data is joined and cut apart again."""
    columns, tail, values, data = step
    found = connection.execute(_select_statement(tuple(columns), tail, data), values).fetchone()
    if not data:
        return _decode(found[0]) if len(columns) > 1 else [[value] for value in _decode_column(found[0])]
    rows, joined = _decode(found[0]), found[1]
    start = 0
    for row in rows:
        size = row[-1]
        if size is not None:
            row[-1] = joined[start : start + size]
            start += size
    return rows


@lru_cache(maxsize=256)
def _select_statement(columns: tuple[str, ...], tail: str, data: str) -> str:
    aliases = [f"c{number}" for number in range(len(columns))]
    selected = [f"{column} AS {alias}" for column, alias in zip(columns, aliases, strict=True)]
    joined = ""
    if data:
        aliases.append("size")
        selected += [f"length({data}) AS size", f"{data} AS data"]
        joined = ", CAST(group_concat(data, '') AS BLOB)"
    values = ", ".join(aliases)
    if len(columns) > 1 or data:
        values = f"json_array({values})"
    # A limit keeps the inner statement, and so its order, as it is.
    limit = "" if "LIMIT" in tail else " LIMIT -1"
    return render(
        f"SELECT CAST(json_group_array({values}) AS BLOB){joined} "
        f"FROM (SELECT {', '.join(selected)} {tail}{limit})"
    )


class SQLiteDatabase:
    """Implements ``sql.work.Database``.

    Args:
        writer: the thread that writes the file, and makes or migrates it.
        reader: a thread that reads beside it; the same one for ":memory:".
    """

    def __init__(self, writer: SQLiteThread, reader: SQLiteThread) -> None:
        self.writer: SQLiteThread = writer
        self.reader: SQLiteThread = reader

    async def read(self, make: Make[T], /) -> T:
        """Run a work that only reads."""
        return await self.reader.run(partial(run, make=make), transaction=False)

    async def write(self, make: Make[T], /, *, session_id: str | None = None) -> T:
        """Run a work in a transaction, together with others that wait."""
        try:
            return await self.writer.run(partial(run, make=make))
        except PersistError as error:
            error.session_id = error.session_id or session_id
            raise

    async def close(self) -> None:
        """Write what was accepted and close the file. Safe to call twice."""
        await self.reader.close()
        await self.writer.close()
