"""Segments of feeds on disk: what a server's memory has no room for, kept while the connection lasts."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import IO, NamedTuple

import anyio.to_thread

from sandbox_agent.engine.feed import Chunk
from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sqlite.thread import SQLiteThread

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


class _Extent(NamedTuple):
    first: int
    last: int
    audience: str | None
    offset: int
    size: int


class FileSegments:
    """Feed segments in temporary files without a name, for a server whose store is memory.

    They are on the disk of the platform's temporary folder and vanish with the process.
    """

    def __init__(self) -> None:
        self._files: dict[str, tuple[IO[bytes], list[_Extent]]] = {}
        self._lock = threading.Lock()

    async def write(self, epoch: str, chunks: Sequence[Chunk]) -> None:
        await anyio.to_thread.run_sync(self._write, epoch, list(_joined(chunks)))

    def _write(self, epoch: str, chunks: list[Chunk]) -> None:
        with self._lock:
            try:
                if epoch not in self._files:
                    self._files[epoch] = (tempfile.TemporaryFile(buffering=0), [])  # noqa: SIM115 - drop() closes
                file, extents = self._files[epoch]
                known = extents[-1].last if extents else 0
                offset = end = extents[-1].offset + extents[-1].size if extents else 0
                file.seek(end)
                added: list[_Extent] = []
                for chunk in chunks:
                    if chunk.last <= known:  # a writer that was cancelled comes again
                        continue
                    view = memoryview(chunk.data)
                    while view:
                        view = view[file.write(view) :]
                    added.append(_Extent(chunk.first, chunk.last, chunk.audience, offset, len(chunk.data)))
                    offset += len(chunk.data)
            except OSError as error:
                raise PersistError(
                    f"the temporary folder '{tempfile.gettempdir()}' has no room for more events "
                    f"({error.strerror}): make room, or give the server --store sqlite:PATH"
                ) from error
            extents.extend(added)

    async def read(self, epoch: str, cursor: int, max_bytes: int) -> list[Chunk]:
        return await anyio.to_thread.run_sync(self._read, epoch, cursor, max_bytes)

    def _read(self, epoch: str, cursor: int, max_bytes: int) -> list[Chunk]:
        with self._lock:
            if epoch not in self._files:
                return []
            file, extents = self._files[epoch]
            found: list[Chunk] = []
            size = 0
            for extent in extents[bisect_right(extents, cursor, key=attrgetter("last")) :]:
                file.seek(extent.offset)
                found.append(
                    Chunk(extent.first, extent.last, extent.audience, _read_exactly(file, extent.size))
                )
                size += extent.size
                if size >= max_bytes:
                    break
            return found

    async def drop(self, epoch: str) -> None:
        await anyio.to_thread.run_sync(self._drop, epoch)

    def _drop(self, epoch: str) -> None:
        with self._lock:
            file, _ = self._files.pop(epoch, (None, None))
        if file is not None:
            file.close()


def _read_exactly(file: IO[bytes], size: int) -> bytes:
    parts: list[bytes] = []
    while size:
        part = file.read(size)
        if not part:
            raise PersistError("a spilled segment is shorter than it was written: the disk lost it")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


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
