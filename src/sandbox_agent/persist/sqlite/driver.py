"""The SQLite driver: one file, one writer thread, one reader thread, shared with the TypeScript SDK."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import anyio.to_thread

from sandbox_agent.persist.follow import FileHint, Following, Mark
from sandbox_agent.persist.sql.driver import SqlSessionPersistDriver
from sandbox_agent.persist.sql.work import Make
from sandbox_agent.persist.sqlite.dialect import SQLiteDatabase
from sandbox_agent.persist.sqlite.schema import prepare_store
from sandbox_agent.persist.sqlite.thread import MEMORY, UNNAMED, SQLiteThread
from sandbox_agent.persist.sqlite.writers import SQLiteWriters, read_marks
from sandbox_agent.wire.records import SessionEvent

if TYPE_CHECKING:
    from sandbox_agent.wire.sessions import SearchHit

T = TypeVar("T")


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
        super().__init__(self._file, SQLiteWriters())
        hint = None if in_memory else partial(FileHint, self._file.glance)
        self._following = Following(self, make_hint=hint)

    async def delete_session(self, session_id: str, /) -> None:
        """Erase the record, its events and what the search's index has of them, their bytes included.

        Nothing happens if there is none. A writer that claimed the session before is refused from now on.
        """
        await super().delete_session(session_id)
        self._following.deleted(session_id)
        # The log still has the erased pages.
        await self._file.cut_log()

    def follow_events(self, session_id: str, /, *, after: int = 0) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events after an index and those that are stored later, once each, in order.

        What this object stored is delivered at once; what others stored in the file within some milliseconds.
        It ends when the driver is closed or the session is deleted, here or in another process.
        """
        return self._following.follow(session_id, after)

    async def marks(self, session_ids: Collection[str], /) -> Mapping[str, Mark]:
        """Return the last index and the deletions of each session, for followers."""
        return await self._file.read(partial(read_marks, session_ids))

    async def close(self) -> None:
        """Write what was accepted, end the followers and close the file. Safe to call twice."""
        await self._following.close()
        await self._file.close()

    def _stored(self, session_id: str, events: Sequence[SessionEvent]) -> None:
        self._following.stored(session_id, events)

    async def _search(self, query: str, session_id: str | None, limit: int) -> list[SearchHit]:
        # Most programs never search.
        from sandbox_agent.persist.sqlite.texts import search_events

        return await search_events(self._file, query, session_id, limit)


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


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - hundreds of times a second, and Path.stat() costs as much again
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
