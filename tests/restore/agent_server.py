"""An in-memory server that runs forgetful agents in process: what the SDK needs of ``/v1/acp``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2

from sandbox_agent.engine.sse import encode_messages
from tests.support.forgetful_agent import LATE_SECONDS, ForgetfulAgent

__all__ = ["AgentServer"]

JsonObject = dict[str, Any]
# What the server waits for an answer before it says 504.
REQUEST_TIMEOUT = 0.1


class _Body(httpx2.AsyncByteStream):
    def __init__(self, chunks: asyncio.Queue[bytes | None]) -> None:
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            yield chunk


class _Process:
    """An agent process behind a server id."""

    def __init__(self, habit: str, prompted: Callable[[JsonObject], None]) -> None:
        self.feed: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.waiting: dict[object, asyncio.Future[bytes]] = {}
        self._sequence = 0
        loop = asyncio.get_running_loop()
        self.agent = ForgetfulAgent(
            habit, prompted, self._send, lambda action: loop.call_later(LATE_SECONDS, action)
        )

    def _send(self, message: JsonObject) -> None:
        line = json.dumps({"jsonrpc": "2.0", **message}).encode()
        self._sequence += 1
        self.feed.put_nowait(encode_messages(self._sequence, [line]))
        waiter = self.waiting.pop(message.get("id"), None) if "method" not in message else None
        if waiter is not None and not waiter.done():
            waiter.set_result(line)


class AgentServer(httpx2.AsyncBaseTransport):
    """Starts a process for each server id.

    Args:
        habit: of its agents.

    Attributes:
        prompts: the settings in which each prompt reached an agent.
        posted: what was sent to the agents.
    """

    def __init__(self, habit: str) -> None:
        self.habit = habit
        self.prompts: list[JsonObject] = []
        self.posted: list[JsonObject] = []
        self._processes: dict[str, _Process] = {}

    @property
    def outcomes(self) -> list[str]:
        """The options that the agents' permission requests were answered with."""
        return [outcome for process in self._processes.values() for outcome in process.agent.outcomes]

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        if path == "/v1/health":
            return httpx2.Response(200, json={"status": "ok"})
        if path == "/v1/acp":
            return httpx2.Response(200, json={"servers": [{"serverId": name} for name in self._processes]})
        if not path.startswith("/v1/acp/"):
            return httpx2.Response(200, json={})
        name = path.rpartition("/")[2]
        if request.method == "DELETE":
            process = self._processes.pop(name, None)
            if process is not None:
                process.feed.put_nowait(None)
            return httpx2.Response(204)
        if request.method == "POST" and name not in self._processes and "agent" in request.url.params:
            self._processes[name] = _Process(self.habit, self.prompts.append)
        process = self._processes[name]
        if request.method == "GET":
            return httpx2.Response(200, stream=_Body(process.feed))
        return await self._post(process, json.loads(request.content))

    async def _post(self, process: _Process, message: JsonObject) -> httpx2.Response:
        self.posted.append(message)
        if "id" not in message or "method" not in message:
            process.agent.receive(message)
            return httpx2.Response(202)
        waiter = process.waiting[message["id"]] = asyncio.get_running_loop().create_future()
        process.agent.receive(message)
        try:
            async with asyncio.timeout(None if message["method"] == "session/prompt" else REQUEST_TIMEOUT):
                answer = await waiter
        except TimeoutError:
            problem = {"type": "urn:sandbox-agent:error:timeout", "status": 504, "detail": "no answer"}
            return httpx2.Response(504, json=problem)
        return httpx2.Response(200, content=answer)
