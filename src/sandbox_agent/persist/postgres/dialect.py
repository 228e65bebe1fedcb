"""How works run on a PostgreSQL connection: a column goes in as an array, a bundle as one statement."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, TypeVar

from sandbox_agent.persist.postgres.errors import sqlstate
from sandbox_agent.persist.postgres.link import Connection, PostgresLink
from sandbox_agent.persist.postgres.schema import mark, quoted_schema
from sandbox_agent.persist.sql.tables import DIGESTS, EVENT_COLUMNS, SESSION_COLUMNS, STORE_TABLES, names
from sandbox_agent.persist.sql.work import (
    Bundle,
    Column,
    ConflictError,
    Database,
    Insert,
    Make,
    OfAlias,
    OfName,
    Query,
    Select,
    Step,
    Table,
)
from sandbox_agent.persist.store.values import clean

T = TypeVar("T")

UNIQUE_VIOLATION: Final = "23505"
_ARRAYS: Final = {
    "text": "text[]",
    "json": "text[]",
    "tsvector": "text[]",
    "integer": "bigint[]",
    "boolean": "boolean[]",
    "bytes": "bytea[]",
    "blob": "bytea[]",
}
# How an array's element becomes a value of the column.
_CASTS: Final = {"json": "::json", "tsvector": "::tsvector"}
_ESCAPE: Final = "\x01"
_TABLES: Final = (
    *("sessions", "events", "session_writers", "session_store", "session_texts"),
    *(*STORE_TABLES, "store_namespaces", "store_texts"),
)


class PostgresDialect:
    """Fills in templates for the tables of a schema, and runs works.

    Args:
        schema: the schema, as the user wrote it.
        namespace: the number of the server's namespace; 0 where it is not known yet.
        generation: what the server writes it with.

    Attributes:
        channel: what followers of the SDK's sessions listen to.

    Raises:
        ValueError: PostgreSQL can't have a schema of that name.
    """

    def __init__(self, schema: str, *, namespace: int = 0, generation: int = 0) -> None:
        place = quoted_schema(schema)
        self.channel: str = f"sandbox_agent_{mark(schema)}"
        mine = OfAlias(f"@.namespace = {namespace} AND")
        self._rendered: dict[str, str] = {}
        self._inserts: dict[Table, str] = {}
        self._bundles: dict[tuple[Table, ...], str] = {}
        self._namespace = namespace
        self._owned = f"number = {namespace} AND generation = {generation}"
        self._fragments: dict[str, object] = {
            "collate": ' COLLATE "C"',
            "as_json": "::text::json",
            "for_update": " FOR UPDATE",
            "row": "id",
            **{name: f"{place}.{name}" for name in _TABLES},
            # The SDK's layout.
            "extents": f"{place}.session_searched",
            "channel": self.channel,
            "session_columns": ", ".join(
                f"{name}::text" if kind == "json" else name for name, kind, _ in SESSION_COLUMNS
            ),
            "event_columns": ", ".join((*names(EVENT_COLUMNS)[:-1], "payload_json::text")),
            # The server's layout.
            "mine": mine,
            "namespace": str(namespace),
            "owned": self._owned,
            "name": OfName(DIGESTS),
            "in_events": OfAlias(f"@.namespace = {namespace} AND @.key = $1 AND @.sequence > $2"),
            "in_envelopes": OfAlias(f"@.namespace = {namespace} AND @.key = $1 AND @.index > $2"),
            "of_events": OfAlias(f"e.namespace = {namespace} AND e.key = @.key"),
            "of_envelopes": OfAlias(f"v.namespace = {namespace} AND v.key = @.key"),
            "sequence": OfAlias("@.sequence"),
            "index": OfAlias("@.index"),
            "sequence_order": OfAlias("@.sequence"),
            "index_order": OfAlias("@.index"),
            "true": "true",
            "no_digests": ", session_digest = NULL, native_digest = NULL",
        }

    def render(self, template: str) -> str:
        """Return the SQL of a template."""
        statement = self._rendered.get(template)
        if statement is None:
            statement = self._rendered[template] = template.format_map(self._fragments)
        return statement

    async def run(self, connection: Connection, make: Make[T]) -> T:
        """Run a work on the connection, in the caller's transaction, and return what it returns.

        Raises:
            asyncpg.PostgresError: a statement failed.
            Exception: what the work raised.
        """
        work = make()
        try:
            step = next(work)
            while True:
                try:
                    result = await self._perform(connection, step)
                except Exception as error:
                    if sqlstate(error) != UNIQUE_VIOLATION:
                        raise
                    conflict = ConflictError(" ".join(str(error).split()))
                    conflict.__cause__ = error
                    step = work.throw(conflict)
                else:
                    step = work.send(result)
        except StopIteration as end:
            return end.value
        except ConflictError as conflict:
            raise conflict.__cause__ or conflict from None

    async def _perform(self, connection: Connection, step: Step) -> Any:
        if isinstance(step, Query):
            # PostgreSQL's texts have no null character, so no row has one; a write is refused.
            if _is_reading(step.text) and any(
                isinstance(value, str) and "\0" in value for value in step.values
            ):
                return []
            return await connection.fetch(self.render(step.text), *step.values)
        if isinstance(step, Insert):
            statement = self._inserts.get(step.table)
            if statement is None:
                statement = self._inserts[step.table] = self._insert_statement(step.table, 1)
            status = await connection.execute(statement, *_arrays(step))
            return int(status.rpartition(" ")[2])
        if isinstance(step, Bundle):
            return await self._bundle(connection, step.inserts)
        if isinstance(step, Select):
            return await connection.fetch(self._select_statement(step), *step.values)
        return await connection.execute(self.render(step.text))

    def _select_statement(self, step: Select) -> str:
        columns = (*step.columns, step.data) if step.data else step.columns
        return self.render(f"SELECT {', '.join(columns)} {step.tail}")

    def _insert_statement(self, table: Table, first: int) -> str:
        """Return the statement of one insert, whose arrays begin with that parameter."""
        columns = _columns(table)
        rows = ", ".join(f"${at}::{_ARRAYS[column.kind]}" for at, column in enumerate(columns, first))
        into = [column.name for column in columns]
        chosen = [f"r.{column.name}{_CASTS.get(column.kind, '')}" for column in columns]
        identity = [DIGESTS.get(name, name) if name in table.digests else name for name in table.identity]
        updated = [name for name in into if name not in identity]
        if table.scoped:
            into, identity = ["namespace", *into], ["namespace", *identity]
            chosen = [str(self._namespace), *chosen]
        statement = self.render(
            f"INSERT INTO {table.name} ({', '.join(into)}) SELECT {', '.join(chosen)} "
            f"FROM unnest({rows}) AS r ({', '.join(column.name for column in columns)}) "
            + table.conflict(identity, updated, "greatest")
        )
        return f"{statement} RETURNING {table.size} AS size" if table.size else statement

    async def _bundle(self, connection: Connection, inserts: Sequence[Insert]) -> list[int] | None:
        """Do all inserts in one statement, which also checks the owner; a table without size counts as 0."""
        tables = tuple(insert.table for insert in inserts)
        statement = self._bundles.get(tables)
        if statement is None:
            statement = self._bundles[tables] = self._bundle_statement(tables)
        values = [array for insert in inserts for array in _arrays(insert)]
        ((owned, *stored),) = await connection.fetch(statement, *values)
        return stored if owned else None

    def _bundle_statement(self, tables: Sequence[Table]) -> str:
        parts: list[str] = []
        sizes = ["0"]
        counts = ["(SELECT count(*) FROM owned)"]
        first = 1
        for number, table in enumerate(tables):
            parts.append(f"part{number} AS ({self._insert_statement(table, first)})")
            first += len(_columns(table))
            if table.size:
                sizes.append(f"(SELECT coalesce(sum(size), 0) FROM part{number})")
                counts.append(f"(SELECT count(*) FROM part{number})")
            else:
                counts.append("0")
        parts.append(
            f"owned AS (UPDATE {{store_namespaces}} SET bytes = bytes + {' + '.join(sizes)} "
            "WHERE {owned} RETURNING 1)"
        )
        return f"WITH {', '.join(parts)} SELECT {', '.join(counts)}".format_map(self._fragments)


class PostgresDatabase(Database):
    """Implements ``sql.work.Database``.

    Args:
        link: the connections.
        dialect: of the tables.
    """

    def __init__(self, link: PostgresLink, dialect: PostgresDialect) -> None:
        self.link: PostgresLink = link
        self.dialect: PostgresDialect = dialect

    async def read(self, make: Make[T], /) -> T:
        return await self.link.run(partial(self._run, make=make))

    async def write(self, make: Make[T], /, *, session_id: str | None = None) -> T:
        return await self.link.run(partial(self._run, make=make), transaction=True, session_id=session_id)

    async def _run(self, connection: Connection, make: Make[T]) -> T:
        return await self.dialect.run(connection, make)


def storable(text: str) -> str:
    """Return the text as PostgreSQL can hold it.

    A lone surrogate becomes a question mark; a null character is escaped, and so is what escapes.
    """
    text = clean(text)
    if _ESCAPE in text:
        text = text.replace(_ESCAPE, _ESCAPE + "1")
    return text.replace("\0", _ESCAPE + "0") if "\0" in text else text


def original(text: str) -> str:
    """Return the text that ``storable`` was given."""
    if _ESCAPE not in text:
        return text
    return text.replace(_ESCAPE + "0", "\0").replace(_ESCAPE + "1", _ESCAPE)


def digest(name: str) -> bytes:
    """Return what stands for a name in an index."""
    return hashlib.blake2b(clean(name).encode(), digest_size=16).digest()


def _is_reading(statement: str) -> bool:
    return statement.lstrip().startswith("SELECT")


def _columns(table: Table) -> list[Column]:
    return [*table.columns, *(Column(DIGESTS[name], "bytes", True) for name in table.digests)]


def _arrays(insert: Insert) -> list[list[Any]]:
    """Return the values of each column, those of the digests last."""
    table, rows = insert
    arrays = [list(column) for column in zip(*rows, strict=True)]
    for name in table.digests:
        at = names(table.columns).index(name)
        arrays.append([None if value is None else digest(original(value)) for value in arrays[at]])
    return arrays
