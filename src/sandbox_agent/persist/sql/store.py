"""The one session store over SQL; an engine gives it a database and the dialect of its tables."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import accumulate
from typing import Any, Final, Generic, TypeVar

import msgspec

from sandbox_agent.persist.sql.erase import Aged, Eraser
from sandbox_agent.persist.sql.ledger import Filters, Ledger, LedgerDialect, bounded
from sandbox_agent.persist.sql.tables import PERMISSION_COLUMNS, STORE_SESSION_COLUMNS, TURN_COLUMNS, names
from sandbox_agent.persist.sql.work import Column, Database, Query, Row, Select, Work, reading
from sandbox_agent.persist.store import (
    NO_SESSION,
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SearchRow,
    SessionRow,
    SnapshotRow,
    TextRow,
    TurnRow,
    key_before,
)
from sandbox_agent.persist.store.values import add_raw

R = TypeVar("R", bound=msgspec.Struct)

_MOST_ROWS: Final = 2**31 - 1
_SESSION_WHERE: Final = "FROM {store_sessions} AS s WHERE {mine:s} NOT s.deleted AND "
_NEWEST_SESSION: Final = " ORDER BY s.key DESC LIMIT 1"
_BY_KEY: Final = _SESSION_WHERE + "s.key = $1" + _NEWEST_SESSION
_BY_NAME: Final = _SESSION_WHERE + "s.{name:session_id} = $1" + _NEWEST_SESSION
_BY_NATIVE_NAME: Final = _SESSION_WHERE + "s.{name:native_session_id} = $1 AND s.agent = $2" + _NEWEST_SESSION


class SqlSessionStore(ABC):
    """Implements SessionStore but for its opening and closing.

    Args:
        database: runs works.
        dialect: of its tables.
    """

    def __init__(self, database: Database, dialect: LedgerDialect) -> None:
        self._database = database
        self._dialect = dialect
        self._ledger = Ledger(dialect)
        self._eraser = Eraser(dialect)
        self._session_rows = _Rows(dialect, "s", SessionRow, STORE_SESSION_COLUMNS)
        self._turn_rows = _Rows(dialect, "t", TurnRow, TURN_COLUMNS)
        self._permission_rows = _Rows(dialect, "p", PermissionRow, PERMISSION_COLUMNS)

    async def check(self) -> None:  # noqa: B027 - optional hook
        """Do nothing: the connection is watched."""

    async def commit(self, changes: Changes) -> None:
        texts = await self._prepare_texts(changes.texts)
        await self._database.write(partial(self._ledger.commit, changes, texts))

    async def next_key(self) -> int:
        return await self._database.write(self._ledger.next_key)

    @reading
    def session(self, session_id: str) -> Work[SessionRow | None]:
        return (yield from self._one_session(_BY_NAME, self._dialect.name(session_id)))

    @reading
    def native_session(self, agent: str, native_session_id: str) -> Work[SessionRow | None]:
        name = self._dialect.name(native_session_id)
        return (yield from self._one_session(_BY_NATIVE_NAME, name, self._dialect.text(agent)))

    @reading
    def _session_of(self, key: int) -> Work[SessionRow | None]:
        return (yield from self._one_session(_BY_KEY, bounded(key)))

    def _one_session(self, tail: str, *values: Any) -> Work[SessionRow | None]:
        rows = yield Select(self._session_rows.columns, tail, values)
        return self._session_rows.make(rows[0]) if rows else None

    @reading
    def sessions(self, *, limit: int, cursor: str | None = None) -> Work[tuple[list[SessionRow], str | None]]:
        before = key_before(cursor, self._dialect.largest_key)
        size = _row_limit(limit)
        tail = (
            "FROM {store_sessions} AS s WHERE {mine:s} s.key < $1 AND NOT s.deleted "
            "ORDER BY s.key DESC LIMIT $2"
        )
        rows = yield Select(self._session_rows.columns, tail, (before, size + 1))
        page = [self._session_rows.make(row) for row in rows[:size]]
        return page, str(page[-1].key) if page and len(rows) > size else None

    @reading
    def events(
        self, key: int, *, after: int, limit: int, max_bytes: int, include_raw: bool = False
    ) -> Work[list[EventRow]]:
        key = bounded(key)
        rows = yield from self._dialect.read_events(
            key, bounded(max(after, 0)), _row_limit(limit), bounded(max_bytes), include_raw
        )
        if include_raw:
            rows = yield from self._ledger.with_data(key, rows, 3)
            rows = _fitting(rows, max_bytes)
        original = self._dialect.original
        found = [EventRow(key, row[0], row[1], original(row[2]), row[3], row[4]) for row in rows]
        if include_raw:
            for event, row in zip(found, rows, strict=True):
                if row[5] is not None:
                    add_raw(event, row[5])
        return found

    @reading
    def envelopes(self, key: int, *, after: int, limit: int) -> Work[list[EnvelopeRow]]:
        return (yield from self._envelopes(key, after, limit, "ASC"))

    @reading
    def newest_envelopes(self, key: int, *, limit: int) -> Work[list[EnvelopeRow]]:
        return (yield from self._envelopes(key, 0, limit, "DESC"))[::-1]

    def _envelopes(self, key: int, after: int, limit: int, order: str) -> Work[list[EnvelopeRow]]:
        key = bounded(key)
        rows = yield from self._ledger.envelopes(key, bounded(max(after, 0)), _row_limit(limit), order)
        original = self._dialect.original
        return [
            EnvelopeRow(key, index, time, "client" if sender == "client" else "agent", original(epoch), data)
            for index, time, sender, epoch, data in rows
        ]

    @reading
    def snapshot(self, key: int) -> Work[SnapshotRow | None]:
        query = "SELECT key, envelope, sequence, data FROM {store_snapshots} WHERE {mine:} key = $1"
        rows = yield Query(query, (bounded(key),))
        return SnapshotRow(*rows[0]) if rows else None

    @reading
    def turns(self, key: int, *, limit: int) -> Work[list[TurnRow]]:
        tail = (
            "FROM {store_turns} AS t WHERE {mine:t} t.key = $1 "
            "ORDER BY t.number DESC, t.turn_id{collate} DESC LIMIT $2"
        )
        rows = yield Select(self._turn_rows.columns, tail, (bounded(key), _row_limit(limit)))
        return [self._turn_rows.make(row) for row in rows][::-1]

    @reading
    def turn(self, key: int, *, turn_id: str = "", idempotency_key: str = "") -> Work[TurnRow | None]:
        column, value = ("turn_id", turn_id) if turn_id else ("idempotency_key", idempotency_key)
        tail = f"FROM {{store_turns}} AS t WHERE {{mine:t}} t.key = $1 AND t.{{name:{column}}} = $2 LIMIT 1"
        values = (bounded(key), self._dialect.name(value))
        rows = yield Select(self._turn_rows.columns, tail, values)
        return self._turn_rows.make(rows[0]) if rows else None

    @reading
    def open_turns(self) -> Work[list[tuple[SessionRow, TurnRow]]]:
        columns = [*self._session_rows.columns, *self._turn_rows.columns]
        tail = (
            "FROM {store_turns} AS t JOIN {store_sessions} AS s ON {mine:s} s.key = t.key "
            "WHERE {mine:t} t.state IN ('accepted', 'running') AND NOT s.deleted ORDER BY t.key, t.number"
        )
        rows = yield Select(columns, tail)
        return [_pair(row, self._session_rows, self._turn_rows) for row in rows]

    @reading
    def permission(self, key: int, permission_id: str) -> Work[PermissionRow | None]:
        tail = (
            "FROM {store_permissions} AS p WHERE {mine:p} p.key = $1 AND p.{name:permission_id} = $2 LIMIT 1"
        )
        values = (bounded(key), self._dialect.name(permission_id))
        rows = yield Select(self._permission_rows.columns, tail, values)
        return self._permission_rows.make(rows[0]) if rows else None

    @reading
    def pending_permissions(self, *, limit: int) -> Work[list[tuple[SessionRow, PermissionRow]]]:
        columns = [*self._session_rows.columns, *self._permission_rows.columns]
        tail = (
            "FROM {store_permissions} AS p JOIN {store_sessions} AS s ON {mine:s} s.key = p.key "
            "WHERE {mine:p} p.answered IS NULL AND NOT s.deleted "
            "ORDER BY p.requested_at, p.key, p.sequence, p.permission_id{collate} LIMIT $1"
        )
        rows = yield Select(columns, tail, (_row_limit(limit),))
        return [_pair(row, self._session_rows, self._permission_rows) for row in rows]

    async def search(
        self,
        query: str,
        *,
        limit: int,
        offset: int = 0,
        agent: str | None = None,
        session_id: str | None = None,
        since: int | None = None,
        until: int | None = None,
    ) -> list[SearchRow]:
        return await self._search(query, limit, offset, Filters(agent, session_id, since, until))

    async def delete(self, key: int) -> None:
        if await self._database.write(partial(self._eraser.hide, key)):
            await self._erase(key)
            if await self._clean():
                await self._database.write(partial(self._eraser.forget, key))

    async def finish_deletes(self) -> None:
        keys = await self._database.read(self._eraser.hidden)
        # Older releases stored envelopes that belong to no session.
        for key in (NO_SESSION, *keys):
            await self._erase(key)
        if await self._clean():
            for key in keys:
                await self._database.write(partial(self._eraser.forget, key))

    async def hide(self, key: int) -> None:
        await self._database.write(partial(self._eraser.hide, key))

    @abstractmethod
    async def used_bytes(self) -> int: ...

    async def expire(
        self,
        *,
        before: int | None = None,
        max_bytes: int | None = None,
        retire: Callable[[SessionRow], Awaitable[bool]] | None = None,
    ) -> Sequence[SessionRow]:
        lost: dict[int, None] = {}
        if before is not None:
            for aged in await self._aged():
                if aged.oldest < before and await self._erase(aged.key, before):
                    lost[aged.key] = None
        if max_bytes is not None:
            lost |= await self._shrink(max_bytes)
        if lost:
            await self._clean()
        return await self._after_expiry(list(lost), retire)

    async def _aged(self) -> list[Aged]:
        found: list[Aged] = []
        after: int | None = 0
        while after is not None:
            page, after = await self._database.read(partial(self._eraser.aged, after))
            found += page
        return sorted(found)

    async def _shrink(self, max_bytes: int) -> dict[int, None]:
        lost: dict[int, None] = {}
        sessions = await self._aged()
        heapify(sessions)
        while sessions:
            excess = await self.used_bytes() - max_bytes
            if excess <= 0:
                # Until the index is complete, how large it will be is an estimate.
                if await self._complete_index():
                    continue
                break
            key = heappop(sessions).key
            if await self._database.write(partial(self._eraser.erase, key, max_bytes=excess)):
                lost[key] = None
            for again in await self._database.read(partial(self._eraser.aged_one, key)):
                heappush(sessions, again)
        return lost

    async def _after_expiry(
        self, keys: Sequence[int], retire: Callable[[SessionRow], Awaitable[bool]] | None
    ) -> list[SessionRow]:
        rows: list[SessionRow] = []
        for key in keys:
            row = await self._session_of(key)
            if row is None:
                continue
            rows.append(row)
            emptied = row.first_sequence > row.last_sequence and (row.ended or not row.managed)
            if emptied and (retire is None or await retire(row)):
                await self.delete(key)
        return rows

    async def _erase(self, key: int, before: int | None = None) -> bool:
        """Erase slice by slice; True if there was anything."""
        erased = False
        erase = partial(self._eraser.erase, key, before=before, whole=before is None)
        while await self._database.write(erase):
            erased = True
        return erased

    async def _prepare_texts(self, texts: Sequence[TextRow]) -> Sequence[Any]:
        """Return texts as the dialect gets them."""
        return texts

    @abstractmethod
    async def _search(self, query: str, limit: int, offset: int, filters: Filters) -> list[SearchRow]: ...

    async def _complete_index(self) -> bool:
        """Complete the search's index; True if it was not complete."""
        return False

    async def _clean(self) -> bool:
        """Remove the traces of what was erased; False if that has to be tried again."""
        return True


