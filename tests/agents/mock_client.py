"""A raw ACP client for tests: one JSON line at a time to and from a real child."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

Message = dict[str, Any]

PATIENCE = 20
_MAX_LINE = 16 * 1024 * 1024


class MockClient:
    """Speaks to a mock agent. ``messages`` holds all that it read."""

    def __init__(self, process: Process) -> None:
        assert process.stdin
        assert process.stdout
        self.process = process
        self._stdin = process.stdin
        self._stdout = BufferedByteReceiveStream(process.stdout)
        self._ids = 100
        self.messages: list[Message] = []

    async def send(self, **message: Any) -> None:
        await self._stdin.send(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

    async def send_line(self, line: bytes) -> None:
        await self._stdin.send(line + b"\n")

    async def close_stdin(self) -> None:
        await self._stdin.aclose()

    async def line(self) -> bytes:
        return await self._stdout.receive_until(b"\n", _MAX_LINE)

    async def read(self) -> Message:
        message = cast("Message", json.loads(await self.line()))
        self.messages.append(message)
        return message

    async def start(self, method: str, **params: Any) -> int:
        """Send a request and return its id."""
        self._ids += 1
        await self.send(id=self._ids, method=method, params=params)
        return self._ids

    async def response(self, request_id: int) -> Message:
        """Read on until the response comes."""
        while True:
            message = await self.read()
            if message.get("id") == request_id and "method" not in message:
                return message

    async def responses(self, request_ids: set[int]) -> None:
        """Read on until all of them are answered, in any order."""
        open_ids = set(request_ids)
        while open_ids:
            message = await self.read()
            if "method" not in message:
                open_ids.discard(message["id"])

    async def call(self, method: str, **params: Any) -> Message:
        """Send a request and return its response."""
        return await self.response(await self.start(method, **params))

    async def new_session(self) -> str:
        response = await self.call("session/new", cwd="/work", mcpServers=[])
        return str(response["result"]["sessionId"])

    async def start_prompt(self, session: str, text: str) -> int:
        return await self.start("session/prompt", sessionId=session, prompt=[{"type": "text", "text": text}])

    async def prompt(self, session: str, text: str) -> Message:
        """Prompt and return the result; ``messages`` then holds this turn's only."""
        self.messages.clear()
        response = await self.response(await self.start_prompt(session, text))
        return cast("Message", response["result"])

    async def until(self, method: str) -> Message:
        """Read on until a request or notification of that method comes."""
        while True:
            message = await self.read()
            if message.get("method") == method:
                return message

    async def until_text(self, text: str) -> None:
        """Read on until the agent has said that text."""
        while text not in self.text():
            await self.read()

    def updates(self, kind: str | None = None) -> list[Message]:
        updates = [m["params"]["update"] for m in self.messages if m.get("method") == "session/update"]
        return [u for u in updates if kind is None or u["sessionUpdate"] == kind]

    def text(self, kind: str = "agent_message_chunk") -> str:
        return "".join(update["content"]["text"] for update in self.updates(kind))


@asynccontextmanager
async def mock_agent(**env: str) -> AsyncGenerator[MockClient]:
    """Run a mock agent in its own process group and kill it in the end."""
    process = await anyio.open_process(
        [sys.executable, "-P", "-m", "sandbox_agent.agents.mock"],
        stderr=subprocess.PIPE,
        env={"PATH": "/usr/bin:/bin", **env},
        start_new_session=True,
    )
    try:
        with anyio.fail_after(PATIENCE):
            yield MockClient(process)
    finally:
        if process.returncode is None:
            process.kill()
        with anyio.CancelScope(shield=True):
            await process.wait()
            await process.aclose()
