"""The server without HTTP: the real bridge, recorder, store and sessions, on one file."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from sandbox_agent.engine.feed import FeedMemory
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from sandbox_agent.persist.store import PermissionRow, TurnRow
from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.agents.spill import Spiller
from sandbox_agent.server.children import Children
from sandbox_agent.server.recorder import Recorder
from sandbox_agent.server.sessions.service import Sessions
from sandbox_agent.wire.sessions import CreateSessionRequest
from tests.support.memory_spill import MemorySpill

__all__ = ["TIMEOUT", "Stack", "running", "said"]

JsonObject = dict[str, Any]
# Longer than anything here takes.
TIMEOUT = 30.0
_OVER = {"done", "failed", "cancelled", "interrupted"}


def said(text: str) -> list[JsonObject]:
    """Return a text as a prompt."""
    return [{"type": "text", "text": text}]


def _label(part: JsonObject) -> JsonObject:
    return {"type": part.get("type"), "label": part.get("label")}


class Stack:
    """What a server has."""

    def __init__(
        self, store: SQLiteSessionStore, recorder: Recorder, bridge: Bridge, **settings: Any
    ) -> None:
        self.store = store
        self.recorder = recorder
        self.bridge = bridge
        self.sessions = Sessions(recorder, store, bridge, **settings)

    async def create(self, name: str = "s", agent: str = "mock", key: str | None = None, **given: Any) -> str:
        """Make a session; returns the agent's name of it."""
        request = CreateSessionRequest(agent=agent, **given)
        response = await self.sessions.create(name, request, idempotency_key=key)
        assert response.healthy
        assert response.native_session_id
        return response.native_session_id

    async def say(self, text: str, name: str = "s", key: str | None = None) -> TurnRow:
        """Send a message."""
        return await self.sessions.message(name, said(text), idempotency_key=key)

    async def events(self, name: str = "s") -> list[JsonObject]:
        """Return all stored events."""
        live = await self.recorder.open(name)
        rows = await self.store.events(live.row.key, after=0, limit=100_000, max_bytes=2**30)
        return [json.loads(row.data) for row in rows]

    async def types(self, name: str = "s") -> list[str]:
        """Return the types of all stored events."""
        return [event["type"] for event in await self.events(name)]

    async def texts(self, role: str, name: str = "s") -> list[str]:
        """Return what a role has said in completed messages."""
        return [
            "".join(part.get("text", "") for part in event["data"]["item"]["content"])
            for event in await self.events(name)
            if event["type"] == "item.completed"
            and event["data"]["item"].get("role") == role
            and event["data"]["item"]["kind"] == "message"
        ]

    async def last_prompt(self, name: str = "s") -> str:
        """Return the text of the newest prompt that was sent to the agent, with what precedes the message."""
        live = await self.recorder.open(name)
        rows = await self.store.newest_envelopes(live.row.key, limit=1000)
        sent = [json.loads(row.data) for row in rows if b'"session/prompt"' in row.data]
        return "\n".join(block["text"] for block in sent[-1]["params"]["prompt"])

    async def statuses(self, label: str, name: str = "s") -> list[JsonObject]:
        """Return the status parts of that label."""
        return [
            part
            for event in await self.events(name)
            if event["type"] == "item.completed"
            for part in event["data"]["item"]["content"]
            if part.get("type") == "status" and part["label"] == label
        ]

    async def values(self, label: str, name: str = "s") -> list[JsonObject]:
        """Return what is behind the status items of that label."""
        return [
            part["json"]
            for event in await self.events(name)
            if event["type"] == "item.completed"
            and {"type": "status", "label": label}
            in [_label(each) for each in event["data"]["item"]["content"]]
            for part in event["data"]["item"]["content"]
            if part.get("type") == "json"
        ]

    async def turn(self, turn: TurnRow, name: str = "s") -> TurnRow:
        """Return a turn as it is stored."""
        live = await self.recorder.open(name)
        found = await self.store.turn(live.row.key, turn_id=turn.turn_id)
        assert found is not None
        return found

    async def over(self, turn: TurnRow, name: str = "s") -> TurnRow:
        """Wait until a turn is over, and return it."""
        live = await self.recorder.open(name)
        with anyio.fail_after(TIMEOUT):
            while True:
                sequence = live.row.last_sequence
                found = await self.turn(turn, name)
                if found.state in _OVER:
                    return found
                await live.wait_beyond(sequence)

    async def until(self, kind: str, name: str = "s", count: int = 1) -> None:
        """Wait until so many events of that type are stored."""
        live = await self.recorder.open(name)
        with anyio.fail_after(TIMEOUT):
            while True:
                sequence = live.row.last_sequence
                if (await self.types(name)).count(kind) >= count:
                    return
                await live.wait_beyond(sequence)

    async def asked(self, name: str = "s") -> PermissionRow:
        """Wait until the agent has asked for a permission, and return it."""
        await self.until("permission.requested", name)
        pending = await self.store.pending_permissions(limit=10)
        (row,) = [row for session, row in pending if session.session_id == name]
        return row


@asynccontextmanager
async def running(
    folder: Path, *, request_timeout: float = 20.0, cancel_grace: float = 10.0, idle_timeout: float = 0
) -> AsyncGenerator[Stack]:
    """Run a server on the folder's store; the next one goes on where it ended."""
    path = folder / "store.db"
    writer, reader = SQLiteThread(path), SQLiteThread(path, read_only=True)
    store = SQLiteSessionStore(writer, reader)
    await store.open()
    try:
        async with Recorder(store).run() as recorder:
            spiller = Spiller(FeedMemory(2**24), MemorySpill())
            async with (
                Children().run() as children,
                Bridge(spiller, children, request_timeout=request_timeout, recorder=recorder).run() as bridge,
            ):
                stack = Stack(store, recorder, bridge, cancel_grace=cancel_grace, idle_timeout=idle_timeout)
                async with stack.sessions.run():
                    yield stack
    finally:
        await reader.close()
        await writer.close()
