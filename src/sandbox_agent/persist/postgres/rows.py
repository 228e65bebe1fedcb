"""Session records and events as the rows of a PostgreSQL store, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.library import Row
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads
from sandbox_agent.wire.records import Sender, SessionEvent, SessionRecord

__all__ = [
    "EVENT_COLUMNS",
    "SESSION_COLUMNS",
    "check_texts",
    "event_arrays",
    "to_event",
    "to_record",
    "to_row",
]

SESSION_COLUMNS: Final = (
    "id, agent, agent_session_id, last_connection_id, created_at, destroyed_at, sandbox_id, "
    "session_init_json::text, config_options_json::text, modes_json::text"
)
EVENT_COLUMNS: Final = "id, event_index, session_id, created_at, connection_id, sender, payload_json::text"


def to_row(session: SessionRecord) -> tuple[Any, ...]:
    """Return a record's values, in the order of SESSION_COLUMNS.

    Raises:
        PersistError: it holds a value that is not JSON.
    """
    try:
        return (
            session.id,
            session.agent,
            session.agent_session_id,
            session.last_connection_id,
            session.created_at,
            session.destroyed_at,
            session.sandbox_id,
            _json_or_none(session.session_init),
            _json_or_none(session.config_options),
            _json_or_none(session.modes),
        )
    except (TypeError, ValueError) as error:
        raise PersistError(
            f"session '{session.id}' can't be stored, it holds a value that is not JSON: {error}",
            session_id=session.id,
        ) from error


def _json_or_none(value: object) -> str | None:
    return None if value is None else dumps(value).decode()


def to_record(row: Row) -> SessionRecord:
    """Return the record of a row with SESSION_COLUMNS.

    Raises:
        PersistError: a JSON column can't be read.
    """
    try:
        session_init, config_options, modes = (
            loads(text.encode()) if text else None for text in (row[7], row[8], row[9])
        )
    except InvalidEnvelopeError as error:
        raise PersistError(
            f"session '{row[0]}' is damaged in the store, a JSON column can't be read: {error}",
            session_id=str(row[0]),
        ) from error
    return SessionRecord(
        id=row[0],
        agent=row[1],
        agent_session_id=row[2],
        last_connection_id=row[3],
        created_at=row[4],
        destroyed_at=row[5],
        sandbox_id=row[6],
        session_init=session_init,
        config_options=config_options,
        modes=modes,
    )


def check_texts(events: Sequence[SessionEvent]) -> None:
    """See that every payload is text.

    Raises:
        PersistError: one is not UTF-8.
    """
    for event in events:
        try:
            event.payload_json.decode()
        except UnicodeDecodeError as error:
            raise PersistError(
                f"event '{event.id}' was not stored: its payload is not UTF-8 ({error})",
                session_id=event.session_id,
            ) from error


def event_arrays(events: Sequence[SessionEvent]) -> tuple[list[Any], ...]:
    """Return a column a list: id, session_id, created_at, connection_id, sender, payload_json."""
    return (
        [event.id for event in events],
        [event.session_id for event in events],
        [event.created_at for event in events],
        [event.connection_id for event in events],
        [event.sender for event in events],
        [event.payload_json.decode() for event in events],
    )


def to_event(row: Row) -> SessionEvent:
    """Return the event of a row with EVENT_COLUMNS."""
    return SessionEvent(
        row[0], row[1], row[2], row[3], row[4], cast("Sender", row[5]), cast("str", row[6]).encode()
    )
