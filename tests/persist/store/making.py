"""Stores and rows for these tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import MEMORY, SQLiteThread
from sandbox_agent.persist.store import (
    Changes,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SessionStore,
    TextRow,
    TurnRow,
)

TIME = 1_750_000_000_000
PLENTY = 1 << 30

# Bytes that a store may spoil: no UTF-8, a null character, escapes of what no strict text can hold, blanks.
NASTY = (
    b"\xff\x00 no JSON",
    b'{"a":"\\u0000 \\ud800 \\"q\\"","b":"\xf0\x9f\xa6\x80 \xe2\x80\xa8","big":1234567890123456789012345678}',
    b'{ "sp":  [ 1 , 2 ],\t"f":1e-7}\r\n',
    b"",
    bytes(range(256)),
)

TEXTS = [
    "the quick brown Fox",
    "a FOX, a fox and the fox",
    "Crème brûlée with naïve café",
    "foo-bar (foo_baz) 100% C++ \u4f60\u597d",
    "lazy dog\nquick as a fox",
]


@asynccontextmanager
async def opened(path: Path | str) -> AsyncGenerator[SQLiteSessionStore]:
    writer = SQLiteThread(path)
    reader = writer if str(path) == MEMORY else SQLiteThread(path, read_only=True)
    try:
        store = SQLiteSessionStore(writer, reader)
        await store.open()
        await store.finish_deletes()
        yield store
    finally:
        await reader.close()
        await writer.close()


def session(key: int = 1, **columns: Any) -> SessionRow:
    defaults: dict[str, Any] = {"session_id": f"session-{key}", "agent": "claude"}
    defaults |= {"created_at": TIME, "updated_at": TIME}
    return SessionRow(key=key, **{**defaults, **columns})


def event(sequence: int, key: int = 1, *, time: int = TIME, size: int = 0, envelope: int = 0) -> EventRow:
    padding = b"x" * size
    data = b'{"sequence":%d,"data":"%s"}' % (sequence, padding)
    return EventRow(key, sequence, time, "item.delta", envelope, data)


def envelope(index: int, key: int = 1, *, time: int = TIME, data: bytes | None = None) -> EnvelopeRow:
    return EnvelopeRow(key, index, time, "agent", "epoch", b'{"index":%d}' % index if data is None else data)


def repeating(index: int, same_as: int, data: bytes, *, time: int = TIME) -> EnvelopeRow:
    """An envelope that may have the data of an earlier one."""
    return EnvelopeRow(1, index, time, "agent", "epoch", data, same_as)


def turn(number: int, key: int = 1, **columns: Any) -> TurnRow:
    defaults: dict[str, Any] = {
        "turn_id": f"turn_{number}",
        "state": "done",
        "created_at": TIME,
        "prompt": b"[1]",
    }
    return TurnRow(key=key, number=number, **{**defaults, **columns})


def permission(permission_id: str, key: int = 1, **columns: Any) -> PermissionRow:
    defaults: dict[str, Any] = {
        "kind": "permission",
        "request_id": b"7",
        "connection_id": "epoch",
        "sequence": 1,
        "action": "edit",
        "metadata": b'{"a":1}',
        "requested_at": TIME,
    }
    return PermissionRow(key=key, permission_id=permission_id, **{**defaults, **columns})


def filled(key: int = 1, count: int = 3, *, time: int = TIME, text: str = "", **columns: Any) -> Changes:
    """A session with as many events and envelopes; each has the text, if there is one, and its number."""
    numbers = range(1, count + 1)
    return Changes(
        sessions=[session(key, last_sequence=count, last_envelope=count, **columns)],
        events=[event(number, key, time=time + number, envelope=number) for number in numbers],
        envelopes=[envelope(number, key, time=time + number) for number in numbers],
        texts=[TextRow(key, number, time + number, f"{text} number{number}") for number in numbers if text],
    )


async def sequences(store: SessionStore, key: int = 1, after: int = 0) -> list[int]:
    return [row.sequence for row in await store.events(key, after=after, limit=PLENTY, max_bytes=PLENTY)]


async def indexes(store: SessionStore, key: int = 1) -> list[int]:
    return [row.index for row in await store.envelopes(key, after=0, limit=PLENTY)]


async def listed(store: SessionStore) -> list[int]:
    """Return the keys of the sessions, newest first."""
    return [row.key for row in (await store.sessions(limit=1_000))[0]]


async def fill(store: SessionStore) -> None:
    """Commit the texts, to two sessions by turns."""
    await store.commit(
        Changes(
            sessions=[session(1, title="One"), session(2, agent="codex", session_id="two")],
            texts=[TextRow(1 + n % 2, n + 1, TIME + 10 * n, text) for n, text in enumerate(TEXTS)],
        )
    )


FULL = session(
    managed=True,
    native_session_id="native",
    server_id="server",
    directory="/ä",
    title='a "title"\0 \U0001f980 \x01 \ufffe',
    model="m",
    agent_mode="plan",
    permission_mode="ask",
    variant="high",
    ended=True,
    first_sequence=2,
    last_sequence=9,
    last_envelope=7,
    usage=b'{"inputTokens":1}',
    settings=b'{"agent":"claude"}',
)
