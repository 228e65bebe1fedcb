"""The works of the server's store: what a commit writes in one bundle, and how it is read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, Protocol, TypeVar

import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sql.tables import (
    PERMISSION_COLUMNS,
    PERMISSIONS,
    SNAPSHOTS,
    STORE_SESSION_COLUMNS,
    STORE_SESSIONS,
    TURN_COLUMNS,
    TURNS,
    names,
)
from sandbox_agent.persist.sql.work import Bundle, Column, Insert, Query, Row, Select, Table, Work
from sandbox_agent.persist.store.cursor import key_before
from sandbox_agent.persist.store.rows import (
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SnapshotRow,
    TurnRow,
)

__all__ = [
    "MAX_NUMBER",
    "Filters",
    "Ledger",
    "LedgerDialect",
    "add_raw",
    "bounded",
    "clean",
    "searchable",
]

R = TypeVar("R", bound=msgspec.Struct)

MAX_NUMBER: Final = 2**63 - 1
_MOST_ROWS: Final = 2**31 - 1
_UNPARSED: Final = "agent.unparsed"
# What is indexed of one item; the rest of a longer one is not found.
_MAX_TEXT_BYTES: Final = 256 * 1024
_WIDTH: Final = len(STORE_SESSION_COLUMNS)


class Filters(msgspec.Struct, frozen=True):
    """What hits are limited to; ``since <= time < until``."""

    agent: str | None = None
    session_id: str | None = None
    since: int | None = None
    until: int | None = None


class LedgerDialect(Protocol):
    """How an engine keeps the server's tables."""

    largest_key: int
    """The largest key of all sessions."""
    events: Table
    envelopes: Table

    def text(self, text: str) -> str:
        """Return the text as the engine can hold it."""
        ...

    def original(self, text: str) -> str:
        """Return the text that ``text`` was given."""
        ...

    def name(self, text: str) -> Any:
        """Return what a ``{name:…}`` column is compared with."""
        ...

    def place(self, key: int, number: int) -> tuple[Any, ...]:
        """Return the first columns of an event or envelope."""
        ...

    def extent(self, key: int, after: int) -> tuple[Any, Any]:
        """Return the values $1 and $2 of ``{in_events:…}`` and ``{in_envelopes:…}``."""
        ...

    def selected(self, alias: str, table_columns: Sequence[Column]) -> list[str]:
        """Return columns as they are selected."""
        ...

    def value(self, column: Column, value: Any) -> Any:
        """Return the value of a selected column."""
        ...

    def check_owner(self) -> Work[None]:
        """Check that this store may write, for the length of the transaction.

        Raises:
            PersistError: another server owns it.
        """
        ...

    def check_bundle(self) -> Work[None]:
        """Do the same before a bundle, which for some engines does it by itself."""
        ...

    def next_key(self) -> Work[int]:
        """Return a session key that was never used."""
        ...

    def insert_texts(self, texts: Sequence[Any]) -> list[Insert]:
        """Return the inserts of texts that the store prepared, where they are part of the bundle."""
        ...

    def index_texts(self, texts: Sequence[Any]) -> Work[None]:
        """Store texts after the bundle, where they are not part of it."""
        ...

    def read_events(
        self, key: int, after: int, limit: int, max_bytes: int, include_raw: bool
    ) -> Work[Sequence[Row]]:
        """Return sequence, time, type, envelope, data and perhaps the raw envelope of events on a page."""
        ...


