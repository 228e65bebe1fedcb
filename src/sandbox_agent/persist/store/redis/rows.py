"""Rows as the scripts of the Redis store take and give them.

A call has two arguments whatever its size: a head in MessagePack, of numbers and short strings, and one blob
of all values behind each other, whose lengths are in the head. Redis's MessagePack knows no bytes, hence the
blob. An answer is a list of numbers and such a blob.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store.redis.words import searchable, words
from sandbox_agent.persist.store.rows import (
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SnapshotRow,
    TextRow,
    TurnRow,
)

__all__ = [
    "MAX_NUMBER",
    "Text",
    "clean",
    "pack_changes",
    "parts",
    "to_envelope",
    "to_event",
    "to_permission",
    "to_session",
    "to_snapshot",
    "to_text",
    "to_turn",
]

T = TypeVar("T", bound=msgspec.Struct)

MAX_NUMBER: Final = 2**32 - 1
# Texts longer than this are worth compressing.
_LONG: Final = 300
_NO_PROMPT: Final = b"[]"
_NO_METADATA: Final = b"{}"
_json: Final = msgspec.json.Encoder()
_pack: Final = msgspec.msgpack.Encoder()
_sessions: Final = msgspec.msgpack.Decoder(SessionRow)
_turns: Final = msgspec.msgpack.Decoder(TurnRow)
_permissions: Final = msgspec.msgpack.Decoder(PermissionRow)
_snapshots: Final = msgspec.msgpack.Decoder(SnapshotRow)
_event_head: Final = msgspec.json.Decoder(tuple[int, str, int])
_envelope_head: Final = msgspec.json.Decoder(tuple[int, str, str])
_text_head: Final = msgspec.json.Decoder(tuple[int, int, int])


class Text(NamedTuple):
    """A text that is searched, and how many bytes Redis keeps of it."""

    key: int
    sequence: int
    time: int
    text: str
    size: int


def clean(text: str) -> str:
    """Return the text as UTF-8 can hold it: a lone surrogate becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def parts(sizes: Iterable[int], blob: bytes) -> list[bytes]:
    """Return the values of an answer's blob."""
    found: list[bytes] = []
    at = 0
    for size in sizes:
        found.append(blob[at : at + size])
        at += size
    return found


def _clean_row(row: T) -> T:
    changed: dict[str, Any] = {}
    for name in row.__struct_fields__:
        value = getattr(row, name)
        if isinstance(value, str) and not value.isascii():
            changed[name] = clean(value)
    return msgspec.structs.replace(row, **changed) if changed else row


def pack_changes(changes: Changes) -> tuple[bytes, bytes]:
    """Return the head and the blob of a commit.

    Raises:
        PersistError: it contradicts itself, or a number is none that can be stored.
    """
    values: list[bytes] = []
    head = [
        [_session(_clean_row(row), values) for row in changes.sessions],
        [*_streams("v", changes.envelopes, values), *_streams("e", changes.events, values)],
        [_turn(_clean_row(row), values) for row in changes.turns],
        [_permission(_clean_row(row), values) for row in changes.permissions],
        [_snapshot(row, values) for row in changes.snapshots],
        [_text(row, values) for row in sorted(changes.texts, key=lambda row: row.time)],
    ]
    return _pack.encode(head), b"".join(values)


def _put(values: list[bytes], value: bytes) -> int:
    values.append(value)
    return len(value)


def _or_false(value: Any) -> Any:
    # Nothing would be a hole in Lua's list.
    return False if value is None else value


def _session(row: SessionRow, values: list[bytes]) -> list[Any]:
    return [
        row.key,
        _put(values, _pack.encode(row)),
        row.session_id,
        row.agent,
        _or_false(row.native_session_id),
        row.first_sequence,
        row.last_sequence,
        row.last_envelope,
    ]


