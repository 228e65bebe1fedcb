"""What a commit to the server's store writes, in one bundle, and how an engine keeps it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final, Protocol, TypeVar

import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sql.tables import (
    PERMISSIONS,
    SNAPSHOTS,
    STORE_SESSIONS,
    TURNS,
    names,
)
from sandbox_agent.persist.sql.work import Bundle, Column, Insert, Row, Select, Table, Work
from sandbox_agent.persist.store import (
    LARGE_BYTES,
    NO_SESSION,
    Changes,
    EnvelopeRow,
    SessionRow,
)

R = TypeVar("R", bound=msgspec.Struct)

MAX_NUMBER: Final = 2**63 - 1


# Stands for data that another envelope of the session has in full, whose index follows. Before data that
# begins with it, there is another one.
SAME: Final = b"="
# While it is read, data may move to a later envelope, because the earlier one is erased.
_MOVES: Final = 10

_ENVELOPE: Final = """
FROM {store_envelopes} AS v WHERE {in_envelopes:v} ORDER BY {index_order:v} LIMIT 1
"""


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
    text: Callable[[str], str]
    """Returns a text as the engine can hold it."""
    original: Callable[[str], str]
    """Returns the text that ``text`` was given."""
    name: Callable[[str], Any]
    """Returns what a ``{name:…}`` column is compared with."""

    def place(self, key: int, number: int) -> tuple[Any, ...]:
        """Return what identifies an event or envelope in its table: the values before its time."""
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
        return self.check_owner()

    def next_key(self) -> Work[int]:
        """Return a session key that was never used."""
        ...

    def insert_texts(self, texts: Sequence[Any]) -> list[Insert]:
        """Return the inserts of texts that the store prepared, where they are part of the bundle."""
        return []

    def index_texts(self, texts: Sequence[Any]) -> Work[None]:
        """Store texts after the bundle, where they are not part of it."""
        yield from ()

    def read_events(
        self, key: int, after: int, limit: int, max_bytes: int, include_raw: bool
    ) -> Work[Sequence[Row]]:
        """Return sequence, time, type, envelope, data and perhaps the raw envelope of events on a page."""
        ...

    def erase_rows(self, table: Table, key: int, last: int) -> Work[None]:
        """Erase the events, or envelopes, up to that number."""
        ...

    def count_bytes(self, size: int) -> Work[None]:
        """Count bytes that a changed row takes more, where the store keeps a count."""
        yield from ()

    def erase_texts(self, key: int, last: int) -> Work[bool]:
        """Erase the texts up to that sequence, also from the index; False if there were none."""
        ...

    def erased(self) -> Work[None]:
        """Note, in the same transaction, that something was erased."""
        yield from ()


class Ledger:
    """The works of one store.

    Args:
        dialect: the engine's.
    """

    def __init__(self, dialect: LedgerDialect) -> None:
        self._dialect = dialect

    def commit(self, changes: Changes, texts: Sequence[Any]) -> Work[None]:
        """Store all rows; the same ones again change nothing.

        Args:
            changes: the rows.
            texts: its texts, as the store has prepared them.

        Raises:
            PersistError: an event or envelope contradicts a stored one, or another server owns the store.
        """
        dialect, place, text = self._dialect, self._dialect.place, self._dialect.text
        events = [
            (*place(row.key, row.sequence), row.time, text(row.type), row.envelope, row.data)
            for row in changes.events
        ]
        # Older releases stored envelopes that belong to no session.
        rows = [row for row in changes.envelopes if row.key != NO_SESSION]
        yield from dialect.check_bundle()
        repeated = [row for row in rows if row.same_as and len(row.data) >= LARGE_BYTES]
        if repeated:
            yield from dialect.check_owner()  # its lock keeps an expiry from erasing what is found
        same = yield from self._find_same(repeated)
        heads = [(*place(row.key, row.index), row.time, row.sender, text(row.connection_id)) for row in rows]
        envelopes = [
            (*head, same.get((row.key, row.index)) or _escaped(row.data))
            for head, row in zip(heads, rows, strict=True)
        ]
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
        counts: list[int] | None = yield Bundle(inserts)
        if counts is None:
            yield from dialect.check_owner()
            counts = []
        stored = {insert.table: count for insert, count in zip(inserts, counts, strict=False)}
        if stored.get(dialect.events, 0) != len(events):
            numbers = [(row.key, row.sequence) for row in changes.events]
            yield from self._compare(self.events, numbers, events, "event of sequence")
        if stored.get(dialect.envelopes, 0) != len(envelopes):
            numbers = [(row.key, row.index) for row in rows]
            whole = [(*head, row.data) for head, row in zip(heads, rows, strict=True)]
            yield from self._compare(self.envelopes, numbers, whole, "envelope of index")
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

    def events(self, key: int, after: int, limit: int) -> Work[Sequence[Row]]:
        """Return sequence, time, type, envelope and data of events after a sequence."""
        columns = ("{sequence:e}", "e.time", "e.type", "e.envelope")
        tail = "FROM {store_events} AS e WHERE {in_events:e} ORDER BY {sequence_order:e} LIMIT $3"
        return (yield Select(columns, tail, (*self._dialect.extent(key, after), limit), "e.data"))

    def envelopes(self, key: int, after: int, limit: int, order: str = "ASC") -> Work[Sequence[Row]]:
        """Return index, time, sender, connection_id and data of envelopes after an index."""
        columns = ("{index:v}", "v.time", "v.sender", "v.connection_id")
        tail = (
            "FROM {store_envelopes} AS v WHERE {in_envelopes:v} "
            f"ORDER BY {{index_order:v}} {order} LIMIT $3"
        )
        rows = yield Select(columns, tail, (*self._dialect.extent(key, after), limit), "v.data")
        return (yield from self.with_data(key, rows, 0))

    def with_data(self, key: int, rows: Sequence[Row], index: int) -> Work[Sequence[Row]]:
        """Return rows whose last value is an envelope's data, with the data that another envelope has.

        Args:
            key: the session.
            rows: the rows.
            index: the place of the envelope's index in a row.
        """
        known: dict[bytes, bytes] = {}
        found: list[Row] = []
        for row in rows:
            data = row[-1]
            if data is not None and data[:1] == SAME:
                if data not in known:
                    known[data] = yield from self._data(key, row[index], data)
                row = [*row[:-1], known[data]]
            found.append(row)
        return found

    def _data(self, key: int, index: int, data: bytes) -> Work[bytes]:
        for _ in range(_MOVES):
            place = _other_place(data)
            if place is None:
                return _unescaped(data)
            other = yield from self._stored(key, place)
            if other is not None and _other_place(other) is None:
                return _unescaped(other)
            data = (yield from self._stored(key, index)) or data
        raise PersistError(f"envelope {index} of session number {key} can't be read: its data is missing")

    def _stored(self, key: int, index: int) -> Work[bytes | None]:
        """Return the data of an envelope as it is stored, None if there is no such envelope."""
        rows = yield Select(("{index:v}",), _ENVELOPE, self._dialect.extent(key, index - 1), "v.data")
        return rows[0][1] if rows and rows[0][0] == index else None

    def _find_same(self, rows: Sequence[EnvelopeRow]) -> Work[dict[tuple[int, int], bytes]]:
        """Return what is stored instead of the data of envelopes that repeat an earlier one."""
        found: dict[tuple[int, int], bytes] = {}
        for row in rows:
            index, data = row.same_as, (yield from self._stored(row.key, row.same_as))
            if data is not None and (place := _other_place(data)) is not None:
                index, data = place, (yield from self._stored(row.key, place))
            if data == _escaped(row.data):
                found[row.key, row.index] = SAME + str(index).encode()
        return found


def _escaped(data: bytes) -> bytes:
    return SAME + data if data[:1] == SAME else data


def _unescaped(data: bytes) -> bytes:
    return data[1:] if data[:1] == SAME else data


def _other_place(data: bytes) -> int | None:
    """Return the index of the envelope that has the data, None if this is the data."""
    return int(data[1:]) if data[:1] == SAME and data[1:2] != SAME else None


def bounded(number: int) -> int:
    """Return the number that a column can hold which is nearest."""
    return min(max(number, -MAX_NUMBER), MAX_NUMBER)


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
