"""Units of work without I/O: a generator yields queries, is sent their results, and returns its own.

SQLite's thread runs them synchronously, asyncpg runs them asynchronously. A work runs inside one transaction
(or as a single read) and may run more than once, so it changes nothing but the database.

Statements are templates: ``$1`` is a value, ``{name}`` a table or a fragment that the engine fills in.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from types import CoroutineType
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

T = TypeVar("T")
P = ParamSpec("P")
S = TypeVar("S", bound="HasDatabase")
# A row of a result: its values by position.
Row = Sequence[Any]


class Query(NamedTuple):
    """One statement; its result is the list of its rows."""

    text: str
    values: Sequence[Any] = ()


class Command(NamedTuple):
    """A statement without values and rows, such as CREATE TABLE."""

    text: str


class Select(NamedTuple):
    """``SELECT columns tail`` of many rows; its result is the list of them.

    No column is binary but ``data``, which is appended to each row. The tail has no LIMIT where all rows are
    wanted.
    """

    columns: Sequence[str]
    tail: str
    values: Sequence[Any] = ()
    data: str = ""


class Column(NamedTuple):
    """A column: its kind is text, integer, boolean, json or bytes."""

    name: str
    kind: str
    optional: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Table:
    """What an insert needs to know of a table.

    Attributes:
        name: a template.
        columns: those that an insert sets, in the order of its rows.
        identity: a row is there already if it has the same values of these columns.
        replace: replace such a row; otherwise it is kept and the new one is left out.
        growing: columns that keep the larger value when a row is replaced.
        fixed: columns that keep their value when a row is replaced.
        where: which rows may be replaced.
        digests: columns of names, and those of their digests, for engines that index digests.
        scoped: the rows are those of a namespace, where the engine has namespaces.
        size: what a new row counts for, as an SQL expression; empty where nothing is counted.
    """

    name: str
    columns: tuple[Column, ...]
    identity: tuple[str, ...] = ()
    replace: bool = False
    growing: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    where: str = ""
    digests: tuple[str, ...] = ()
    scoped: bool = False
    size: str = ""

    def conflict(self, identity: Sequence[str], updated: Sequence[str], greatest: str) -> str:
        """Return the ON CONFLICT clause.

        Args:
            identity: its columns, as the engine has them.
            updated: the columns that are replaced, as the engine has them.
            greatest: the engine's function for the larger of two values.
        """
        if not self.identity:
            return ""
        if not self.replace:
            return f"ON CONFLICT ({', '.join(identity)}) DO NOTHING"
        table = self.name.strip("{}")
        updates = ", ".join(
            f"{name} = {greatest}({table}.{name}, excluded.{name})"
            if name in self.growing
            else f"{name} = excluded.{name}"
            for name in updated
            if name not in self.fixed
        )
        return f"ON CONFLICT ({', '.join(identity)}) DO UPDATE SET {updates} {self.where}"


class Insert(NamedTuple):
    """Many rows for one table; its result is how many the table took."""

    table: Table
    rows: Sequence[Sequence[Any]]


class Bundle(NamedTuple):
    """Inserts that are done together; its result is a list of how many each table took.

    The result is None where another writer owns the tables, for engines that check it in the same statement.
    """

    inserts: Sequence[Insert]


class OfAlias:
    """A fragment for the table of an alias, which is before each point with an @: ``{sequence:e}``."""

    def __init__(self, template: str) -> None:
        self._template = template

    def __format__(self, alias: str) -> str:
        return self._template.replace("@.", f"{alias}." if alias else "")


class OfName:
    """The column that is compared with a name, which may be indexed by its digest: ``{name:turn_id}``."""

    def __init__(self, digests: Mapping[str, str]) -> None:
        self._digests = digests

    def __format__(self, column: str) -> str:
        return self._digests.get(column, column)


Step = Query | Command | Select | Insert | Bundle
Work = Generator[Step, Any, T]
Make = Callable[[], Work[T]]


class ConflictError(Exception):
    """A row contradicts a unique index. The engine's error is the cause, and raised if this is not caught.

    A work may raise another error for it, but must not continue.
    """


class Database(Protocol):
    """Runs works."""

    async def read(self, make: Make[T], /) -> T:
        """Run a work that only reads.

        Raises:
            PersistError: the store failed.
        """
        ...

    async def write(self, make: Make[T], /, *, session_id: str | None = None) -> T:
        """Run a work in a transaction.

        Raises:
            PersistError: the store failed, nothing of the work is stored.
        """
        ...


class HasDatabase(Protocol):
    """A store whose methods run works."""

    _database: Database


def reading(
    work: Callable[Concatenate[S, P], Work[T]],
) -> Callable[Concatenate[S, P], CoroutineType[Any, Any, T]]:
    """Turn a method that is a work, which only reads, into one that runs it in the store's database."""

    @wraps(work)
    async def run(store: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await store._database.read(partial(work, store, *args, **kwargs))  # pyright: ignore[reportPrivateUsage] - the store's own

    return run


def columns(spec: str) -> tuple[Column, ...]:
    """Return columns of ``"name kind, name kind?"``; a question mark means that NULL is allowed."""
    found: list[Column] = []
    for part in spec.split(","):
        name, kind = part.split()
        found.append(Column(name, kind.removesuffix("?"), kind.endswith("?")))
    return tuple(found)