class Ledger:
    """The works of one store.

    Args:
        dialect: the engine's.
    """

    def __init__(self, dialect: LedgerDialect) -> None:
        self._dialect = dialect

    # Writing.

    def commit(self, changes: Changes, texts: Sequence[Any]) -> Work[None]:
        """Store all rows; the same ones again change nothing.

        Args:
            changes: the rows.
            texts: its texts, as the store has prepared them.

        Raises:
            PersistError: an event or envelope contradicts a stored one, or another server owns the store.
        """
        dialect = self._dialect
        text = dialect.text
        events = [
            (row.key, row.sequence, row.time, text(row.type), row.envelope, row.data)
            for row in changes.events
        ]
        envelopes = [
            (row.key, row.index, row.time, row.sender, text(row.connection_id), row.data)
            for row in changes.envelopes
        ]
        inserts: list[Insert] = [
            self._insert(STORE_SESSIONS, _merged(changes.sessions)),
            self._insert_log(dialect.envelopes, envelopes),
            self._insert_log(dialect.events, events),
            *dialect.insert_texts(texts),
            self._insert(TURNS, _last(changes.turns, attrgetter("key", "turn_id"))),
            self._insert(PERMISSIONS, _last(changes.permissions, attrgetter("key", "permission_id"))),
            self._insert(
                SNAPSHOTS, _last(sorted(changes.snapshots, key=attrgetter("envelope")), attrgetter("key"))
            ),
        ]
        inserts = [insert for insert in inserts if insert.rows]
        yield from dialect.check_bundle()
        counts: list[int] | None = yield Bundle(inserts)
        if counts is None:
            yield from dialect.check_owner()
            counts = []
        stored = {insert.table.name: count for insert, count in zip(inserts, counts, strict=False)}
        if stored.get(dialect.events.name, 0) != len(events):
            yield from self._compare(self._stored_events, events, "event of sequence")
        if stored.get(dialect.envelopes.name, 0) != len(envelopes):
            yield from self._compare(self._stored_envelopes, envelopes, "envelope of index")
        yield from dialect.index_texts(texts)

    def next_key(self) -> Work[int]:
        """Return a session key that was never used."""
        yield from self._dialect.check_owner()
        return (yield from self._dialect.next_key())

    def _insert(self, table: Table, rows: Iterable[msgspec.Struct]) -> Insert:
        text = self._dialect.text
        members = names(table.columns)
        values = ([getattr(row, name) for name in members] for row in rows)
        return Insert(table, [[text(one) if isinstance(one, str) else one for one in row] for row in values])

    def _insert_log(self, table: Table, rows: Sequence[tuple[Any, ...]]) -> Insert:
        place = self._dialect.place
        return Insert(table, [(*place(row[0], row[1]), *row[2:]) for row in rows])

    def _compare(
        self,
        read: Callable[[int, int, int], Work[Sequence[Row]]],
        rows: Sequence[tuple[Any, ...]],
        what: str,
    ) -> Work[None]:
        """Check that the rows that are stored already are the same.

        Raises:
            PersistError: one is not.
        """
        by_key: dict[int, list[tuple[Any, ...]]] = {}
        for row in rows:
            by_key.setdefault(row[0], []).append(row)
        for key, mine in by_key.items():
            first = min(row[1] for row in mine)
            last = max(row[1] for row in mine)
            found = yield from read(key, first - 1, last - first + 1)
            stored = {row[0]: tuple(row) for row in found}
            for row in mine:
                if stored.get(row[1], row[1:]) != row[1:]:
                    raise PersistError(
                        f"nothing was stored: session number {key} has another {what} {row[1]}, "
                        "so two writers must be at work; stop one of them"
                    )

    def _stored_events(self, key: int, after: int, limit: int) -> Work[Sequence[Row]]:
        columns = ("{sequence:e}", "e.time", "e.type", "e.envelope")
        tail = "FROM {store_events} AS e WHERE {in_events:e} ORDER BY {sequence_order:e} LIMIT $3"
        return (yield Select(columns, tail, (*self._dialect.extent(key, after), limit), "e.data"))

    def _stored_envelopes(self, key: int, after: int, limit: int, order: str = "ASC") -> Work[Sequence[Row]]:
        columns = ("{index:v}", "v.time", "v.sender", "v.connection_id")
        tail = (
            "FROM {store_envelopes} AS v WHERE {in_envelopes:v} "
            f"ORDER BY {{index_order:v}} {order} LIMIT $3"
        )
        return (yield Select(columns, tail, (*self._dialect.extent(key, after), limit), "v.data"))

    # Reading.

    def session(self, session_id: str) -> Work[SessionRow | None]:
        """Return the session of that name."""
        condition = "s.{name:session_id} = $1"
        return (yield from self._one_session(condition, self._dialect.name(session_id)))

    def native_session(self, agent: str, native_session_id: str) -> Work[SessionRow | None]:
        """Return the newest session that the agent knows under that name."""
        condition = "s.{name:native_session_id} = $1 AND s.agent = $2"
        name = self._dialect.name(native_session_id)
        return (yield from self._one_session(condition, name, self._dialect.text(agent)))

    def session_of(self, key: int) -> Work[SessionRow | None]:
        """Return the session of that key."""
        return (yield from self._one_session("s.key = $1", bounded(key)))

    def _one_session(self, condition: str, *values: Any) -> Work[SessionRow | None]:
        tail = (
            f"FROM {{store_sessions}} AS s WHERE {{mine:s}} {condition} AND NOT s.deleted "
            "ORDER BY s.key DESC LIMIT 1"
        )
        rows = yield Select(self._selected("s", STORE_SESSION_COLUMNS), tail, values)
        return self._row(SessionRow, STORE_SESSION_COLUMNS, rows[0]) if rows else None

    def sessions(self, limit: int, cursor: str | None) -> Work[tuple[list[SessionRow], str | None]]:
        """Return a page of sessions, newest first, and the next cursor: the key of the page's last.

        Raises:
            InvalidRequestError: the cursor is not one of this store's.
        """
        before = key_before(cursor, self._dialect.largest_key)
        size = _rows(limit)
        tail = (
            "FROM {store_sessions} AS s WHERE {mine:s} s.key < $1 AND NOT s.deleted "
            "ORDER BY s.key DESC LIMIT $2"
        )
        rows = yield Select(self._selected("s", STORE_SESSION_COLUMNS), tail, (before, size + 1))
        page = [self._row(SessionRow, STORE_SESSION_COLUMNS, row) for row in rows[:size]]
        return page, str(page[-1].key) if page and len(rows) > size else None

    def events(
        self, key: int, after: int, limit: int, max_bytes: int, include_raw: bool
    ) -> Work[list[EventRow]]:
        """Return events after a sequence, at least one if there are any."""
        key = bounded(key)
        rows = yield from self._dialect.read_events(
            key, bounded(max(after, 0)), _rows(limit), bounded(max_bytes), include_raw
        )
        found: list[EventRow] = []
        for sequence, time, kind, envelope, data, *raw in rows:
            event = EventRow(key, sequence, time, self._dialect.original(kind), envelope, data)
            if raw and raw[0] is not None:
                add_raw(event, raw[0])
            found.append(event)
        return found

    def envelopes(self, key: int, after: int, limit: int, *, newest: bool = False) -> Work[list[EnvelopeRow]]:
        """Return envelopes after an index, or the newest of them, oldest first."""
        key = bounded(key)
        order = "DESC" if newest else "ASC"
        rows = yield from self._stored_envelopes(key, bounded(max(after, 0)), _rows(limit), order)
        original = self._dialect.original
        found = [
            EnvelopeRow(key, index, time, "client" if sender == "client" else "agent", original(epoch), data)
            for index, time, sender, epoch, data in rows
        ]
        return found[::-1] if newest else found

    def snapshot(self, key: int) -> Work[SnapshotRow | None]:
        """Return the session's newest snapshot."""
        query = "SELECT key, envelope, sequence, data FROM {store_snapshots} WHERE {mine:} key = $1"
        rows = yield Query(query, (bounded(key),))
        return SnapshotRow(*rows[0]) if rows else None

    def turns(self, key: int, limit: int) -> Work[list[TurnRow]]:
        """Return the newest turns, oldest of them first."""
        tail = (
            "FROM {store_turns} AS t WHERE {mine:t} t.key = $1 "
            "ORDER BY t.number DESC, t.turn_id{collate} DESC LIMIT $2"
        )
        rows = yield Select(self._selected("t", TURN_COLUMNS), tail, (bounded(key), _rows(limit)))
        return [self._row(TurnRow, TURN_COLUMNS, row) for row in rows][::-1]

    def turn(self, key: int, turn_id: str, idempotency_key: str) -> Work[TurnRow | None]:
        """Return the turn of that id, or of that key."""
        column, value = ("turn_id", turn_id) if turn_id else ("idempotency_key", idempotency_key)
        tail = f"FROM {{store_turns}} AS t WHERE {{mine:t}} t.key = $1 AND t.{{name:{column}}} = $2 LIMIT 1"
        values = (bounded(key), self._dialect.name(value))
        rows = yield Select(self._selected("t", TURN_COLUMNS), tail, values)
        return self._row(TurnRow, TURN_COLUMNS, rows[0]) if rows else None

    def open_turns(self) -> Work[list[tuple[SessionRow, TurnRow]]]:
        """Return all turns that are accepted or running, by session and number."""
        columns = [*self._selected("s", STORE_SESSION_COLUMNS), *self._selected("t", TURN_COLUMNS)]
        tail = (
            "FROM {store_turns} AS t JOIN {store_sessions} AS s ON {mine:s} s.key = t.key "
            "WHERE {mine:t} t.state IN ('accepted', 'running') AND NOT s.deleted ORDER BY t.key, t.number"
        )
        rows = yield Select(columns, tail)
        return [self._pair(TurnRow, TURN_COLUMNS, row) for row in rows]

    def permission(self, key: int, permission_id: str) -> Work[PermissionRow | None]:
        """Return a permission or question."""
        tail = (
            "FROM {store_permissions} AS p WHERE {mine:p} p.key = $1 AND p.{name:permission_id} = $2 LIMIT 1"
        )
        values = (bounded(key), self._dialect.name(permission_id))
        rows = yield Select(self._selected("p", PERMISSION_COLUMNS), tail, values)
        return self._row(PermissionRow, PERMISSION_COLUMNS, rows[0]) if rows else None

    def pending_permissions(self, limit: int) -> Work[list[tuple[SessionRow, PermissionRow]]]:
        """Return the permissions that wait for an answer, oldest first."""
        columns = [*self._selected("s", STORE_SESSION_COLUMNS), *self._selected("p", PERMISSION_COLUMNS)]
        tail = (
            "FROM {store_permissions} AS p JOIN {store_sessions} AS s ON {mine:s} s.key = p.key "
            "WHERE {mine:p} p.answered IS NULL AND NOT s.deleted "
            "ORDER BY p.requested_at, p.key, p.sequence, p.permission_id{collate} LIMIT $1"
        )
        rows = yield Select(columns, tail, (_rows(limit),))
        return [self._pair(PermissionRow, PERMISSION_COLUMNS, row) for row in rows]

    def _selected(self, alias: str, table_columns: Sequence[Column]) -> list[str]:
        return self._dialect.selected(alias, table_columns)

    def _pair(self, kind: type[R], table_columns: Sequence[Column], row: Row) -> tuple[SessionRow, R]:
        values = tuple(row)
        session = self._row(SessionRow, STORE_SESSION_COLUMNS, values[:_WIDTH])
        return session, self._row(kind, table_columns, values[_WIDTH:])

    def _row(self, kind: type[R], table_columns: Sequence[Column], values: Row) -> R:
        value = self._dialect.value
        return kind(
            **{column.name: value(column, one) for column, one in zip(table_columns, values, strict=True)}
        )


