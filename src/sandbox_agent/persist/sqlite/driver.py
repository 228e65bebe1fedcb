"""The SQLite driver: one file, one writer thread, one reader thread (seed 002)."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar, cast

import anyio.to_thread

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import (
    UNFENCED,
    Capability,
    Keyset,
    SessionPersistDriver,
    check_session,
    decode_cursor,
    encode_cursor,
    normalize_limit,
)
from sandbox_agent.persist.columns import to_record, to_row
from sandbox_agent.persist.following import Following, Mark
from sandbox_agent.persist.sqlite.append import append, insert_or_replace
from sandbox_agent.persist.sqlite.schema import prepare_store
from sandbox_agent.persist.sqlite.texts import erase_texts, forget_texts
from sandbox_agent.persist.sqlite.thread import MEMORY, UNNAMED, SQLiteThread
from sandbox_agent.persist.sqlite.writers import check_generation, claim, forget_writer, read_marks
from sandbox_agent.wire.records import ListPage, Sender, SessionEvent, SessionRecord

if TYPE_CHECKING:
    from sandbox_agent.wire.sessions import SearchHit

__all__ = ["SQLiteSessionPersistDriver"]

T = TypeVar("T")
# A table's row: what sqlite3 gives, by position.
_Row = tuple[Any, ...]

_SESSION_COLUMNS: Final = (
    "id, agent, agent_session_id, last_connection_id, created_at, "
    "destroyed_at, sandbox_id, session_init_json, config_options_json, modes_json"
)
_SAVE_SESSION: Final = f"""
INSERT INTO sessions ({_SESSION_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT(id) DO UPDATE SET
  agent = excluded.agent, agent_session_id = excluded.agent_session_id,
  last_connection_id = excluded.last_connection_id, created_at = excluded.created_at,
  destroyed_at = excluded.destroyed_at, sandbox_id = excluded.sandbox_id,
  session_init_json = excluded.session_init_json, config_options_json = excluded.config_options_json,
  modes_json = excluded.modes_json
"""  # noqa: S608 - constants only
# The payload as bytes: no decoding to text and back.
_SELECT_EVENTS: Final = """
SELECT id, event_index, session_id, created_at, connection_id, sender, CAST(payload_json AS BLOB)
FROM events WHERE session_id = ?
"""
_BEGINNING: Final = Keyset(0, "")
# SQLite's largest LIMIT; more than any memory holds.
_MAX_ROWS: Final = 2**31


class SQLiteSessionPersistDriver(SessionPersistDriver):
    """Keeps sessions and events in one SQLite file, shared with the TypeScript SDK's SQLite driver.

    What a method acknowledged is on the disk: against a killed process and a lost machine (WAL,
    synchronous=FULL). Appends of one tick are committed together. The file is opened by the first
    call, and made, or migrated from an older shape, where needed. Several processes may use one file.

    Args:
        filename: the database file, made with its parent folders where missing; ``":memory:"`` keeps
            everything in this object.

    Attributes:
        writer: the thread that writes the file; others may keep their own tables in it.
        reader: the thread that reads beside it (the same one for ":memory:").
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability)

    def __init__(self, filename: str | os.PathLike[str] = MEMORY) -> None:
        self.writer: SQLiteThread = SQLiteThread(filename, prepare=prepare_store)
        in_memory = self.writer.path in UNNAMED
        self.reader: SQLiteThread = (
            self.writer if in_memory else SQLiteThread(self.writer.path, read_only=True)
        )
        # The writer makes and migrates the file; only then can it be read.
        self._prepared = False
        self._real_path = self.writer.path
        self._following = Following(self, glance=None if in_memory else self._glance)

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        """Return the record, or None."""
        query = f"SELECT {_SESSION_COLUMNS} FROM sessions WHERE id = ?"  # noqa: S608 - constants only
        rows = await self._rows(query, (session_id,))
        return to_record(rows[0]) if rows else None

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        """Return a page of records by (created_at, id), oldest first."""
        query = f"SELECT {_SESSION_COLUMNS} FROM sessions WHERE TRUE"  # noqa: S608 - constants only
        rows, has_more = await self._page(query, "created_at", [], limit, cursor)
        records = [to_record(row) for row in rows]
        end = records[-1] if has_more else None
        return ListPage(records, encode_cursor(end.created_at, end.id) if end else None)

    async def update_session(self, session: SessionRecord, /) -> None:
        """Insert the record, or replace the one of that id."""
        await self.save_session(session)

    async def claim_session(self, session_id: str, /) -> int:
        """Become the session's only writer and return the generation to write with."""
        return await self._store(session_id, lambda connection: claim(connection, session_id))

    async def save_session(self, session: SessionRecord, /, *, generation: int = UNFENCED) -> None:
        """``update_session`` by the session's writer.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
        """
        row = to_row(session)

        def save(connection: sqlite3.Connection) -> None:
            check_generation(connection, session.id, generation)
            connection.execute(_SAVE_SESSION, row).close()

        await self._store(session.id, save)

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        """Return a page of a session's events by (event_index, id), oldest first."""
        rows, has_more = await self._page(_SELECT_EVENTS, "event_index", [session_id], limit, cursor)
        events = [_to_event(row) for row in rows]
        end = events[-1] if has_more else None
        return ListPage(events, encode_cursor(end.event_index, end.id) if end else None)

    def cursor_after(self, event_index: int, /) -> str:
        """Return the cursor of ``list_events`` behind that index."""
        return encode_cursor(event_index + 1, "")

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert the event as it is, or replace the one of that id.

        Raises:
            PersistError: another event of the session has its index, or the store failed.
        """
        check_session(session_id, event)
        kept = event.copy()

        def insert(connection: sqlite3.Connection) -> None:
            forget_texts(connection, kept)
            insert_or_replace(connection, kept)

        await self._store(session_id, insert)
        self._following.stored(session_id, [kept])

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        """Append the events and set their ``event_index``, in one transaction: all of them or none.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
            PersistError: an id is stored in another session, or the store failed.
        """
        for event in events:
            check_session(session_id, event)
        batch = list(events)

        def store(connection: sqlite3.Connection) -> list[int]:
            check_generation(connection, session_id, generation)
            return append(connection, session_id, batch)

        indexes = await self._store(session_id, store)
        for event, index in zip(batch, indexes, strict=True):
            event.event_index = index
        self._following.stored(session_id, batch)

    async def last_event_index(self, session_id: str, /) -> int:
        """Return the highest event index of the session, 0 where it has none."""
        query = "SELECT COALESCE(MAX(event_index), 0) FROM events WHERE session_id = ?"
        rows = await self._rows(query, (session_id,))
        return int(rows[0][0])

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        """Return the newest ``limit`` events, oldest of them first."""
        if limit < 1:
            return []
        query = _SELECT_EVENTS + "ORDER BY event_index DESC, id DESC LIMIT ?"
        rows = await self._rows(query, (session_id, min(limit, _MAX_ROWS)))
        return [_to_event(row) for row in reversed(rows)]

    async def delete_session(self, session_id: str, /) -> None:
        """Erase the record, its events and what the index of the search has of them, their bytes included.

        Nothing happens where there is none. Whoever writes the session is refused from now on.
        """

        def erase(connection: sqlite3.Connection) -> None:
            forget_writer(connection, session_id)
            erase_texts(connection, session_id)
            connection.execute("DELETE FROM events WHERE session_id = ?", (session_id,))
            connection.execute("DELETE FROM sessions WHERE id = ?", (session_id,))

        await self._store(session_id, erase)
        self._following.deleted(session_id)
        # The log still holds the erased pages; a reader of another process may keep it from being cut.
        await self.writer.run(
            lambda connection: connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").close(),
            transaction=False,
        )

    def follow_events(self, session_id: str, /, *, after: int = 0) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events behind an index and those that are stored meanwhile, once each, in order.

        What this object stored is handed on at once; what others stored in the file is seen within some
        milliseconds. It ends when the driver is closed or the session is deleted, here or in another process.
        """
        return self._following.follow(session_id, after)

    async def search_events(
        self, query: str, /, *, session_id: str | None = None, limit: int | None = None
    ) -> list[SearchHit]:
        """Return where all words of the query are said or done, the newest first.

        The index is brought up to date first: the first search of a long history takes a while, some
        seconds for 100,000 events.
        """
        # Most programs never search.
        from sandbox_agent.persist.sqlite.search import search

        return await search(self._read, self.writer.run, query, session_id, normalize_limit(limit))

    async def marks(self, session_ids: Collection[str], /) -> Mapping[str, Mark]:
        """Return how far each of the sessions is, for those that follow."""
        return await self._read(lambda connection: read_marks(connection, session_ids))

    async def close(self) -> None:
        """Write what was accepted and close the file; ends who follows. Safe to call twice."""
        await self._following.close()
        await self.reader.close()
        await self.writer.close()

    def _glance(self) -> object:
        """Return what every commit changes: the state of the file and of its log."""
        return _state(self._real_path), _state(f"{self._real_path}-wal")

    async def _store(self, session_id: str, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self.writer.run(work)
        except PersistError as error:
            error.session_id = session_id
            raise

    async def _read(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if not self._prepared:
            await self.writer.run(lambda _: None, transaction=False)
            # The log is beside the file that a link leads to.
            self._real_path = await anyio.to_thread.run_sync(os.path.realpath, self.writer.path)
            self._prepared = True
        return await self.reader.run(work, transaction=False)

    async def _rows(self, query: str, values: Sequence[object]) -> list[_Row]:
        parameters = cast("Sequence[Any]", values)
        return await self._read(lambda connection: connection.execute(query, parameters).fetchall())

    async def _page(
        self, query: str, position: str, values: list[object], limit: int | None, cursor: str | None
    ) -> tuple[list[_Row], bool]:
        """Return the rows of a page, and whether there are more after it."""
        size = normalize_limit(limit)
        after = decode_cursor(cursor) or _BEGINNING
        if after is not _BEGINNING and not after.offset:
            query += f" AND ({position}, id) > (?, ?)"
            values = [*values, after.position, after.id]
        query += f" ORDER BY {position}, id LIMIT ? OFFSET ?"
        rows = await self._rows(query, [*values, size + 1, after.offset])
        return rows[:size], len(rows) > size


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - hundreds of times a second, and Path.stat() costs as much again
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _to_event(row: _Row) -> SessionEvent:
    return SessionEvent(row[0], row[1], row[2], row[3], row[4], cast("Sender", row[5]), row[6])
