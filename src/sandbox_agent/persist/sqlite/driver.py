"""The SQLite driver: one file, one writer thread, one reader thread, shared with the TypeScript SDK."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

import anyio.to_thread
import msgspec

from sandbox_agent.errors import SessionFencedError
from sandbox_agent.persist.base import UNFENCED
from sandbox_agent.persist.follow import FileHint, Mark
from sandbox_agent.persist.sql.driver import SqlSessionPersistDriver
from sandbox_agent.persist.sql.log import UNKNOWN, Writers
from sandbox_agent.persist.sql.work import Make, Query, Row, Work, reading
from sandbox_agent.persist.sqlite.dialect import SQLiteDatabase
from sandbox_agent.persist.sqlite.schema import prepare_store
from sandbox_agent.persist.sqlite.texts import erase_texts, forget_extent, search_events
from sandbox_agent.persist.sqlite.thread import MEMORY, UNNAMED, SQLiteThread
from sandbox_agent.wire.records import SessionEvent

if TYPE_CHECKING:
    from sandbox_agent.wire.sessions import SearchHit

T = TypeVar("T")

# The table is made when a session is first claimed or deleted, so that a file in which neither happened is as
# the TypeScript driver makes it. A row outlives its session: an old writer must not write into a session that
# is made again under the same id.
_CREATE: Final = """
CREATE TABLE IF NOT EXISTS session_writers (
  session_id TEXT PRIMARY KEY,
  generation INTEGER NOT NULL,
  deletions INTEGER NOT NULL
)"""
_RAISE: Final = """
INSERT INTO session_writers (session_id, generation, deletions) VALUES ($1, 1, $2)
ON CONFLICT (session_id) DO UPDATE SET
  generation = generation + 1, deletions = deletions + excluded.deletions
