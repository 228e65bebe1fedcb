"""Converts session records to the columns of the TypeScript SDK's tables, and back."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any, Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import not_json_error
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads
from sandbox_agent.wire.records import SessionRecord

_plain: Final = attrgetter(
    *("id", "agent", "agent_session_id", "last_connection_id", "created_at", "destroyed_at", "sandbox_id")
)
_json: Final = attrgetter("session_init", "config_options", "modes")


def to_row(session: SessionRecord) -> tuple[Any, ...]:
    """Return a record's values: the plain columns, then session_init, config_options and modes as JSON.

    Raises:
        PersistError: it holds a value that is not JSON.
    """
    try:
        return (*_plain(session), *map(_json_or_none, _json(session)))
    except (TypeError, ValueError) as error:
        raise not_json_error(session.id, error) from error


def to_record(row: Sequence[Any]) -> SessionRecord:
    """Return the record of a row in the order of ``to_row``.

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
        # SQLite's columns hold any number.
        created_at=int(row[4]),
        destroyed_at=None if row[5] is None else int(row[5]),
        sandbox_id=row[6],
        session_init=session_init,
        config_options=config_options,
        modes=modes,
    )


def _json_or_none(value: object) -> str | None:
    return None if value is None else dumps(value).decode()
