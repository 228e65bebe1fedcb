"""What the recorder's tests share: a store that can refuse, envelopes, and views of what was stored."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from sandbox_agent.engine.sse import SseDecoder
from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from sandbox_agent.persist.store import Changes, SessionRow, SessionStore, TurnRow
from sandbox_agent.server.recorder import PublishedSession, RecordedSession, Recorder, Tap

EXITED = b'{"jsonrpc":"2.0","method":"_adapter/agent_exited","params":{"success":true,"code":0}}'


class FaultyStore(SQLiteSessionStore):
    """A real store that refuses or stalls when told to.

    Attributes:
        refusal: why it refuses to commit; None: it works.
        gate: commits wait until it is set.
        refused: set when it refused.
        sizes: of each commit, how many envelopes.
    """

    def __init__(self, writer: SQLiteThread, reader: SQLiteThread) -> None:
        super().__init__(writer, reader)
        self.refusal: str | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.refused = asyncio.Event()
        self.entered = asyncio.Event()
        self.sizes: list[int] = []
        self.loads = 0

    async def commit(self, changes: Changes) -> None:
        self.entered.set()
        await self.gate.wait()
        if self.refusal is not None:
            self.refused.set()
            raise PersistError(self.refusal)
        self.sizes.append(len(changes.envelopes))
        await super().commit(changes)

    async def session(self, session_id: str) -> SessionRow | None:
        self.loads += 1
        return await super().session(session_id)


@asynccontextmanager
async def open_store(path: Path) -> AsyncGenerator[FaultyStore]:
    writer = SQLiteThread(path)
    reader = SQLiteThread(path)
    store = FaultyStore(writer, reader)
    try:
        await store.open()
        yield store
    finally:
        await reader.close()
        await writer.close()


def line(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", **members}).encode()


def request(number: object, method: str, **params: Any) -> bytes:
    return line(id=number, method=method, params=params)


def result(number: object, **members: Any) -> bytes:
    return line(id=number, result=members)


def update(native: str, **members: Any) -> bytes:
    return line(method="session/update", params={"sessionId": native, "update": members})


def chunk(native: str, text: str, message_id: str = "m") -> bytes:
    content = {"type": "text", "text": text}
    return update(native, sessionUpdate="agent_message_chunk", content=content, messageId=message_id)


def user_chunk(native: str, text: str) -> bytes:
    return update(native, sessionUpdate="user_message_chunk", content={"type": "text", "text": text})


def prompt(native: str, number: object, text: str = "go") -> bytes:
    return request(number, "session/prompt", sessionId=native, prompt=[{"type": "text", "text": text}])


def ask(native: str, number: object) -> bytes:
    return request(
        number,
        "session/request_permission",
        sessionId=native,
        toolCall={"toolCallId": "t1", "title": "write it"},
        options=[{"optionId": "yes", "name": "Yes", "kind": "allow_once"}],
    )


def allow(number: object) -> bytes:
    return result(number, outcome={"outcome": "selected", "optionId": "yes"})


def begin(recorder: Recorder, native: str = "N", *, agent: str = "mock", epoch: str = "e1") -> Tap:
    """Return the tap of a connection on which a client has made a session."""
    tap = recorder.tap(epoch, f"server-{epoch}", agent)
    tap.sent(request(1, "session/new", cwd="/w"), "")
    tap.received([result(1, sessionId=native)])
    return tap


async def stored(store: SessionStore, session_id: str) -> list[dict[str, Any]]:
    """Return a session's events out of the store, and check that they are contiguous."""
    row = await store.session(session_id)
    assert row is not None
    events = await store.events(row.key, after=0, limit=1_000_000, max_bytes=1 << 30)
    assert [event.sequence for event in events] == list(range(1, row.last_sequence + 1))
    found = [json.loads(event.data) for event in events]
    assert [event["sequence"] for event in found] == [event.sequence for event in events]
    return found


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


async def read_all(
    live: PublishedSession, cursor: int = 0, *, max_bytes: int = 1 << 20
) -> list[tuple[int, str]]:
    """Return what a viewer sees: ids and event names."""
    decoder = SseDecoder()
    seen: list[tuple[int, str]] = []
    while True:
        part = await live.read(cursor, "", max_bytes=max_bytes)
        if part.cursor == cursor:
            return seen
        cursor = part.cursor
        seen += [(int(event.id or 0), event.event) for event in decoder.feed(part.data)]


async def settled(recorder: Recorder, name: str) -> RecordedSession:
    """Return a session once everything that was handed over is stored."""
    await settle(recorder)
    return await recorder.open(name)


async def settle(recorder: Recorder) -> None:
    with anyio.fail_after(10):
        await recorder.flush()


def turn_row(row: SessionRow, turn_id: str, number: int = 1) -> TurnRow:
    return TurnRow(key=row.key, number=number, turn_id=turn_id, state="accepted", created_at=5, prompt=b"[]")


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: int = 1_000) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def managed_row(name: str = "managed", **columns: Any) -> SessionRow:
    return SessionRow(
        key=0, session_id=name, agent="mock", created_at=1, updated_at=1, managed=True, **columns
    )