RETURNING generation
"""
_HAS_TABLE: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'session_writers'"
_GENERATION: Final = "SELECT coalesce((SELECT generation FROM session_writers WHERE session_id = $1), 0)"
_GENERATION_AND_LAST: Final = (
    f"{_GENERATION}, coalesce((SELECT max(event_index) FROM {{events}} WHERE session_id = $1), 0)"
)
_MANY: Final = "json_each($1)"
_ONE: Final = "(SELECT $1 AS value)"
_LAST: Final = "coalesce((SELECT max(event_index) FROM events WHERE session_id = ids.value), 0)"
_DELETIONS: Final = "coalesce((SELECT deletions FROM session_writers WHERE session_id = ids.value), 0)"


class SQLiteSessionPersistDriver(SqlSessionPersistDriver):
    """Keeps sessions and events in one SQLite file, shared with the TypeScript SDK's SQLite driver.

    What a method acknowledged is on the disk: against a killed process and a lost machine (WAL,
    synchronous=FULL). Appends of one tick are committed together. The first call opens the file, and makes or
    migrates it where needed. Several processes may use one file.

    Args:
        filename: the database file, made with its parent folders where missing; ``":memory:"`` keeps
            everything in this object.

    Attributes:
        writer: the thread that writes the file; others may keep their own tables in it.
        reader: the thread that reads beside it (the same one for ":memory:").
    """

    def __init__(self, filename: str | os.PathLike[str] = MEMORY) -> None:
        self.writer: SQLiteThread = SQLiteThread(filename, prepare=prepare_store)
        in_memory = self.writer.path in UNNAMED
        self.reader: SQLiteThread = (
            self.writer if in_memory else SQLiteThread(self.writer.path, read_only=True)
        )
        self._file = _PreparedFile(self.writer, self.reader)
        hint = None if in_memory else partial(FileHint, self._file.glance)
        super().__init__(self._file, _Writers(), make_hint=hint)

    async def delete_session(self, session_id: str, /) -> None:
        """Erase the record, its events and what the search's index has of them, their bytes included.

        Nothing happens if there is none. A writer that claimed the session before is refused from now on.
        """
        await self.delete_sessions([session_id])

    async def delete_sessions(self, session_ids: Sequence[str], /) -> None:
        await super().delete_sessions(session_ids)
        # The log still has the erased pages; a reader of another process may keep it from being cut.
        await self.writer.run(_cut_log, transaction=False)

    @reading
    def marks(self, session_ids: Collection[str], /) -> Work[Mapping[str, Mark]]:
        deletions = _DELETIONS if (yield Query(_HAS_TABLE)) else "0"
        # SQLite's JSON ends a text at a null character.
        apart = [session_id for session_id in session_ids if "\0" in session_id]
        together = msgspec.json.encode([session_id for session_id in session_ids if "\0" not in session_id])
        marks: dict[str, Mark] = {}
        for source, value in [(_MANY, together.decode()), *((_ONE, one) for one in apart)]:
            rows = yield Query(f"SELECT ids.value, {_LAST}, {deletions} FROM {source} AS ids", (value,))
            marks.update((session_id, Mark(last, deleted)) for session_id, last, deleted in rows)
        return marks

    async def close(self) -> None:
        """Write what was accepted, end the followers and close the file. Safe to call twice."""
        await super().close()
        await self._file.close()

    async def _search(self, query: str, session_id: str | None, limit: int) -> list[SearchHit]:
        return await search_events(self._file, query, session_id, limit)


class _Writers(Writers):
    """Implements ``sql.log.Writers``: the file's write lock is held by every transaction."""

    def claim(self, session_id: str) -> Work[int]:
        return (yield from _raise_generation(session_id, 0))

    def check(self, session_id: str, generation: int, known: Mark = UNKNOWN) -> Work[Mark]:
        if generation != UNFENCED:
            yield from self._check(_GENERATION, session_id, generation)
        return UNKNOWN

    def check_end(self, session_id: str, generation: int, known: Mark = UNKNOWN) -> Work[Mark]:
        if generation != UNFENCED:
            # One statement for both: each releases the interpreter's lock.
            row = yield from self._check(_GENERATION_AND_LAST, session_id, generation)
            if row:
                return Mark(row[1])
        return (yield from super().check_end(session_id, UNFENCED))

    def _check(self, query: str, session_id: str, generation: int) -> Work[Row]:
        """Return the row of a query whose first column is the generation; () without a table."""
        try:
            (row,) = yield Query(query, (session_id,))
        except sqlite3.OperationalError:
            # Checked only after the error, because every statement releases the interpreter's lock.
            if (yield Query(_HAS_TABLE)):
                raise
            return ()
        if row[0] > generation:
            raise SessionFencedError(session_id, generation)
        return row

    def replaced(self, event: SessionEvent) -> Work[None]:
        yield from forget_extent(event)

    def delete(self, session_id: str) -> Work[None]:
        yield from _raise_generation(session_id, 1)
        yield from erase_texts(session_id)
        yield Query("DELETE FROM events WHERE session_id = $1", (session_id,))
        yield Query("DELETE FROM sessions WHERE id = $1", (session_id,))


def _raise_generation(session_id: str, deletions: int) -> Work[int]:
    yield Query(_CREATE)
    rows = yield Query(_RAISE, (session_id, deletions))
    return int(rows[0][0])


class _PreparedFile(SQLiteDatabase):
    """A file that the writer makes and migrates before it is first read."""

    _prepared = False
    _real_path = ""

    async def read(self, make: Make[T], /) -> T:
        if not self._prepared:
            await self.writer.run(lambda _: None, transaction=False)
            # The log is beside the file that a link leads to.
            self._real_path = await anyio.to_thread.run_sync(os.path.realpath, self.writer.path)
            self._prepared = True
        return await super().read(make)

    def glance(self) -> object:
        """Return what every commit changes: the state of the file and of its log."""
        path = self._real_path or self.writer.path
        return _state(path), _state(f"{path}-wal")


def _cut_log(connection: sqlite3.Connection) -> None:
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close()


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - hundreds of times a second, and Path.stat() costs as much again
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
