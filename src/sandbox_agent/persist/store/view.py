"""The server's store as a persist driver, to read: its sessions beside an SDK's, in the same commands.

It works beside a running server: it acquires no lock, and neither makes nor migrates anything.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import anyio
import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import (
    UNFENCED,
    Capability,
    SessionPersistDriver,
    decode_cursor,
    encode_cursor,
    event_position,
    make_page,
    normalize_limit,
    slice_page,
)
from sandbox_agent.persist.postgres.schema import DEFAULT_SCHEMA
from sandbox_agent.persist.sql.tables import check_server_version
from sandbox_agent.persist.sqlite.dialect import run
from sandbox_agent.persist.sqlite.schema import STORE_VERSION
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from sandbox_agent.persist.store import EnvelopeRow, SessionRow, SessionStore
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord
from sandbox_agent.wire.sessions import SearchHit

_PAGE: Final = 1_000


class _ReadOnlyError(PersistError, NotImplementedError):
    """Only the server writes its store."""


class StoreDriver(SessionPersistDriver):
    """A server's sessions: the envelopes are the events, numbered as the server numbered them.

    Args:
        store: where they are; only its reading methods are called.
        name: what the store is called in errors.
        open_it: called before the first read, where the store has to be opened.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.TAIL, Capability.LAST_INDEX, Capability.SEARCH}
    )

    def __init__(
        self,
        store: SessionStore,
        *,
        name: str,
        open_it: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._store = store
        self._name = name
        self._open_it = open_it
        self._opening = anyio.Lock()

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        row = await self._row(session_id)
        return None if row is None else _record(row)

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        # No store has an index by that: each page reads all its sessions, 6 ms for a thousand in SQLite.
        await self._ready()
        rows: list[SessionRow] = []
        following: str | None = None
        while True:
            page, following = await self._store.sessions(limit=_PAGE, cursor=following)
            rows += page
            if following is None:
                break
        rows.sort(key=_place)
        chosen = slice_page(rows, _place, limit, cursor)
        return ListPage([_record(row) for row in chosen.items], chosen.next_cursor)

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        row = await self._row(session_id)
        if row is None:
            return ListPage([], None)
        at = decode_cursor(cursor)
        after = 0
        if at is not None and at.offset:
            first = await self._store.envelopes(row.key, after=0, limit=1)
            after = (first[0].index - 1 if first else 0) + at.offset
        elif at is not None:
            after = at.position - (_event_id(session_id, at.position) > at.id)
        size = normalize_limit(limit)
        found = await self._store.envelopes(row.key, after=max(after, 0), limit=size + 1)
        return make_page(_events(session_id, found), size, event_position)

    def cursor_after(self, event_index: int, /) -> str | None:
        return encode_cursor(event_index + 1, "")

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        row = await self._row(session_id)
        if row is None or limit < 1:
            return []
        return _events(session_id, await self._store.newest_envelopes(row.key, limit=limit))

    async def last_event_index(self, session_id: str, /) -> int:
        row = await self._row(session_id)
        return 0 if row is None else row.last_envelope

    async def search_events(
        self, query: str, /, *, session_id: str | None = None, limit: int | None = None
    ) -> list[SearchHit]:
        await self._ready()
        hits: list[SearchHit] = []
        keys: dict[str, int] = {}
        for found in await self._store.search(query, limit=normalize_limit(limit), session_id=session_id):
            key = keys.get(found.session_id)
            if key is None:
                row = await self._store.session(found.session_id)
                if row is None:
                    continue
                key = keys[found.session_id] = row.key
            events = await self._store.events(key, after=found.sequence - 1, limit=1, max_bytes=0)
            if events and events[0].sequence == found.sequence:
                hits.append(
                    SearchHit(
                        session_id=found.session_id,
                        agent=found.agent,
                        sequence=events[0].envelope,
                        time=found.time,
                        snippet=found.snippet,
                        title=found.title,
                    )
                )
        return sorted(hits, key=lambda hit: -hit.time)

    async def update_session(self, session: SessionRecord, /) -> None:
        raise self._refusal(session.id)

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        raise self._refusal(session_id)

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        raise self._refusal(session_id)

    async def claim_session(self, session_id: str, /) -> int:
        raise self._refusal(session_id)

    async def delete_session(self, session_id: str, /) -> None:
        raise self._refusal(session_id)

    async def close(self) -> None:
        self._open_it = None
        await self._store.close()

    def _refusal(self, session_id: str) -> PersistError:
        return _ReadOnlyError(
            f"nothing was changed: {self._name} is a server's own, which alone writes it; change session "
            f"'{session_id}' by the server's API, or export it and import it into another store",
            session_id=session_id,
        )

    async def _ready(self) -> None:
        async with self._opening:
            if self._open_it is not None:
                await self._open_it()
                self._open_it = None

    async def _row(self, session_id: str) -> SessionRow | None:
        await self._ready()
        return await self._store.session(session_id)


def sqlite_store_driver(path: str | os.PathLike[str]) -> StoreDriver | None:
    """Return the sessions of the server that keeps them in that file.

    None where there is no such file, it is no server's store, or an SDK's driver has sessions in it, too.
    """
    if not _is_store(Path(path)):
        return None
    reader = SQLiteThread(path, read_only=True)
    store = SQLiteSessionStore(reader, reader)

    async def check() -> None:
        make = partial(check_server_version, STORE_VERSION)
        await reader.run(partial(run, make=make), transaction=False)

    return StoreDriver(store, name=f"the store '{reader.path}'", open_it=check)


def _is_store(path: Path) -> bool:
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
            names = {row[0] for row in connection.execute(tables)}
            if "store_sessions" not in names:
                return False
            return "sessions" not in names or not connection.execute("SELECT 1 FROM sessions").fetchone()
    except sqlite3.Error:  # opening it reports what is wrong with it
        return False


def postgres_store_driver(
    connection_string: str, *, namespace: str, schema: str = DEFAULT_SCHEMA
) -> StoreDriver:
    """Return the sessions of the server of that namespace in a PostgreSQL database."""
    from sandbox_agent.persist.postgres.store import PostgresSessionStore

    store = PostgresSessionStore(connection_string, namespace=namespace, schema=schema, read_only=True)
    name = f"the namespace '{namespace}' in PostgreSQL"
    return StoreDriver(store, name=name, open_it=store.open)


def redis_store_driver(url: str, *, namespace: str) -> StoreDriver:
    """Return the sessions of the server of that namespace in Redis or Valkey.

    Raises:
        ImportError: the extra ``redis`` is not installed.
    """
    from sandbox_agent.persist.redis.ledger import RedisSessionStore

    # Opening it would acquire the namespace.
    store = RedisSessionStore(url, namespace=namespace)
    return StoreDriver(store, name=f"the namespace '{namespace}' in Redis")


def _place(row: SessionRow) -> tuple[int, str]:
    return row.created_at, row.session_id


def _record(row: SessionRow) -> SessionRecord:
    init: dict[str, Any] | None = None
    if row.directory is not None:
        init = {"cwd": row.directory, "mcpServers": []}
    return SessionRecord(
        id=row.session_id,
        agent=row.agent,
        agent_session_id=row.native_session_id or "",
        last_connection_id=row.server_id or "",
        created_at=row.created_at,
        destroyed_at=row.updated_at if row.ended else None,
        session_init=init,
    )


def _event_id(session_id: str, index: int) -> str:
    return f"{session_id}:{index}"


def _events(session_id: str, rows: Sequence[EnvelopeRow]) -> list[SessionEvent]:
    return [
        SessionEvent(
            _event_id(session_id, row.index),
            row.index,
            session_id,
            row.time,
            row.connection_id,
            row.sender,
            _envelope(row.data),
        )
        for row in rows
    ]


def _envelope(data: bytes) -> bytes:
    """Return the line as JSON: an agent may have written something else."""
    try:
        loads(data)
    except InvalidEnvelopeError:
        text = data.decode("utf-8", "replace")
        wrapped = {"jsonrpc": "2.0", "method": "_adapter/invalid_stdout", "params": {"raw": text}}
        return msgspec.json.encode(wrapped)
    return data
