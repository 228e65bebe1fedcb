"""The server's store in SQLite: one file, a thread that writes and others that read beside it."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sql.ledger import Filters
from sandbox_agent.persist.sql.store import SqlSessionStore
from sandbox_agent.persist.sql.work import Make
from sandbox_agent.persist.sqlite.dialect import SQLiteDatabase, run
from sandbox_agent.persist.sqlite.errors import is_damage
from sandbox_agent.persist.sqlite.ledger import TEXT_INDEX, SQLiteLedger, search, used_bytes
from sandbox_agent.persist.sqlite.schema import migrate, require_features
from sandbox_agent.persist.sqlite.thread import BUSY_TIMEOUT, SQLiteThread
from sandbox_agent.persist.store import SearchRow

T = TypeVar("T")

logger: logging.Logger = logging.getLogger("sandbox_agent.persist")

# A reader that holds an old state of the file keeps the log from being cut. Each try holds up commits for
# so long at most, and they continue between the tries: 6 s in all.
_CUTS: Final = 20
_CUT_SECONDS: Final = 0.1
_BETWEEN_CUTS: Final = 0.2


class SQLiteSessionStore(SqlSessionStore):
    """Implements SessionStore.

    Args:
        writer: the thread that owns the file's writing connection; others may keep tables in the file.
        reader: one that reads beside it; the same one for ``":memory:"``.
        searcher: one that searches beside both, so that no page waits for a search; else the reader does.
    """

    def __init__(
        self, writer: SQLiteThread, reader: SQLiteThread, searcher: SQLiteThread | None = None
    ) -> None:
        self._file = _WatchedDatabase(writer, reader)
        self._tables = SQLiteLedger(writer.path)
        super().__init__(self._file, self._tables)
        self._searcher = searcher or reader
        self._cleaning = anyio.Lock()
        self._begun = 0
        self._done = 0
        self._is_clean = True
        self._trouble: str | None = None

    @property
    def trouble(self) -> str | None:
        """Why nothing could be stored when ``check`` was called last, or the file is damaged; else None."""
        return self._tables.replaced or self._file.damage or self._trouble

    async def check(self) -> None:
        """Find out whether something could be stored now, for ``trouble``; nothing is."""
        try:
            await self._file.write(self._tables.check_owner)
        except PersistError as error:
            self._trouble = str(error)
        else:
            self._trouble = None

    async def open(self) -> None:
        """Make or migrate the tables, and refuse the stores that opened the file before.

        ``finish_deletes`` is the caller's to call, and may take long.
        """

        def prepare(connection: sqlite3.Connection) -> int:
            require_features(connection)
            run(connection, migrate)
            return run(connection, self._tables.claim)

        self._tables.claimed(await self._file.writer.run(prepare))

    async def close(self) -> None:
        """Close the file. Safe to call twice."""
        await self._searcher.close()
        await self._file.close()

    async def used_bytes(self) -> int:
        """Return the size of the file without its free pages, and with an index that is complete."""
        return await self._file.read(used_bytes) + await self._file.read(self._tables.missing_bytes)

    async def _search(self, query: str, limit: int, offset: int, filters: Filters) -> list[SearchRow]:
        find = partial(run, make=partial(search, query, limit, offset, filters))
        with self._file.watched():
            while (found := await self._searcher.run(find, transaction=False)) is None:
                await self._complete_index()
        return found

    async def _complete_index(self) -> bool:
        completed = False
        while await self._file.write(TEXT_INDEX.fill):
            completed = True
        return completed

    async def _clean(self) -> bool:
        """Cut the log, which holds what was erased; a caller that waits shares the next try.

        Returns:
            Whether it is done. If not, which is logged, ``finish_deletes`` tries again.
        """
        wanted = self._begun + 1
        async with self._cleaning:
            if self._done < wanted:
                self._begun += 1
                begun = self._begun
                traces = await self._file.read(self._tables.traces)
                self._is_clean = not traces or await self._cut_log()
                if traces and self._is_clean:
                    await self._file.write(partial(self._tables.forget_traces, traces))
                self._done = begun
            return self._is_clean

    async def _cut_log(self) -> bool:
        for number in range(_CUTS):
            if number:
                await anyio.sleep(_BETWEEN_CUTS)
            if await self._file.writer.run(_checkpoint, transaction=False):
                return True
        logger.warning(
            "what was erased is out of sight, but its words are still in the store's file: another process "
            "reads an old state of it all the time; the file is cleaned within minutes once that ends, or "
            "when the server is started next"
        )
        return False


class _WatchedDatabase(SQLiteDatabase):
    """A database in which nothing is written once a reader or a writer has found that the file is damaged.

    Writing could damage more of it, and what is written might not be readable.

    Attributes:
        damage: what was found; None while the file is well.
    """

    damage: str | None = None

    async def read(self, make: Make[T], /) -> T:
        with self.watched():
            return await super().read(make)

    async def write(self, make: Make[T], /, *, session_id: str | None = None) -> T:
        if self.damage is not None:
            raise PersistError(self.damage, session_id=session_id)
        with self.watched():
            return await super().write(make, session_id=session_id)

    @contextmanager
    def watched(self) -> Generator[None]:
        """Note damage that is found in the context."""
        try:
            yield
        except PersistError as error:
            if self.damage is None and is_damage(error):
                self.damage = (
                    f"the store '{self.writer.path}' is damaged, nothing is stored: stop the server, put a "
                    "copy in its place or repair it with 'sqlite3 FILE .recover', and start again "
                    f"({error.__cause__ or error})"
                )
            raise


def _checkpoint(connection: sqlite3.Connection) -> bool:
    _set_timeout(connection, _CUT_SECONDS)
    try:
        found: tuple[Any, ...] = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        _set_timeout(connection, BUSY_TIMEOUT)
    return not found[0]


def _set_timeout(connection: sqlite3.Connection, seconds: float) -> None:
    connection.execute(f"PRAGMA busy_timeout={round(seconds * 1000)}").close()
