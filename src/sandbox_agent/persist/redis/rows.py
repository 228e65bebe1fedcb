"""Session records and events as the driver stores them in Redis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Final, cast

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.columns import to_record, to_row
from sandbox_agent.persist.redis.keys import to_bytes, to_text
from sandbox_agent.wire.records import Sender, SessionEvent, SessionRecord

_EVENT_PARTS: Final = 6
# The fields of a record in the order of ``to_row``; the first ones are always there.
_FIELDS: Final = (
    *(b"id", b"agent", b"agent_session_id", b"last_connection_id", b"created_at"),
    *(b"destroyed_at", b"sandbox_id", b"session_init_json", b"config_options_json", b"modes_json"),
)
_REQUIRED: Final = 5


def pack_event(event: SessionEvent) -> tuple[bytes, bytes, bytes, bytes, bytes]:
    """Return an event as arguments of the scripts."""
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
    return [
        read_event(session_id, parts[at : at + _EVENT_PARTS]) for at in range(0, len(parts), _EVENT_PARTS)
    ]


def read_event(session_id: str, parts: Sequence[bytes]) -> SessionEvent:
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


def pack_record(session: SessionRecord) -> list[bytes]:
    """Return a record as fields and values of a hash, without those that are None.

    Raises:
        PersistError: a value can't be written as JSON.
    """
    words: list[bytes] = []
    for name, value in zip(_FIELDS, to_row(session), strict=True):
        if value is not None:
            words += (name, to_bytes(str(value)))
    return words


def read_record(answer: Sequence[bytes] | Mapping[bytes, bytes]) -> SessionRecord | None:
    """Return the record of a hash; None if there is no hash.

    Raises:
        PersistError: a field is missing or invalid.
    """
    row = dict(answer) if isinstance(answer, Mapping) else dict(zip(answer[::2], answer[1::2], strict=True))
    if not row:
        return None
    try:
        required = [to_text(row[name]) for name in _FIELDS[:_REQUIRED]]
        others = [to_text(row[name]) if name in row else None for name in _FIELDS[_REQUIRED:]]
        return to_record([*required, *others])
    except (KeyError, ValueError) as error:
        session_id = row.get(b"id", b"?").decode(errors="replace")
        raise PersistError(
            f"session '{session_id}' is damaged in the store, a field can't be read: {error}",
            session_id=session_id,
        ) from error