class _Rows(Generic[R]):
    """How rows of a kind are selected and made."""

    def __init__(
        self, dialect: LedgerDialect, alias: str, kind: type[R], table_columns: Sequence[Column]
    ) -> None:
        self.columns: tuple[str, ...] = tuple(dialect.selected(alias, table_columns))
        self._kind = kind
        self._names = names(table_columns)
        converters = [(at, dialect.converter(column)) for at, column in enumerate(table_columns)]
        self._converters = [(at, convert) for at, convert in converters if convert is not None]

    def make(self, row: Row) -> R:
        """Return the row of selected values."""
        values = list(row)
        for at, convert in self._converters:
            if values[at] is not None:
                values[at] = convert(values[at])
        return self._kind(**dict(zip(self._names, values, strict=True)))


def _fitting(rows: Sequence[Row], max_bytes: int) -> Sequence[Row]:
    """Return the first rows whose data and raw envelopes have that size, at least one."""
    sizes = accumulate(len(row[4]) + len(row[5] or b"") for row in rows)
    return rows[: max(1, sum(size <= max_bytes for size in sizes))]


def _pair(row: Row, sessions: _Rows[SessionRow], others: _Rows[R]) -> tuple[SessionRow, R]:
    values = tuple(row)
    width = len(sessions.columns)
    return sessions.make(values[:width]), others.make(values[width:])


def _row_limit(limit: int) -> int:
    return min(max(limit, 0), _MOST_ROWS)
