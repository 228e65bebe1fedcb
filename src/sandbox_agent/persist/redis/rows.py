"""Records and events, and what Redis keeps of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, Final, cast

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.redis.keys import to_bytes, to_text
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads
from sandbox_agent.wire.records import Sender, SessionEvent, SessionRecord

__all__ = ["event_words", "read_events", "record_words", "to_event", "to_record"]

_EVENT_PARTS: Final = 6


def event_words(event: SessionEvent) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """Return an event as the scripts take it."""
    return (
        to_bytes(event.id),
        b"%d" % event.created_at,
        to_bytes(event.connection_id),
        event.sender.encode(),
        event.payload_json,
    )


def read_events(session_id: str, lengths: bytes, texts: bytes) -> list[SessionEvent]:
    """Return the events of an answer of the READ script."""
    if not lengths:
        return []
    ends = list(accumulate(map(int, lengths.split(b",")), initial=0))
    parts = [texts[begin:end] for begin, end in pairwise(ends)]
    return [to_event(session_id, parts[at : at + _EVENT_PARTS]) for at in range(0, len(parts), _EVENT_PARTS)]


def to_event(session_id: str, parts: Sequence[bytes]) -> SessionEvent:
    """Return the event of index, id, created_at, connection_id, sender and payload."""
    index, event_id, created_at, connection_id, sender, payload = parts
    return SessionEvent(
        to_text(event_id),
        int(index),
        session_id,
        int(created_at),
        to_text(connection_id),
        cast("Sender", sender.decode()),
        payload,
    )


def record_words(session: SessionRecord) -> list[bytes]:
    """Return a record as fields and values of a hash; None is left out.

    Raises:
        PersistError: it holds a value that is not JSON.
    """
    fields: dict[bytes, Any] = {
        b"id": session.id,
        b"agent": session.agent,
        b"agent_session_id": session.agent_session_id,
        b"last_connection_id": session.last_connection_id,
        b"created_at": session.created_at,
        b"destroyed_at": session.destroyed_at,
        b"sandbox_id": session.sandbox_id,
    }
    words: list[bytes] = []
    for name, value in fields.items():
        if value is not None:
            words += (name, to_bytes(str(value)))
    try:
        for name, value in (
            (b"session_init_json", session.session_init),
            (b"config_options_json", session.config_options),
            (b"modes_json", session.modes),
        ):
            if value is not None:
                words += (name, dumps(value))
    except (TypeError, ValueError) as error:
        raise PersistError(
            f"session '{session.id}' can't be stored, it holds a value that is not JSON: {error}",
            session_id=session.id,
        ) from error
    return words


def to_record(answer: Sequence[bytes] | Mapping[bytes, bytes]) -> SessionRecord | None:
    """Return the record of a hash; None where there is no hash.

    Raises:
        PersistError: a field is missing or can't be read.
    """
    row = dict(answer) if isinstance(answer, Mapping) else dict(zip(answer[::2], answer[1::2], strict=True))
    if not row:
        return None
    try:
        destroyed_at, sandbox_id = row.get(b"destroyed_at"), row.get(b"sandbox_id")
        return SessionRecord(
            id=to_text(row[b"id"]),
            agent=to_text(row[b"agent"]),
            agent_session_id=to_text(row[b"agent_session_id"]),
            last_connection_id=to_text(row[b"last_connection_id"]),
            created_at=int(row[b"created_at"]),
            destroyed_at=None if destroyed_at is None else int(destroyed_at),
            sandbox_id=None if sandbox_id is None else to_text(sandbox_id),
            session_init=_json(row.get(b"session_init_json")),
            config_options=_json(row.get(b"config_options_json")),
            modes=_json(row.get(b"modes_json")),
        )
    except (InvalidEnvelopeError, KeyError, ValueError) as error:
        session_id = row.get(b"id", b"?").decode(errors="replace")
        raise PersistError(
            f"session '{session_id}' is damaged in the store, a field can't be read: {error}",
            session_id=session_id,
        ) from error


def _json(value: bytes | None) -> Any:
    return None if value is None else loads(value)
