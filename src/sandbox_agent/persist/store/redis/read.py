"""Reading the rows of a namespace: a page is one call, or one for each 2 MiB of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from sandbox_agent.persist.redis.scripts import Script
from sandbox_agent.persist.store.cursor import key_before
from sandbox_agent.persist.store.redis import scripts
from sandbox_agent.persist.store.redis.owner import Owner
from sandbox_agent.persist.store.redis.rows import (
    MAX_NUMBER,
    clean,
    parts,
    to_envelope,
    to_event,
    to_permission,
    to_session,
    to_snapshot,
    to_turn,
)
from sandbox_agent.persist.store.rows import (
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SnapshotRow,
    TurnRow,
)

__all__ = ["Reader", "unpacked"]

_UNPARSED: Final = "agent.unparsed"
_MOST: Final = 2**31 - 1
# Sessions, or what waits in them, of one call.
_PAGE: Final = 100

_events: Final = Script(scripts.EVENTS)
_open: Final = Script(scripts.OPEN)
_open_keys: Final = Script(scripts.OPEN_KEYS)
_page: Final = Script(scripts.SESSION_PAGE)
_pending: Final = Script(scripts.PENDING)
_permission: Final = Script(scripts.PERMISSION)
_rows: Final = Script(scripts.ROWS)
_snapshot: Final = Script(scripts.SNAPSHOT)
_turns: Final = Script(scripts.TURNS)


def unpacked(answer: list[bytes]) -> tuple[list[int], bytes]:
    """Return the numbers and the blob of an answer."""
    head, blob = answer
    return (msgspec.msgpack.decode(head) if head else []), blob


class _Answer:
    """An answer's numbers and values, taken one after the other."""

    def __init__(self, answer: list[bytes]) -> None:
        numbers, self._blob = unpacked(answer)
        self._numbers: Iterator[int] = iter(numbers)
        self._left = len(numbers)
        self._at = 0

    def __bool__(self) -> bool:
        return self._left > 0

    def number(self) -> int:
        self._left -= 1
        return int(next(self._numbers))

    def value(self) -> bytes | None:
        size = self.number()
        if size < 0:
            return None
        self._at += size
        return self._blob[self._at - size : self._at]

    def session(self) -> SessionRow:
        _key, first, last, envelope = (self.number() for _ in range(4))
        return to_session(self.value() or b"", first, last, envelope)

    def turn(self) -> TurnRow:
        return to_turn(self.value() or b"", self.value())

    def permission(self) -> PermissionRow:
        return to_permission(self.value() or b"", self.value())