def _streams(
    kind: str, rows: Sequence[EventRow] | Sequence[EnvelopeRow], values: list[bytes]
) -> list[list[Any]]:
    """Return for each session its numbers, ascending, and the lengths of their values."""
    encode = _json.encode
    sessions: dict[int, dict[int, bytes]] = {}
    for row in rows:
        if isinstance(row, EventRow):
            number = row.sequence
            value = b"%b\n%b" % (encode((row.time, clean(row.type), row.envelope)), row.data)
        else:
            number = row.index
            value = b"%b\n%b" % (encode((row.time, row.sender, clean(row.connection_id))), row.data)
        found = sessions.setdefault(row.key, {})
        if found.setdefault(number, value) is not value and found[number] != value:
            raise PersistError(
                f"nothing was stored: session number {row.key} has two rows of number {number}"
            )
    packed: list[list[Any]] = []
    for key, found in sessions.items():
        numbers = list(found)
        if any(before >= after for before, after in pairwise(numbers)):
            numbers.sort()
        if numbers[0] < 1 or numbers[-1] > MAX_NUMBER:
            raise PersistError(
                f"nothing was stored: session number {key} has no room for a row of number "
                f"{numbers[0] if numbers[0] < 1 else numbers[-1]}"
            )
        packed.append([kind, key, numbers, [_put(values, found[number]) for number in numbers]])
    return packed


def _turn(row: TurnRow, values: list[bytes]) -> list[Any]:
    is_open = row.state in ("accepted", "running")
    # What an expiry may erase is kept apart.
    bare = msgspec.structs.replace(row, prompt=b"")
    return [
        row.key,
        row.turn_id,
        row.number,
        is_open,
        _or_false(row.idempotency_key),
        False if is_open or row.prompt == _NO_PROMPT else _or_false(row.last_sequence),
        _put(values, _pack.encode(bare)),
        _put(values, row.prompt),
    ]


def _permission(row: PermissionRow, values: list[bytes]) -> list[Any]:
    waits = row.answered is None
    bare = msgspec.structs.replace(row, metadata=b"", action="")
    return [
        row.key,
        row.permission_id,
        # Members of one time are in this order.
        f"{row.key:010}:{row.sequence:010}:{row.permission_id}" if waits else False,
        row.requested_at,
        False if waits or row.metadata == _NO_METADATA else row.sequence,
        _put(values, _pack.encode(bare)),
        _put(values, _pack.encode((row.metadata, row.action))),
    ]


def _snapshot(row: SnapshotRow, values: list[bytes]) -> list[Any]:
    return [row.key, row.envelope, _put(values, _pack.encode(row))]


def _text(row: TextRow, values: list[bytes]) -> list[Any]:
    text = searchable(row.text)
    found = words(text)
    data = text.encode()
    data = b"z" + zlib.compress(data, 1) if len(data) > _LONG else b"t" + data
    value = b"%b\n%b" % (_json.encode((row.key, row.sequence, row.time)), data)
    return [row.key, row.sequence, row.time, _put(values, value), list(found), list(found.values())]


def to_session(value: bytes, first: int, last: int, last_envelope: int) -> SessionRow:
    """Return a session's row; its numbers are kept beside it."""
    row = _sessions.decode(value)
    row.first_sequence, row.last_sequence, row.last_envelope = first, last, last_envelope
    return row


def to_event(key: int, sequence: int, value: bytes) -> EventRow:
    """Return an event's row."""
    head, _, data = value.partition(b"\n")
    time, kind, envelope = _event_head.decode(head)
    return EventRow(key, sequence, time, kind, envelope, data)


def to_envelope(key: int, index: int, value: bytes) -> EnvelopeRow:
    """Return an envelope's row."""
    head, _, data = value.partition(b"\n")
    time, sender, connection_id = _envelope_head.decode(head)
    return EnvelopeRow(key, index, time, "client" if sender == "client" else "agent", connection_id, data)


def to_turn(value: bytes, prompt: bytes | None) -> TurnRow:
    """Return a turn's row; its prompt may have been erased."""
    row = _turns.decode(value)
    row.prompt = _NO_PROMPT if prompt is None else prompt
    return row


def to_permission(value: bytes, detail: bytes | None) -> PermissionRow:
    """Return a permission's row; what was asked may have been erased."""
    row = _permissions.decode(value)
    row.metadata, row.action = (
        (_NO_METADATA, "") if detail is None else msgspec.msgpack.decode(detail, type=tuple[bytes, str])
    )
    return row


def to_snapshot(value: bytes) -> SnapshotRow:
    """Return a snapshot's row."""
    return _snapshots.decode(value)


def to_text(value: bytes) -> Text:
    """Return a text."""
    head, _, data = value.partition(b"\n")
    text = zlib.decompress(data[1:]) if data[:1] == b"z" else data[1:]
    return Text(*_text_head.decode(head), text.decode(), len(value))
