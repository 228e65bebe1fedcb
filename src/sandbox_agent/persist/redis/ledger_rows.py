"""Rows of a server's store as the scripts receive and return them.

A call has two arguments, whatever its size: a head in MessagePack, made of numbers and short strings, and one
blob of all values in a row, whose lengths are in the head. (The MessagePack of Redis has no bytes type.) An
answer is a list of numbers and such a blob.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store import (
    LARGE_BYTES,
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SnapshotRow,
    TextRow,
    TurnRow,
)
from sandbox_agent.persist.store.values import clean, searchable

T = TypeVar("T", bound=msgspec.Struct)

MAX_NUMBER: Final = 2**32 - 1
# Longer texts are compressed.
_LONG: Final = 300
_NO_PROMPT: Final = b"[]"
_NO_METADATA: Final = b"{}"
_json: Final = msgspec.json.Encoder()
_pack: Final = msgspec.msgpack.Encoder()
_numbers: Final = msgspec.msgpack.Decoder(list[int])
_sessions: Final = msgspec.msgpack.Decoder(SessionRow)
_turns: Final = msgspec.msgpack.Decoder(TurnRow)
_permissions: Final = msgspec.msgpack.Decoder(PermissionRow)
_details: Final = msgspec.msgpack.Decoder(tuple[bytes, str])
_snapshots: Final = msgspec.msgpack.Decoder(SnapshotRow)
_event_head: Final = msgspec.json.Decoder(tuple[int, str, int])
_envelope_head: Final = msgspec.json.Decoder(tuple[int, str, str])
_text_head: Final = msgspec.json.Decoder(tuple[int, int, int])


class StoredText(NamedTuple):
    """A searchable text; ``data`` may be compressed."""

    key: int
    sequence: int
    time: int
    data: bytes

    @property
    def text(self) -> str:
        """The text itself."""
        return (zlib.decompress(self.data[1:]) if self.data[:1] == b"z" else self.data[1:]).decode()


class Answer:
    """The numbers and values of a script's answer, read one after the other."""

    def __init__(self, answer: Sequence[bytes]) -> None:
        head, self._blob = answer
        self._numbers: list[int] = _numbers.decode(head) if head else []
        self._next = 0
        self._at = 0

    def __bool__(self) -> bool:
        """Whether anything is left."""
        return self._next < len(self._numbers)

    def number(self) -> int:
        """Return the next number."""
        self._next += 1
        return self._numbers[self._next - 1]

    def value(self) -> bytes | None:
        """Return the next value, None for one that the script did not find."""
        size = self.number()
        if size < 0:
            return None
        self._at += size
        return self._blob[self._at - size : self._at]


def pack_changes(changes: Changes) -> tuple[bytes, bytes]:
    """Return the head and the blob of a commit. Envelopes of no session (key 0) are left out.

    Raises:
        PersistError: the changes contradict themselves, or a number is out of range.
    """
    values: list[bytes] = []
    envelopes = [row for row in changes.envelopes if row.key]
    head = [
        [_pack_session(_clean_row(row), values) for row in changes.sessions],
        [*_pack_streams("v", envelopes, values), *_pack_streams("e", changes.events, values)],
        [_pack_turn(_clean_row(row), values) for row in changes.turns],
        [_pack_permission(_clean_row(row), values) for row in changes.permissions],
        [[row.key, row.envelope, _add_value(values, _pack.encode(row))] for row in changes.snapshots],
        [_pack_text(row, values) for row in sorted(changes.texts, key=lambda row: row.time)],
    ]
    return _pack.encode(head), b"".join(values)


def _clean_row(row: T) -> T:
    changed: dict[str, Any] = {}
    for name in row.__struct_fields__:
        value = getattr(row, name)
        if isinstance(value, str) and not value.isascii():
            changed[name] = clean(value)
    return msgspec.structs.replace(row, **changed) if changed else row


def _add_value(values: list[bytes], value: bytes) -> int:
    values.append(value)
    return len(value)


def _or_false(value: Any) -> Any:
    # nil would be a hole in Lua's list.
    return False if value is None else value


def _pack_session(row: SessionRow, values: list[bytes]) -> list[Any]:
    return [
        *(row.key, _add_value(values, _pack.encode(row)), row.session_id, row.agent),
        *(_or_false(row.native_session_id), row.first_sequence, row.last_sequence, row.last_envelope),
    ]


