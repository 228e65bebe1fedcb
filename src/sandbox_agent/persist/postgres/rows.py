"""What a PostgreSQL store's rows hold, and events as rows and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.library import Row
from sandbox_agent.wire.records import Sender, SessionEvent

__all__ = [
    "EVENT_COLUMNS",
    "SESSION_COLUMNS",
    "check_texts",
    "event_arrays",
    "to_event",
]

SESSION_COLUMNS: Final = (
    "id, agent, agent_session_id, last_connection_id, created_at, destroyed_at, sandbox_id, "
    "session_init_json::text, config_options_json::text, modes_json::text"
)
EVENT_COLUMNS: Final = "id, event_index, session_id, created_at, connection_id, sender, payload_json::text"


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
    """Return a column a list: id, created_at, connection_id, sender, payload_json."""
    return (
        [event.id for event in events],
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
