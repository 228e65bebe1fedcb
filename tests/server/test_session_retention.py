"""What was erased by retention is told, never jumped over: on pages, streams, turns and exports."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from sandbox_agent.engine.sse import SseDecoder
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from tests.support.servers import our_server

from .talk import client_of
from .test_session_routes import Session

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(path: Path) -> AsyncGenerator[SQLiteSessionStore]:
    writer, reader = SQLiteThread(path), SQLiteThread(path)
    store = SQLiteSessionStore(writer, reader)
    await store.open()
    try:
        yield store
    finally:
        await reader.close()
        await writer.close()


@asynccontextmanager
async def shortened(folder: Path) -> AsyncGenerator[tuple[Session, int, int]]:
    """Return a session of two turns of which retention erased the first, its first and last sequence."""
    path = folder / "store.db"
    server = our_server(folder, "--store", f"sqlite:{path}")
    with server:
        async with client_of(server) as client:
            session = Session(client, "s")
            await session.post("", {"agent": "mock"})
            await session.turn("echo old", idempotency_key="old")
    async with opened(path) as store:
        row = await store.session("s")
        assert row is not None
        events = await store.events(row.key, after=0, limit=1000, max_bytes=2**30)
        before = events[-1].time + 1
    with server:
        async with client_of(server) as client:
            await Session(client, "s").turn("echo new", idempotency_key="new")
    async with opened(path) as store:
        assert await store.expire(before=before)
        row = await store.session("s")
        assert row is not None
        assert row.first_sequence > 1
    with server:
        async with client_of(server) as client:
            yield Session(client, "s"), row.first_sequence, row.last_sequence


async def test_erased_events_are_told_wherever_they_are_asked_for(tmp_path: Path):
    async with shortened(tmp_path) as (session, first, last):
        gone = await session.client.get(f"{session.path}/events", params={"offset": 0})
        assert gone.status_code == 410
        told = gone.json()
        assert (told["missingFrom"], told["missingTo"]) == (1, first - 1)
        assert (told["firstSequence"], told["lastSequence"]) == (first, last)

        whole = (await session.events(offset=first - 1))["events"]
        assert [event["sequence"] for event in whole] == list(range(first, last + 1))
        assert (await session.events())["events"] == whole
        assert (await session.info())["firstSequence"] == first

        for query in ("", "?offset=2", "?include_raw=true"):
            async with session.stream(query) as stream:
                gap = await stream.next()
                assert gap is not None
                assert gap.event == "gap"
                assert json.loads(gap.data) == {"from": 3 if "offset" in query else 1, "to": first - 1}
                with anyio.fail_after(30):
                    streamed = [await stream.next() for _ in whole]
                assert [int(event.id or 0) for event in streamed if event] == list(range(first, last + 1))

        erased = await session.post("/messages/stream", {"message": "echo old"}, idempotency_key="old")
        assert erased.status_code == 410
        kept = await session.post("/messages/stream", {"message": "echo new"}, idempotency_key="new")
        events = SseDecoder().feed(kept.content)
        assert json.loads(events[-1].data)["type"] == "turn.ended"

        exported = await session.client.get(f"{session.path}/export")
        assert [json.loads(line) for line in exported.text.splitlines()] == whole
