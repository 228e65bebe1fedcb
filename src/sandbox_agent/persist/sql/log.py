"""The works of the SDK's drivers: records and events, in the tables of the TypeScript SDK."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import UNFENCED, Keyset
from sandbox_agent.persist.columns import to_record, to_row
from sandbox_agent.persist.sql.tables import EVENT_COLUMNS, SESSION_COLUMNS, names
from sandbox_agent.persist.sql.work import ConflictError, Insert, Query, Row, Table, Work
from sandbox_agent.wire.records import SessionEvent, SessionRecord

_SAVE: Final = (
    f"INSERT INTO {{sessions}} ({', '.join(names(SESSION_COLUMNS))}) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7, $8{as_json}, $9{as_json}, $10{as_json}) "
    "ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in names(SESSION_COLUMNS)[1:])
)
_SESSION: Final = "SELECT {session_columns} FROM {sessions} "
_ONE_SESSION: Final = _SESSION + "WHERE id = $1"
_SESSION_ORDER: Final = " ORDER BY created_at, id{collate} LIMIT $1 OFFSET $2"
_FIRST_SESSIONS: Final = _SESSION + _SESSION_ORDER
_NEXT_SESSIONS: Final = _SESSION + "WHERE (created_at, id{collate}) > ($3, $4)" + _SESSION_ORDER
_EVENT: Final = "SELECT {event_columns} FROM {events} WHERE session_id = $1 "
# No two events of a session have one index: after (index, id) is after the index, or at it.
_AFTER: Final = "AND event_index >= $4 AND (event_index, id{collate}) > ($4, $5) "
_EVENT_ORDER: Final = "ORDER BY event_index LIMIT $2 OFFSET $3"
_FIRST_EVENTS: Final = _EVENT + _EVENT_ORDER
_NEXT_EVENTS: Final = _EVENT + _AFTER + _EVENT_ORDER
_TAIL: Final = _EVENT + "ORDER BY event_index DESC LIMIT $2"
_LAST_INDEX: Final = "SELECT coalesce(max(event_index), 0) FROM {events} WHERE session_id = $1"
_APPEND: Final = Table("{events}", EVENT_COLUMNS, ("id",))
_APPEND_STRICTLY: Final = Table("{events}", EVENT_COLUMNS)
_REPLACE: Final = Table("{events}", EVENT_COLUMNS, ("id",), replace=True)
_SAVEPOINT: Final = Query("SAVEPOINT append")
_RELEASE: Final = Query("RELEASE SAVEPOINT append")
_BEGINNING: Final = Keyset(0, "")
# More than any memory holds.
_MAX_ROWS: Final = 2**31


class Known(NamedTuple):
    """What a driver has seen acknowledged of a session: its last index, and how often it was deleted."""

    last_index: int = 0
    deletions: int = 0


UNKNOWN: Final = Known()


class Appended(NamedTuple):
    """The index of each event, and what is known of the session afterwards."""

    indexes: list[int]
    known: Known


class Writers(Protocol):
    """Which generation may write a session: the highest that was claimed."""

    def claim(self, session_id: str) -> Work[int]:
        """Return a generation above all that the session had."""
        ...

    def check(self, session_id: str, generation: int, known: Known = UNKNOWN) -> Work[Known]:
        """Check that this generation may write, and return what is stored of the session.

        No other writer gets between the check and the end of the transaction.

        Raises:
            SessionFencedError: the session was claimed after that generation.
            PersistError: this is not the store that knew the session.
        """
        ...

    def check_store(self, session_id: str) -> Work[None]:
        """Check that this is the store that was opened.

        Raises:
            PersistError: it is another one.
        """
        ...

    def stored(self, session_id: str, last_index: int) -> Work[None]:
        """Note that an event of that index was stored."""
        ...

    def replaced(self, event: SessionEvent) -> Work[None]:
        """Note that an event is about to be stored at an index of the caller's choice."""
        ...

    def delete(self, session_id: str) -> Work[None]:
        """Erase the session and what is derived of it; its writer is refused from now on."""
        ...


