"""Segments of feeds on disk: what a server's memory has no room for, kept while the connection lasts."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager

from sandbox_agent.engine.feed import Chunk
from sandbox_agent.persist.sqlite.thread import TEMPORARY, SQLiteThread

# One row or one read: as much as a viewer is sent at once.
SEGMENT_BYTES = 256 * 1024

_SCHEMA = """
CREATE TABLE IF NOT EXISTS feed_segments (
    epoch TEXT NOT NULL,
    last INTEGER NOT NULL,
    first INTEGER NOT NULL,
    audience TEXT,
    data BLOB NOT NULL,
    PRIMARY KEY (epoch, last)
)
"""


class SQLiteSegments:
    """Feed segments in a table of the server's store.

    Feeds end with their server, so what a former run left is dropped when the store is opened.

    Args:
        writer: the thread that owns the store's writing connection.
        reader: one that reads beside it.
    """

    def __init__(self, writer: SQLiteThread, reader: SQLiteThread) -> None:
        self._writer = writer
        self._reader = reader

    async def open(self) -> None:
        """Make the table, and empty it.

        Raises:
            PersistError: the store can't be written.
        """

        def prepare(connection: sqlite3.Connection) -> None:
            connection.execute(_SCHEMA)
            connection.execute("DELETE FROM feed_segments")

        await self._writer.run(prepare)

    async def write(self, epoch: str, chunks: Sequence[Chunk]) -> None:
        rows = [(epoch, part.last, part.first, part.audience, part.data) for part in _joined(chunks)]

        def insert(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO feed_segments (epoch, last, first, audience, data) "
                "VALUES (?, ?, ?, ?, ?)",
                rows,
            )

        await self._writer.run(insert)

    async def read(self, epoch: str, cursor: int, max_bytes: int) -> list[Chunk]:
        def select(connection: sqlite3.Connection) -> list[Chunk]:
            rows = connection.execute(
                "SELECT first, last, audience, data FROM feed_segments "
                "WHERE epoch = ? AND last > ? ORDER BY last",
                (epoch, cursor),
            )
            found: list[Chunk] = []
            size = 0
            for first, last, audience, data in rows:
                found.append(Chunk(first, last, audience, data))
                size += len(data)
                if size >= max_bytes:
                    break
            rows.close()
            return found

        return await self._reader.run(select)

    async def drop(self, epoch: str) -> None:
        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM feed_segments WHERE epoch = ?", (epoch,))

        await self._writer.run(delete)


@asynccontextmanager
async def temporary_segments() -> AsyncGenerator[SQLiteSegments]:
    """Keep feed segments in SQLite's own temporary file, for a server whose store has no file here.

    The file is made by the first segment, has no name, and is gone at the end.
    """
    thread = SQLiteThread(TEMPORARY, prepare=_prepare_temporary)
    try:
        yield SQLiteSegments(thread, thread)
    finally:
        await thread.close()


def _prepare_temporary(connection: sqlite3.Connection) -> None:
    # The disk gets back the room of a feed that ends.
    connection.execute("PRAGMA auto_vacuum=FULL")
    connection.execute("PRAGMA cache_size=-4096")
    connection.execute(_SCHEMA)


def _joined(chunks: Iterable[Chunk]) -> Iterable[Chunk]:
    """Join neighbors of one audience: an agent that writes slowly makes a chunk of every event."""
    run: list[Chunk] = []
    size = 0
    for chunk in chunks:
        if run and (size + len(chunk.data) > SEGMENT_BYTES or chunk.audience != run[0].audience):
            yield _join(run)
            run, size = [], 0
        run.append(chunk)
        size += len(chunk.data)
    if run:
        yield _join(run)


def _join(run: Sequence[Chunk]) -> Chunk:
    if len(run) == 1:
        return run[0]
    data = b"".join([chunk.data for chunk in run])
    return Chunk(run[0].first, run[-1].last, run[0].audience, data)
