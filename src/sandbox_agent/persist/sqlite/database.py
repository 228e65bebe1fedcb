"""An SQLite file that runs works: one thread writes it, one reads beside it."""

from __future__ import annotations

import sqlite3
from functools import partial
from typing import TypeVar

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sql.work import Make
from sandbox_agent.persist.sqlite.dialect import run
from sandbox_agent.persist.sqlite.thread import SQLiteThread

T = TypeVar("T")


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

    async def cut_log(self) -> None:
        """Move the log's pages into the file; a reader of another process may keep it from being cut."""
        await self.writer.run(_cut_log, transaction=False)

    async def close(self) -> None:
        """Write what was accepted and close the file. Safe to call twice."""
        await self.reader.close()
        await self.writer.close()


def _cut_log(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()