def _pack_streams(
    kind: str, rows: Sequence[EventRow] | Sequence[EnvelopeRow], values: list[bytes]
) -> list[list[Any]]:
    """Return for each session its numbers, ascending, the lengths of their values, and what they may repeat.

    The last is a list of the numbers of earlier rows, 0 for none.
    """
    encode = _json.encode
    sessions: dict[int, dict[int, bytes]] = {}
    repeats: dict[tuple[int, int], int] = {}
    for row in rows:
        if isinstance(row, EventRow):
            number = row.sequence
            value = b"%b\n%b" % (encode((row.time, clean(row.type), row.envelope)), row.data)
        else:
            number = row.index
            head = encode((row.time, row.sender, clean(row.connection_id)))
            # What begins like a reference to other data is escaped.
            escape = b"=" if row.data[:1] == b"=" else b""
            value = b"%b\n%b%b" % (head, escape, row.data)
            if row.same_as and not escape and len(row.data) >= LARGE_BYTES:
                repeats[row.key, number] = row.same_as
        known = sessions.setdefault(row.key, {})
        if known.setdefault(number, value) is not value and known[number] != value:
            raise PersistError(
                f"nothing was stored: session number {row.key} has two rows of number {number}"
            )
    packed: list[list[Any]] = []
    for key, known in sessions.items():
        numbers = list(known)
        if any(before >= after for before, after in pairwise(numbers)):
            numbers.sort()
        if numbers[0] < 1 or numbers[-1] > MAX_NUMBER:
            raise PersistError(
                f"nothing was stored: session number {key} can't hold a row of number "
                f"{numbers[0] if numbers[0] < 1 else numbers[-1]}"
            )
        sizes = [_add_value(values, known[number]) for number in numbers]
        packed.append([kind, key, numbers, sizes, [repeats.get((key, number), 0) for number in numbers]])
    return packed


def _pack_turn(row: TurnRow, values: list[bytes]) -> list[Any]:
    is_open = row.state in ("accepted", "running")
    # The prompt expires, so it is stored by itself.
    bare = msgspec.structs.replace(row, prompt=b"")
    expiry = False if is_open or row.prompt == _NO_PROMPT else _or_false(row.last_sequence)
    return [
        *(row.key, row.turn_id, row.number, is_open, _or_false(row.idempotency_key), expiry),
        *(_add_value(values, _pack.encode(bare)), _add_value(values, row.prompt)),
    ]


def _pack_permission(row: PermissionRow, values: list[bytes]) -> list[Any]:
    is_pending = row.answered is None
    bare = msgspec.structs.replace(row, metadata=b"", action="")
    # Members with the same time sort by this text.
    member = f"{row.key:010}:{row.sequence:010}:{row.permission_id}" if is_pending else False
    expiry = False if is_pending or row.metadata == _NO_METADATA else row.sequence
    details = _pack.encode((row.metadata, row.action))
    return [
        *(row.key, row.permission_id, member, row.requested_at, expiry),
        *(_add_value(values, _pack.encode(bare)), _add_value(values, details)),
    ]


def _pack_text(row: TextRow, values: list[bytes]) -> list[Any]:
    data = searchable(row.text).encode()
    data = b"z" + zlib.compress(data, 1) if len(data) > _LONG else b"t" + data
    value = b"%b\n%b" % (_json.encode((row.key, row.sequence, row.time)), data)
    return [row.key, row.sequence, _add_value(values, value)]


def read_session(answer: Answer) -> SessionRow:
    """Return the next session of an answer. Its numbers are stored beside its row."""
    first, last, envelope = answer.number(), answer.number(), answer.number()
    row = _sessions.decode(answer.value() or b"")
    row.first_sequence, row.last_sequence, row.last_envelope = first, last, envelope
    return row


def read_event(key: int, sequence: int, value: bytes) -> EventRow:
    """Return the row of a stored event."""
    head, _, data = value.partition(b"\n")
    time, kind, envelope = _event_head.decode(head)
    return EventRow(key, sequence, time, kind, envelope, data)


def read_envelope(key: int, index: int, value: bytes) -> EnvelopeRow:
    """Return the row of a stored envelope."""
    head, _, data = value.partition(b"\n")
    time, sender, connection_id = _envelope_head.decode(head)
    return EnvelopeRow(key, index, time, "client" if sender == "client" else "agent", connection_id, data)


def read_turn(value: bytes, prompt: bytes | None) -> TurnRow:
    """Return the row of a stored turn. Its prompt may have expired."""
    row = _turns.decode(value)
    row.prompt = _NO_PROMPT if prompt is None else prompt
    return row


def read_permission(value: bytes, details: bytes | None) -> PermissionRow:
    """Return the row of a stored permission. Its details may have expired."""
    row = _permissions.decode(value)
    row.metadata, row.action = (_NO_METADATA, "") if details is None else _details.decode(details)
    return row


def read_snapshot(value: bytes) -> SnapshotRow:
    """Return the row of a stored snapshot."""
    return _snapshots.decode(value)


def read_text(value: bytes) -> StoredText:
    """Return a stored text."""
    head, _, data = value.partition(b"\n")
    return StoredText(*_text_head.decode(head), data)
