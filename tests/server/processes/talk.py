"""What tests say to a server about processes."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self

import anyio
import httpx2

from sandbox_agent.engine.sse import SseDecoder

__all__ = ["SECONDS", "Event", "Stream", "Talk", "output"]

JsonObject = dict[str, Any]
SECONDS = 30.0


class Event(NamedTuple):
    """One event of a stream."""

    event: str
    id: int | None
    data: JsonObject


class Stream:
    """The events of a followed log."""

    def __init__(self, response: httpx2.Response) -> None:
        self.response = response
        self._decoder = SseDecoder()
        self._chunks = response.aiter_raw()
        self._events: list[Event] = []

    async def next(self) -> Event | None:
        """Return the next event; None at the end of the stream."""
        with anyio.fail_after(SECONDS):
            while not self._events:
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    return None
                self._events += [
                    Event(found.event, None if found.id is None else int(found.id), json.loads(found.data))
                    for found in self._decoder.feed(chunk)
                ]
        return self._events.pop(0)

    async def rest(self) -> list[Event]:
        """Return the events until the stream ends."""
        found: list[Event] = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


class Talk:
    """A client of a server's processes."""

    def __init__(self, url: str) -> None:
        self.client = httpx2.AsyncClient(base_url=url, timeout=SECONDS)

    async def __aenter__(self) -> Self:
        await self.client.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.client.__aexit__(exc_type, exc, traceback)

    async def post(self, path: str, body: JsonObject | None = None) -> httpx2.Response:
        """POST to a path below ``/v1/processes``."""
        return await self.client.post(f"/v1/processes{path}", json=body)

    async def create(self, command: str, *args: str, **members: Any) -> JsonObject:
        """Create a process."""
        answer = await self.post("", {"command": command, "args": list(args), **members})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def shell(self, script: str, **members: Any) -> JsonObject:
        """Create a process of a shell script."""
        return await self.create("sh", "-c", script, **members)

    async def run(self, script: str, **members: Any) -> JsonObject:
        """Run a shell script to its end."""
        answer = await self.post("/run", {"command": "sh", "args": ["-c", script], **members})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def get(self, process_id: str) -> JsonObject:
        """Return a process."""
        answer = await self.client.get(f"/v1/processes/{process_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def logs(self, process_id: str, **params: Any) -> JsonObject:
        """Return the log of a process."""
        answer = await self.client.get(f"/v1/processes/{process_id}/logs", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def signal(self, process_id: str, what: str, wait_ms: int = 20_000) -> JsonObject:
        """Stop or kill a process, and wait until it has ended."""
        answer = await self.client.post(f"/v1/processes/{process_id}/{what}", params={"waitMs": wait_ms})
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def input(self, process_id: str, text: str) -> httpx2.Response:
        """Write a text to the input of a process."""
        return await self.post(f"/{process_id}/input", {"data": text, "encoding": "utf8"})

    async def configure(self, **members: int) -> JsonObject:
        """Replace some of the limits."""
        before = (await self.client.get("/v1/processes/config")).json()
        answer = await self.post("/config", {**before, **members})
        assert answer.status_code == 200, answer.text
        return answer.json()

    @asynccontextmanager
    async def follow(
        self, process_id: str, last_event_id: int | None = None, **params: Any
    ) -> AsyncGenerator[Stream]:
        """Follow the log of a process."""
        headers = {} if last_event_id is None else {"last-event-id": str(last_event_id)}
        path = f"/v1/processes/{process_id}/logs"
        async with self.client.stream(
            "GET", path, params={"follow": "true", **params}, headers=headers
        ) as response:
            assert response.status_code == 200, await response.aread()
            yield Stream(response)

    async def ended(self, process_id: str) -> JsonObject:
        """Wait until a process has ended for good, and return it."""
        async with self.follow(process_id) as stream:
            last = (await stream.rest())[-1]
        assert last.event == "exit"
        return last.data

    async def printed(self, process_id: str, text: str) -> None:
        """Wait until a process has printed a text."""
        found = b""
        async with self.follow(process_id) as stream:
            while text.encode() not in found:
                event = await stream.next()
                assert event is not None, found
                if event.event == "log":
                    found += base64.b64decode(event.data["data"])


def output(entries: list[JsonObject]) -> bytes:
    """Return the output in some entries of a log."""
    return b"".join(base64.b64decode(entry["data"]) for entry in entries)
