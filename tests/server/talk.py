"""Talking ACP to a server over real HTTP: envelopes in, events out."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx2

from sandbox_agent.engine.sse import SseDecoder, SseEvent
from tests.support.servers import ServerProcess

__all__ = ["Stream", "Talk", "client_of", "envelope", "talk"]

JsonObject = dict[str, Any]
# Longer than anything here takes; a test that waits so long has failed.
TIMEOUT = 60.0


def envelope(method: str, params: Any = None, request_id: Any = None) -> JsonObject:
    """Return a request, or a notification where no id is given."""
    body: JsonObject = {"jsonrpc": "2.0", "method": method}
    if params is not None:
        body["params"] = params
    if request_id is not None:
        body["id"] = request_id
    return body


@asynccontextmanager
async def client_of(server: ServerProcess, **headers: str) -> AsyncGenerator[httpx2.AsyncClient]:
    """Return an HTTP client of the server, its token in the headers."""
    if server.token:
        headers.setdefault("authorization", f"Bearer {server.token}")
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=20)
    async with httpx2.AsyncClient(
        base_url=server.url, headers=headers, timeout=TIMEOUT, limits=limits
    ) as client:
        yield client


class Stream:
    """An open event stream.

    Attributes:
        epoch: the feed's epoch, as the header says.
        events: all events so far.
    """

    def __init__(self, response: httpx2.Response) -> None:
        self.epoch = response.headers["sandbox-agent-epoch"]
        self.events: list[SseEvent] = []
        self._chunks = response.aiter_bytes()
        self._decoder = SseDecoder()
        self._ready: list[SseEvent] = []

    async def next(self) -> SseEvent | None:
        """Return the next event, None at the end of the stream."""
        while not self._ready:
            chunk = await anext(self._chunks, None)
            if chunk is None:
                return None
            self._ready = self._decoder.feed(chunk)
        event = self._ready.pop(0)
        self.events.append(event)
        return event

    async def raw(self) -> bytes:
        """Return the next bytes as they are."""
        return await anext(self._chunks)

    async def until(self, wanted: str) -> JsonObject:
        """Read up to the first envelope that has the text in it, and return it."""
        while (event := await self.next()) is not None:
            if wanted in event.data.decode():
                found: JsonObject = json.loads(event.data)
                return found
        raise AssertionError(f"the stream ended without {wanted!r}: {self.ids}")

    async def rest(self) -> None:
        """Read to the end of the stream."""
        while await self.next() is not None:
            pass

    @property
    def ids(self) -> list[int]:
        """The ids so far."""
        return [int(event.id or -1) for event in self.events]

    @property
    def texts(self) -> str:
        """All chunks of the agent's text so far."""
        found: list[str] = []
        for event in self.events:
            message: JsonObject = json.loads(event.data)
            params: JsonObject = message.get("params") or {}
            update: JsonObject = params.get("update") or {}
            if update.get("sessionUpdate") == "agent_message_chunk":
                found.append(update["content"]["text"])
        return "".join(found)


class Talk:
    """One client on one server id with the mock agent."""

    def __init__(self, client: httpx2.AsyncClient, server_id: str, name: str = "") -> None:
        self.client = client
        self.path = f"/v1/acp/{server_id}"
        self.session_id = ""
        self.next_id = 1
        self._headers = {"sandbox-agent-client": name} if name else {}

    async def post(self, body: Any, **query: str) -> httpx2.Response:
        """POST a body as JSON; bytes go as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": "application/json", **self._headers}
        return await self.client.post(self.path, content=content, params=query, headers=headers)

    async def request(self, method: str, params: Any, **query: str) -> JsonObject:
        """Send a request with the next id, and return the answer, which must be 200."""
        request_id, self.next_id = self.next_id, self.next_id + 1
        response = await self.post(envelope(method, params, request_id), **query)
        assert response.status_code == 200, response.text
        answer: JsonObject = response.json()
        assert answer["id"] == request_id
        return answer

    async def open(self, agent: str = "mock") -> None:
        """Start the agent and a session."""
        await self.request("initialize", {"protocolVersion": 1}, agent=agent)
        answer = await self.request("session/new", {"cwd": "/", "mcpServers": []})
        self.session_id = answer["result"]["sessionId"]

    def prompting(self, text: str) -> JsonObject:
        """Return the params of a prompt."""
        return {"sessionId": self.session_id, "prompt": [{"type": "text", "text": text}]}

    async def prompt(self, text: str) -> JsonObject:
        """Prompt and return the answer."""
        return await self.request("session/prompt", self.prompting(text))

    def start(self, text: str) -> asyncio.Task[httpx2.Response]:
        """Prompt without waiting for the answer; the caller awaits or cancels the task."""
        request_id, self.next_id = self.next_id, self.next_id + 1
        return asyncio.ensure_future(self.post(envelope("session/prompt", self.prompting(text), request_id)))

    async def delete(self) -> httpx2.Response:
        """End the connection."""
        return await self.client.delete(self.path)

    @asynccontextmanager
    async def stream(
        self, last_event_id: int | None = None, headers: Mapping[str, str] | None = None, **query: str
    ) -> AsyncGenerator[Stream]:
        """Open the event stream."""
        sent = {"accept": "text/event-stream", **self._headers, **(headers or {})}
        if last_event_id is not None:
            sent["last-event-id"] = str(last_event_id)
        async with self.client.stream("GET", self.path, headers=sent, params=query) as response:
            assert response.status_code == 200, await response.aread()
            yield Stream(response)


@asynccontextmanager
async def talk(server: ServerProcess, server_id: str = "s", *, open_: bool = True) -> AsyncGenerator[Talk]:
    """Return a client on a new server id; the connection is deleted at the end, where there is a server."""
    async with client_of(server) as client:
        talking = Talk(client, server_id)
        if open_:
            await talking.open()
        try:
            yield talking
        finally:
            with contextlib.suppress(httpx2.TransportError):  # where the test has ended the server
                await talking.delete()