def bounded(number: int) -> int:
    """Return the number that a column can hold which is nearest."""
    return min(max(number, -MAX_NUMBER), MAX_NUMBER)


def _rows(limit: int) -> int:
    return min(max(limit, 0), _MOST_ROWS)


def _merged(rows: Sequence[SessionRow]) -> Iterable[SessionRow]:
    """Return the last row of each session, with the highest of what only grows."""
    found: dict[int, SessionRow] = {}
    for row in rows:
        before = found.get(row.key)
        if before is not None:
            grown = {name: max(getattr(before, name), getattr(row, name)) for name in STORE_SESSIONS.growing}
            row = msgspec.structs.replace(row, **grown)
        found[row.key] = row
    return found.values()


def _last(rows: Iterable[R], identity: Callable[[R], object]) -> Iterable[R]:
    return {identity(row): row for row in rows}.values()


def clean(text: str) -> str:
    """Return the text without lone surrogates, each of which becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def searchable(text: str) -> str:
    """Return what is indexed of an item's text."""
    # A character is at least one byte.
    data = text[:_MAX_TEXT_BYTES].replace("\0", " ").encode("utf-8", "replace")
    return data[:_MAX_TEXT_BYTES].decode("utf-8", "ignore")


def add_raw(event: EventRow, raw: bytes) -> None:
    """Give an event its member ``raw``: the envelope that it was made from."""
    if event.type != _UNPARSED:
        event.data = event.data[:-1] + b',"raw":' + _as_json(raw) + b"}"


def _as_json(raw: bytes) -> bytes:
    try:
        raw.decode()
        msgspec.json.decode(raw)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return msgspec.json.encode(raw.decode("utf-8", "replace"))
    # Between JSON's values a line's end is a blank; in an event stream it is more.
    return raw.replace(b"\r", b" ").replace(b"\n", b" ")
