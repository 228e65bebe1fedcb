"""Sessions of a server that may die at any moment: writers and viewers that go on."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.to_thread
import httpx2

from sandbox_agent.engine.sse import SseDecoder, SseEvent
from tests.support.servers import ServerProcess

__all__ = ["Chat", "Life", "Stream", "user_texts"]

JsonObject = dict[str, Any]


class Life:
    """A server and whether it is up, for clients that go on when it is again."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self._up = anyio.Event()
        self._up.set()

    async def kill(self) -> None:
        """SIGKILL it."""
        if self._up.is_set():
            self._up = anyio.Event()
        await anyio.to_thread.run_sync(self.server.kill)

    async def start(self) -> None:
        """Start it and let the clients go on."""
        await anyio.to_thread.run_sync(self.server.start)
        self._up.set()

    async def persist(self, ask: Callable[[], Awaitable[httpx2.Response]]) -> httpx2.Response:
        """Ask until there is an answer, however often the server dies meanwhile."""
        while True:
            await self._up.wait()
            try:
                return await ask()
            except httpx2.TransportError:
                continue

    async def up(self) -> None:
        """Return when the server is up."""
        await self._up.wait()


class Stream:
    """An open stream of events."""

    def __init__(self, response: httpx2.Response) -> None:
        self._chunks = response.aiter_bytes()
        self._decoder = SseDecoder()
        self._ready: list[SseEvent] = []

    async def next(self) -> SseEvent | None:
        """Return the next event, None at the end."""
        while not self._ready:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                return None
            self._ready = self._decoder.feed(chunk)
        return self._ready.pop(0)

    async def until(self, kind: str) -> list[JsonObject]:
        """Read up to an event of that type; all of them must be messages."""
        found: list[JsonObject] = []
        while (event := await self.next()) is not None:
            assert event.event == "message", event
            found.append(json.loads(event.data))
            if found[-1]["type"] == kind:
                return found
        raise AssertionError(f"the stream ended without {kind}: {[each['type'] for each in found]}")


class Chat:
    """A managed session over HTTP."""

    def __init__(self, client: httpx2.AsyncClient, session_id: str) -> None:
        self.client = client
        self.id = session_id
        self.path = f"/v1/sessions/{session_id}"

    async def create(self, agent: str = "mock", **settings: Any) -> None:
        """Make it; it must be healthy."""
        response = await self.client.post(self.path, json={"agent": agent, **settings})
        assert response.status_code == 200, response.text
        assert response.json()["healthy"] is True, response.text

    async def post(self, what: str, text: str, key: str | None = None) -> httpx2.Response:
        """Post a message; ``what`` is messages or messages/stream."""
        headers = {} if key is None else {"idempotency-key": key}
        return await self.client.post(f"{self.path}/{what}", json={"message": text}, headers=headers)

    async def say(self, text: str, key: str | None = None) -> str:
        """Send a message, which must be taken, and return its turn's id."""
        response = await self.post("messages", text, key)
        assert response.status_code == 204, response.text
        return response.headers["sandbox-agent-turn"]

    async def turn(self, text: str, key: str | None = None) -> list[JsonObject]:
        """Send a message and return the events of its turn."""
        response = await self.post("messages/stream", text, key)
        assert response.status_code == 200, response.text
        return [json.loads(event.data) for event in SseDecoder().feed(response.content)]

    async def info(self) -> JsonObject:
        """Return the session."""
        response = await self.client.get(self.path)
        assert response.status_code == 200, response.text
        found: JsonObject = response.json()
        return found

    async def events(self) -> list[JsonObject]:
        """Return all events by pages, and check that they are contiguous."""
        found: list[JsonObject] = []
        more = True
        while more:
            query = {"offset": len(found), "limit": 10_000}
            response = await self.client.get(f"{self.path}/events", params=query)
            assert response.status_code == 200, response.text
            page: JsonObject = response.json()
            found += page["events"]
            more = page["hasMore"]
        assert [event["sequence"] for event in found] == list(range(1, len(found) + 1))
        return found

    @asynccontextmanager
    async def stream(self, after: int = 0) -> AsyncGenerator[Stream]:
        """Open the stream of events behind a sequence."""
        headers = {"accept": "text/event-stream", "last-event-id": str(after)}
        async with self.client.stream("GET", f"{self.path}/events/sse", headers=headers) as response:
            assert response.status_code == 200, await response.aread()
            yield Stream(response)

    async def until(self, kind: str, after: int = 0) -> JsonObject:
        """Wait for an event of that type behind a sequence and return it."""
        async with self.stream(after) as stream:
            return (await stream.until(kind))[-1]


def user_texts(events: list[JsonObject]) -> list[str]:
    """Return what the user said, in order."""
    items = [event["data"]["item"] for event in events if event["type"] == "item.completed"]
    return [
        "".join(part["text"] for part in item["content"] if part["type"] == "text")
        for item in items
        if item.get("role") == "user"
    ]
