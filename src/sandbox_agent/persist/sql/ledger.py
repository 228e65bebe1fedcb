"""The works of the server's store: what a commit writes in one bundle, and how it is read again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, Generic, Protocol, TypeVar

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
from sandbox_agent.persist.store import (
    NO_SESSION,
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SnapshotRow,
    TurnRow,
    key_before,
)

R = TypeVar("R", bound=msgspec.Struct)

MAX_NUMBER: Final = 2**63 - 1
_MOST_ROWS: Final = 2**31 - 1
_UNPARSED: Final = "agent.unparsed"
_SESSION_WHERE: Final = "FROM {store_sessions} AS s WHERE {mine:s} NOT s.deleted AND "
_NEWEST_SESSION: Final = " ORDER BY s.key DESC LIMIT 1"
_BY_KEY: Final = _SESSION_WHERE + "s.key = $1" + _NEWEST_SESSION
_BY_NAME: Final = _SESSION_WHERE + "s.{name:session_id} = $1" + _NEWEST_SESSION
_BY_NATIVE_NAME: Final = _SESSION_WHERE + "s.{name:native_session_id} = $1 AND s.agent = $2" + _NEWEST_SESSION
# What is indexed of one item; the rest of a longer one is not found.
_MAX_TEXT_BYTES: Final = 256 * 1024


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

    def text(self, text: str, /) -> str:
        """Return the text as the engine can hold it."""
        ...

    def original(self, text: str, /) -> str:
        """Return the text that ``text`` was given."""
        ...

    def name(self, text: str, /) -> Any:
        """Return what a ``{name:…}`` column is compared with."""
        ...

    def event_values(self, row: EventRow) -> tuple[Any, ...]:
        """Return an event as a row of its table; the last four are time, type, envelope and data."""
        ...

    def envelope_values(self, row: EnvelopeRow) -> tuple[Any, ...]:
        """Return an envelope as a row; the last four are time, sender, connection_id and data."""
        ...

    def extent(self, key: int, after: int) -> tuple[Any, Any]:
        """Return the values $1 and $2 of ``{in_events:…}`` and ``{in_envelopes:…}``."""
        ...

    def selected(self, alias: str, table_columns: Sequence[Column]) -> list[str]:
        """Return columns as they are selected."""
        ...

    def converter(self, column: Column) -> Callable[[Any], Any] | None:
        """Return what makes the value of a selected column that is not NULL, or None for what it is."""
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
        self._session = _Rows(dialect, "s", SessionRow, STORE_SESSION_COLUMNS)
        self._turn = _Rows(dialect, "t", TurnRow, TURN_COLUMNS)
        self._permission = _Rows(dialect, "p", PermissionRow, PERMISSION_COLUMNS)

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
        events = list(map(dialect.event_values, changes.events))
        # Older releases stored envelopes that belong to no session.
        rows = [row for row in changes.envelopes if row.key != NO_SESSION]
        envelopes = list(map(dialect.envelope_values, rows))
        snapshots = sorted(changes.snapshots, key=attrgetter("envelope"))
        inserts: list[Insert] = [
            self._insert(STORE_SESSIONS, _merged(changes.sessions)),
            Insert(dialect.envelopes, envelopes),
            Insert(dialect.events, events),
            *dialect.insert_texts(texts),
            self._insert(TURNS, _last(changes.turns, attrgetter("key", "turn_id"))),
            self._insert(PERMISSIONS, _last(changes.permissions, attrgetter("key", "permission_id"))),
            self._insert(SNAPSHOTS, _last(snapshots, attrgetter("key"))),
        ]
        inserts = [insert for insert in inserts if insert.rows]
        yield from dialect.check_bundle()
        counts: list[int] | None = yield Bundle(inserts)
        if counts is None:
            yield from dialect.check_owner()
            counts = []
        stored = {insert.table: count for insert, count in zip(inserts, counts, strict=False)}
        if stored.get(dialect.events, 0) != len(events):
            numbers = [(row.key, row.sequence) for row in changes.events]
            yield from self._compare(self._stored_events, numbers, events, "event of sequence")
        if stored.get(dialect.envelopes, 0) != len(envelopes):
            numbers = [(row.key, row.index) for row in rows]
            yield from self._compare(self._stored_envelopes, numbers, envelopes, "envelope of index")
        yield from dialect.index_texts(texts)

    def next_key(self) -> Work[int]:
        """Return a session key that was never used."""
        yield from self._dialect.check_owner()
        return (yield from self._dialect.next_key())

    def _insert(self, table: Table, rows: Iterable[msgspec.Struct]) -> Insert:
        text = self._dialect.text
        members = attrgetter(*names(table.columns))
        values = map(members, rows)
        return Insert(table, [[text(one) if isinstance(one, str) else one for one in row] for row in values])

    def _compare(
        self,
        read: Callable[[int, int, int], Work[Sequence[Row]]],
        numbers: Sequence[tuple[int, int]],
        rows: Sequence[tuple[Any, ...]],
        what: str,
    ) -> Work[None]:
        """Check that the rows that are stored already are the same.

        Raises:
            PersistError: one is not.
        """
        by_key: dict[int, dict[int, tuple[Any, ...]]] = {}
        for (key, number), row in zip(numbers, rows, strict=True):
            by_key.setdefault(key, {})[number] = row[-4:]
        for key, mine in by_key.items():
            first, last = min(mine), max(mine)
            found = yield from read(key, first - 1, last - first + 1)
            stored = {row[0]: tuple(row)[1:] for row in found}
            for number, row in mine.items():
                if stored.get(number) != row:
                    raise PersistError(
                        f"nothing was stored: session number {key} has another {what} {number}, "
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
        return (yield from self._one_session(_BY_NAME, self._dialect.name(session_id)))

    def native_session(self, agent: str, native_session_id: str) -> Work[SessionRow | None]:
        """Return the newest session that the agent knows under that name."""
        name = self._dialect.name(native_session_id)
        return (yield from self._one_session(_BY_NATIVE_NAME, name, self._dialect.text(agent)))

    def session_of(self, key: int) -> Work[SessionRow | None]:
        """Return the session of that key."""
        return (yield from self._one_session(_BY_KEY, bounded(key)))

    def _one_session(self, tail: str, *values: Any) -> Work[SessionRow | None]:
        rows = yield Select(self._session.columns, tail, values)
        return self._session.make(rows[0]) if rows else None

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
        rows = yield Select(self._session.columns, tail, (before, size + 1))
        page = [self._session.make(row) for row in rows[:size]]
        return page, str(page[-1].key) if page and len(rows) > size else None

    def events(
        self, key: int, after: int, limit: int, max_bytes: int, include_raw: bool
    ) -> Work[list[EventRow]]:
        """Return events after a sequence, at least one if there are any."""
        key = bounded(key)
        rows = yield from self._dialect.read_events(
            key, bounded(max(after, 0)), _rows(limit), bounded(max_bytes), include_raw
        )
        original = self._dialect.original
        found = [EventRow(key, row[0], row[1], original(row[2]), row[3], row[4]) for row in rows]
        if include_raw:
            for event, row in zip(found, rows, strict=True):
                if row[5] is not None:
                    add_raw(event, row[5])
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
        rows = yield Select(self._turn.columns, tail, (bounded(key), _rows(limit)))
        return [self._turn.make(row) for row in rows][::-1]

    def turn(self, key: int, turn_id: str, idempotency_key: str) -> Work[TurnRow | None]:
        """Return the turn of that id, or of that key."""
        column, value = ("turn_id", turn_id) if turn_id else ("idempotency_key", idempotency_key)
        tail = f"FROM {{store_turns}} AS t WHERE {{mine:t}} t.key = $1 AND t.{{name:{column}}} = $2 LIMIT 1"
        values = (bounded(key), self._dialect.name(value))
        rows = yield Select(self._turn.columns, tail, values)
        return self._turn.make(rows[0]) if rows else None

    def open_turns(self) -> Work[list[tuple[SessionRow, TurnRow]]]:
        """Return all turns that are accepted or running, by session and number."""
        columns = [*self._session.columns, *self._turn.columns]
        tail = (
            "FROM {store_turns} AS t JOIN {store_sessions} AS s ON {mine:s} s.key = t.key "
            "WHERE {mine:t} t.state IN ('accepted', 'running') AND NOT s.deleted ORDER BY t.key, t.number"
        )
        rows = yield Select(columns, tail)
        return [_pair(row, self._session, self._turn) for row in rows]

    def permission(self, key: int, permission_id: str) -> Work[PermissionRow | None]:
        """Return a permission or question."""
        tail = (
            "FROM {store_permissions} AS p WHERE {mine:p} p.key = $1 AND p.{name:permission_id} = $2 LIMIT 1"
        )
        values = (bounded(key), self._dialect.name(permission_id))
        rows = yield Select(self._permission.columns, tail, values)
        return self._permission.make(rows[0]) if rows else None

    def pending_permissions(self, limit: int) -> Work[list[tuple[SessionRow, PermissionRow]]]:
        """Return the permissions that wait for an answer, oldest first."""
        columns = [*self._session.columns, *self._permission.columns]
        tail = (
            "FROM {store_permissions} AS p JOIN {store_sessions} AS s ON {mine:s} s.key = p.key "
            "WHERE {mine:p} p.answered IS NULL AND NOT s.deleted "
            "ORDER BY p.requested_at, p.key, p.sequence, p.permission_id{collate} LIMIT $1"
        )
        rows = yield Select(columns, tail, (_rows(limit),))
        return [_pair(row, self._session, self._permission) for row in rows]


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


def _pair(row: Row, sessions: _Rows[SessionRow], others: _Rows[R]) -> tuple[SessionRow, R]:
    values = tuple(row)
    width = len(sessions.columns)
    return sessions.make(values[:width]), others.make(values[width:])


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
