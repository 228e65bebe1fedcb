"""What the SDK's drivers write in SQL: records, and events with the ``event_index`` that is allocated here.

The tables are those of the TypeScript SDK.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

from sandbox_agent.persist.base import UNFENCED, NotLastError, taken_id_error, taken_index_error
from sandbox_agent.persist.columns import to_row
from sandbox_agent.persist.follow import Mark
from sandbox_agent.persist.sql.tables import EVENT_COLUMNS, SESSION_COLUMNS, names
from sandbox_agent.persist.sql.work import ConflictError, Insert, Query, Row, Table, Work
from sandbox_agent.wire.records import SessionEvent, SessionRecord

_SAVE: Final = (
    f"INSERT INTO {{sessions}} ({', '.join(names(SESSION_COLUMNS))}) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7, $8{as_json}, $9{as_json}, $10{as_json}) "
    "ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in names(SESSION_COLUMNS)[1:])
)
LAST_INDEX: Final = "SELECT coalesce(max(event_index), 0) FROM {events} WHERE session_id = $1"
_APPEND: Final = Table("{events}", EVENT_COLUMNS, ("id",))
_APPEND_STRICTLY: Final = Table("{events}", EVENT_COLUMNS)
_REPLACE: Final = Table("{events}", EVENT_COLUMNS, ("id",), replace=True)
# Events, and the head of an encrypted session's chain, which replaces the one before; no index is written.
_APPEND_SEALED: Final = Table(
    "{events}",
    EVENT_COLUMNS,
    ("id",),
    replace=True,
    fixed=("event_index", "session_id", "connection_id", "sender"),
    where="WHERE excluded.id = excluded.session_id AND excluded.id LIKE '~head:%'",
)
_SAVEPOINT: Final = Query("SAVEPOINT append")
_RELEASE: Final = Query("RELEASE SAVEPOINT append")


# What a driver has seen acknowledged of a session.
UNKNOWN: Final = Mark(0)


class Appended(NamedTuple):
    """The index of each event, and what is known of the session afterwards."""

    indexes: list[int]
    known: Mark


class Writers(Protocol):
    """Which generation may write a session: the highest that was claimed."""

    def claim(self, session_id: str) -> Work[int]:
        """Return a generation above all that the session had."""
        ...

    def check(self, session_id: str, generation: int, known: Mark = UNKNOWN) -> Work[Mark]:
        """Check that this generation may write, and return what is stored of the session.

        No other writer gets between the check and the end of the transaction.

        Raises:
            SessionFencedError: the session was claimed after that generation.
            PersistError: this is not the store that knew the session.
        """
        ...

    def check_end(self, session_id: str, generation: int, known: Mark = UNKNOWN) -> Work[Mark]:
        """Check as ``check``, and return what is stored with the last index of the session."""
        stored = yield from self.check(session_id, generation, known)
        found = yield Query(LAST_INDEX, (session_id,))
        return stored._replace(last_index=max(stored.last_index, found[0][0]))

    def check_store(self, session_id: str) -> Work[None]:
        """Check that this is the store that was opened, where that is not certain.

        Raises:
            PersistError: it is another one.
        """
        yield from ()

    def stored(self, session_id: str, last_index: int) -> Work[None]:
        """Note that an event of that index was stored, where the last index is not the table's."""
        yield from ()

    def keep_head(self, session_id: str, head: SessionEvent) -> Work[Sequence[SessionEvent]]:
        """Store the head of a session, or return it to be stored as an event."""
        yield from ()
        return (head,)

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

    def append(
        self, session_id: str, events: Sequence[SessionEvent], generation: int, known: Mark = UNKNOWN
    ) -> Work[Appended]:
        """Store those of the events that are not stored yet, after the session's last one.

        Raises:
            SessionFencedError: the session was claimed after that generation.
            PersistError: an id is stored in another session, or events that were known are gone.
        """
        if not events:
            return Appended([], (yield from self.writers.check(session_id, generation, known)))
        known = yield from self.writers.check_end(session_id, generation, known)
        last = known.last_index
        # One row is stored or not: there is nothing to undo.
        several = len(events) > 1
        if several:
            yield _SAVEPOINT
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
        return Appended(indexes, Mark(last, known.deletions))

    def append_sealed(
        self,
        session_id: str,
        events: Sequence[SessionEvent],
        head: SessionEvent,
        after: int,
        generation: int,
    ) -> Work[Appended]:
        """Store events with the indexes that they have, and replace ``head``.

        Raises:
            NotLastError: ``after`` is not the last index, or some of the events are stored.
            SessionFencedError: the session was claimed after that generation.
            PersistError: an id is stored in another session.
        """
        known = yield from self.writers.check_end(session_id, generation)
        if known.last_index != after:
            raise NotLastError(session_id)
        stored = [*events, *(yield from self.writers.keep_head(session_id, head))]
        rows = [event_values(event, event.event_index) for event in stored]
        if (yield Insert(_APPEND_SEALED, rows)) != len(rows):
            indexes = yield from self._find(session_id, events)
            raise NotLastError(session_id, {one: index for one, index in indexes.items() if index <= after})
        last = events[-1].event_index
        yield from self.writers.stored(session_id, last)
        return Appended([event.event_index for event in events], Mark(last, known.deletions))

    def _find(self, session_id: str, events: Sequence[SessionEvent]) -> Work[dict[str, int]]:
        """Return the index of each event that is stored."""
        indexes: dict[str, int] = {}
        for event in events:
            rows = yield Query("SELECT session_id, event_index FROM {events} WHERE id = $1", (event.id,))
            if rows and rows[0][0] != session_id:
                raise taken_id_error(event.id, session_id, rows[0][0])
            if rows:
                indexes[event.id] = rows[0][1]
        return indexes

    def _append_missing(self, session_id: str, events: Sequence[SessionEvent], last: int) -> Work[list[int]]:
        indexes = yield from self._find(session_id, events)
        missing: dict[str, SessionEvent] = {}
        for event in events:
            if event.id not in indexes:
                missing.setdefault(event.id, event)
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
            raise taken_index_error(event, error) from error.__cause__
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