class Log:
    """The works of one driver; its engine decides who may write.

    Args:
        writers: the engine's.
    """

    def __init__(self, writers: Writers) -> None:
        self.writers: Writers = writers

    def session(self, session_id: str) -> Work[SessionRecord | None]:
        """Return the record, or None."""
        rows = yield Query(_ONE_SESSION, (session_id,))
        return to_record(rows[0]) if rows else None

    def sessions(self, size: int, after: Keyset | None) -> Work[list[SessionRecord]]:
        """Return the records of a page, and the first one after it."""
        after = after or _BEGINNING
        if after is _BEGINNING or after.offset:
            rows = yield Query(_FIRST_SESSIONS, (size + 1, after.offset))
        else:
            rows = yield Query(_NEXT_SESSIONS, (size + 1, 0, after.position, after.id))
        return [to_record(row) for row in rows]

    def save(self, session: SessionRecord, generation: int) -> Work[None]:
        """Insert the record, or replace the one of that id.

        Raises:
            SessionFencedError: the session was claimed after that generation.
            PersistError: the record holds a value that is not JSON.
        """
        row = to_row(session)
        if generation == UNFENCED:
            yield from self.writers.check_store(session.id)
        else:
            yield from self.writers.check(session.id, generation)
        yield Query(_SAVE, row)

    def events(self, session_id: str, size: int, after: Keyset | None) -> Work[list[SessionEvent]]:
        """Return the events of a page, and the first one after it."""
        after = after or _BEGINNING
        if after is _BEGINNING or after.offset:
            rows = yield Query(_FIRST_EVENTS, (session_id, size + 1, after.offset))
        else:
            values = (session_id, size + 1, 0, after.position, after.id)
            rows = yield Query(_NEXT_EVENTS, values)
        return [to_event(row) for row in rows]

    def tail(self, session_id: str, limit: int) -> Work[list[SessionEvent]]:
        """Return the newest events, oldest of them first."""
        rows = yield Query(_TAIL, (session_id, min(limit, _MAX_ROWS)))
        return [to_event(row) for row in reversed(rows)]

    def last_index(self, session_id: str) -> Work[int]:
        """Return the highest event index of the session, 0 where it has none."""
        rows = yield Query(_LAST_INDEX, (session_id,))
        return int(rows[0][0]) if rows else 0

    def append(
        self, session_id: str, events: Sequence[SessionEvent], generation: int, known: Known = UNKNOWN
    ) -> Work[Appended]:
        """Store those of the events that are not stored yet, after the session's last one.

        Raises:
            SessionFencedError: the session was claimed after that generation.
            PersistError: an id is stored in another session, or events that were known are gone.
        """
        known = yield from self.writers.check(session_id, generation, known)
        if not events:
            return Appended([], known)
        # One row is stored or not: there is nothing to undo.
        several = len(events) > 1
        if several:
            yield _SAVEPOINT
        found = yield Query(_LAST_INDEX, (session_id,))
        last: int = max(known.last_index, found[0][0])
        stored = yield Insert(
            _APPEND, list(map(event_values, events, range(last + 1, last + 1 + len(events))))
        )
        if stored == len(events):
            indexes = list(range(last + 1, last + 1 + stored))
        else:
            # A retry, nearly always: some of the ids are there.
            if several:
                yield Query("ROLLBACK TO SAVEPOINT append")
            indexes = yield from self._append_missing(session_id, events, last)
        if several:
            yield _RELEASE
        last = max(last, *indexes)
        yield from self.writers.stored(session_id, last)
        return Appended(indexes, Known(last, known.deletions))

    def _append_missing(self, session_id: str, events: Sequence[SessionEvent], last: int) -> Work[list[int]]:
        indexes: dict[str, int] = {}
        missing: dict[str, SessionEvent] = {}
        for event in events:
            rows = yield Query("SELECT session_id, event_index FROM {events} WHERE id = $1", (event.id,))
            if not rows:
                missing.setdefault(event.id, event)
            elif rows[0][0] != session_id:
                raise PersistError(
                    f"event '{event.id}' was not stored: its id is taken by an event of session "
                    f"'{rows[0][0]}'",
                    session_id=session_id,
                )
            else:
                indexes[event.id] = rows[0][1]
        indexes.update((event_id, index) for index, event_id in enumerate(missing, last + 1))
        if missing:
            yield Insert(
                _APPEND_STRICTLY, [event_values(event, indexes[event.id]) for event in missing.values()]
            )
        return [indexes[event.id] for event in events]

    def replace(self, session_id: str, event: SessionEvent) -> Work[None]:
        """Insert the event with the index that it has, or replace the one of its id.

        Raises:
            PersistError: another event of the session has that index.
        """
        yield from self.writers.check(session_id, UNFENCED)
        yield from self.writers.replaced(event)
        try:
            yield Insert(_REPLACE, [event_values(event, event.event_index)])
        except ConflictError as error:
            raise PersistError(
                f"event '{event.id}' was not stored: session '{session_id}' has another event with index "
                f"{event.event_index} ({error})",
                session_id=session_id,
            ) from error.__cause__
        yield from self.writers.stored(session_id, event.event_index)


def event_values(event: SessionEvent, index: int) -> tuple[Any, ...]:
    """Return an event as a row of the table, at that index."""
    return (
        event.id,
        index,
        event.session_id,
        event.created_at,
        event.connection_id,
        event.sender,
        event.payload_json.decode(),
    )


def to_event(row: Row) -> SessionEvent:
    """Return the event of a row; its payload comes as bytes or as text."""
    event_id, index, session_id, time, connection_id, sender, payload = row
    if not isinstance(payload, bytes):
        payload = payload.encode()
    return SessionEvent(event_id, index, session_id, time, connection_id, sender, payload)