class Reader:
    """Reads what an owner keeps."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    async def sessions_where(self, *condition: str | int) -> list[SessionRow]:
        """Return sessions: ``"name", NAME``, ``"native", AGENT, NATIVE`` or ``"keys", KEY…``."""
        words = (clean(word) if isinstance(word, str) else word for word in condition)
        answer = _Answer(await self._owner.read(_rows, *words))
        found: list[SessionRow] = []
        while answer:
            found.append(answer.session())
        return found

    async def session_page(self, limit: int, cursor: str | None) -> tuple[list[SessionRow], str | None]:
        """Return a page of sessions, newest first, and the next cursor: the key of the page's last.

        Raises:
            InvalidRequestError: it is no such cursor.
        """
        before = key_before(cursor, MAX_NUMBER)
        size = _bounded(limit)
        answer = _Answer(await self._owner.read(_page, before, size + 1))
        rows: list[SessionRow] = []
        while answer:
            rows.append(answer.session())
        page = rows[:size]
        return page, str(page[-1].key) if page and len(rows) > size else None

    async def events(
        self, key: int, after: int, limit: int, max_bytes: int, include_raw: bool
    ) -> list[EventRow]:
        """Return events behind a sequence, at least one if there are any."""
        found: list[EventRow] = []
        first, left, room = max(after, 0) + 1, _bounded(limit), max_bytes
        more = left > 0 and first <= MAX_NUMBER
        while more:
            words = ("e", key, first, left, min(max(room, 0), sys.maxsize), "raw" if include_raw else "")
            numbers, blob = unpacked(await self._owner.read(_events, *words))
            width = 3 if include_raw else 2
            sizes = [size for at in range(1, len(numbers), width) for size in numbers[at + 1 : at + width]]
            values = iter(parts([max(size, 0) for size in sizes], blob))
            for at in range(1, len(numbers), width):
                row = to_event(key, numbers[at], next(values))
                raw = next(values) if include_raw else b""
                room -= len(row.data) + len(raw)
                if found and room < 0:
                    return found
                if include_raw and numbers[at + 2] >= 0 and row.type != _UNPARSED:
                    row.data = row.data[:-1] + b',"raw":' + _as_json(raw) + b"}"
                found.append(row)
            left = _bounded(limit) - len(found)
            more = bool(numbers and numbers[0]) and room > 0 and left > 0
            if found:
                first = found[-1].sequence + 1
        return found

    async def envelopes(
        self, key: int, after: int, limit: int, order: Literal["", "newest"] = ""
    ) -> list[EnvelopeRow]:
        """Return envelopes behind an index; or the newest, and the newest of them first."""
        found: list[EnvelopeRow] = []
        first = MAX_NUMBER if order else max(after, 0) + 1
        left = _bounded(limit)
        more = left > 0 and 0 < first <= MAX_NUMBER
        while more:
            words = ("v", key, first, left, sys.maxsize, order)
            numbers, blob = unpacked(await self._owner.read(_events, *words))
            values = parts(numbers[2::2], blob)
            found += [
                to_envelope(key, index, value) for index, value in zip(numbers[1::2], values, strict=True)
            ]
            left = _bounded(limit) - len(found)
            more = bool(numbers and numbers[0]) and left > 0
            if found:
                first = found[-1].index + (-1 if order else 1)
        return found

    async def snapshot(self, key: int) -> SnapshotRow | None:
        """Return the session's newest snapshot."""
        value = await self._owner.read(_snapshot, key)
        return to_snapshot(value) if value else None

    async def turns(self, key: int, how: Literal["newest", "id", "key"], what: str | int) -> list[TurnRow]:
        """Return the newest turns, newest first, or the one of an id or an idempotency key."""
        if isinstance(what, int):
            what = _bounded(what)
            if not what:
                return []
        else:
            what = clean(what)
        answer = _Answer(await self._owner.read(_turns, key, how, what))
        found: list[TurnRow] = []
        while answer:
            found.append(answer.turn())
        return found

    async def open_turns(self) -> list[tuple[SessionRow, TurnRow]]:
        """Return all turns that are accepted or running, by session and number."""
        keys = sorted(int(key) for key in await self._owner.read(_open_keys))
        found: list[tuple[SessionRow, TurnRow]] = []
        for start in range(0, len(keys), _PAGE):
            answer = _Answer(await self._owner.read(_open, *keys[start : start + _PAGE]))
            while answer:
                session = answer.session()
                turns = [answer.turn() for _ in range(answer.number())]
                found += [(session, turn) for turn in sorted(turns, key=lambda turn: turn.number)]
        return found

    async def permission(self, key: int, permission_id: str) -> PermissionRow | None:
        """Return a permission or question."""
        answer = _Answer(await self._owner.read(_permission, key, clean(permission_id)))
        return answer.permission() if answer else None

    async def pending_permissions(self, limit: int) -> list[tuple[SessionRow, PermissionRow]]:
        """Return what waits for an answer, oldest first."""
        limit = _bounded(limit)
        found: list[tuple[SessionRow, PermissionRow]] = []
        start = 0
        while len(found) < limit:
            answer = _Answer(await self._owner.read(_pending, start, start + _PAGE - 1))
            count = answer.number()
            while answer:
                found.append((answer.session(), answer.permission()))
            if count < _PAGE:
                break
            start += _PAGE
        return found[:limit]


def _bounded(limit: int) -> int:
    return min(max(limit, 0), _MOST)


def _as_json(raw: bytes) -> bytes:
    try:
        raw.decode()
        msgspec.json.decode(raw)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return msgspec.json.encode(raw.decode("utf-8", "replace"))
    # Between JSON's values a line's end is a blank; in an event stream it is more.
    return raw.replace(b"\r", b" ").replace(b"\n", b" ")
