"""A viewer of a terminal, over a raw WebSocket."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
from websockets.asyncio.client import ClientConnection, connect, unix_connect
from websockets.exceptions import ConnectionClosed

from tests.support.servers import ServerProcess

TOKEN = "s3cret-token-0123456789"


class View:
    """One viewer.

    Attributes:
        output: the terminal's bytes so far.
        frames: the other messages so far.
        code: the close code, once it is disconnected.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.output = b""
        self.frames: list[dict[str, Any]] = []
        self.code: int | None = None

    async def receive(self) -> bool:
        """Receive one message, and return whether there was one."""
        try:
            with anyio.fail_after(15):
                message = await self.socket.recv()
        except ConnectionClosed as closed:
            self.code = closed.rcvd.code if closed.rcvd else 1006
            return False
        if isinstance(message, bytes):
            self.output += message
        else:
            self.frames.append(json.loads(message))
        return True

    async def says(self, text: bytes) -> bytes:
        """Receive until the output has a text, and return it."""
        while text not in self.output:
            assert await self.receive(), (self.output, self.frames, self.code)
        return self.output

    async def frame(self, kind: str) -> dict[str, Any]:
        """Receive until there is a message of a type; remove and return it."""
        while True:
            for frame in self.frames:
                if frame["type"] == kind:
                    self.frames.remove(frame)
                    return frame
            assert await self.receive(), (self.output, self.frames, self.code)

    async def rest(self) -> bytes:
        """Receive until it is disconnected, and return all output."""
        parts = [self.output]
        while True:
            self.output = b""
            if not await self.receive():
                break
            parts.append(self.output)
        self.output = b"".join(parts)
        return self.output

    async def send(self, **frame: Any) -> None:
        """Send a message."""
        await self.socket.send(json.dumps(frame))

    async def type(self, text: str) -> None:
        """Send input."""
        data = base64.b64encode(text.encode()).decode()
        await self.send(type="input", data=data, encoding="base64")


class Terminals:
    """A server, and what it is asked for terminals."""

    def __init__(self, server: ServerProcess, client: httpx2.AsyncClient) -> None:
        self.server = server
        self.client = client

    async def create(self, command: str, *args: str, **body: Any) -> str:
        """Create a process with a terminal, and return its id."""
        answer = await self.client.post(
            "/v1/processes", json={"command": command, "args": args, "tty": True, **body}
        )
        assert answer.status_code == 200, answer.text
        return str(answer.json()["id"])

    async def shell(self, **body: Any) -> str:
        """Create a shell whose prompt is "> "."""
        return await self.create("sh", "-i", env={"PS1": "> ", "ENV": ""}, **body)

    async def get(self, process: str) -> dict[str, Any]:
        """Return a process."""
        found: dict[str, Any] = (await self.client.get(f"/v1/processes/{process}")).json()
        return found

    async def kill(self, process: str) -> dict[str, Any]:
        """Kill a process."""
        answer = await self.client.post(f"/v1/processes/{process}/kill?waitMs=10000")
        found: dict[str, Any] = answer.json()
        return found

    @asynccontextmanager
    async def view(self, process: str, *, max_queue: int = 16) -> AsyncGenerator[View]:
        """Open the terminal of a process."""
        url = f"{self.server.own_url.replace('http', 'ws')}/v1/processes/{process}/terminal/ws"
        headers = {"Authorization": f"Bearer {self.server.token}"} if self.server.token else {}
        async with connect(
            url, additional_headers=headers, max_size=None, max_queue=max_queue, compression=None
        ) as socket:
            view = View(socket)
            assert await view.frame("ready") == {"type": "ready", "processId": process}
            yield view


@asynccontextmanager
async def terminals(server: ServerProcess) -> AsyncGenerator[Terminals]:
    """Use the terminals of a server."""
    headers = {"Authorization": f"Bearer {server.token}"} if server.token else {}
    async with httpx2.AsyncClient(base_url=server.own_url, headers=headers, timeout=30) as client:
        yield Terminals(server, client)


@asynccontextmanager
async def view_by_path(socket_path: str, process: str) -> AsyncGenerator[View]:
    """Open the terminal of a process of a server at a Unix socket."""
    uri = f"ws://localhost/v1/processes/{process}/terminal/ws"
    async with unix_connect(socket_path, uri, compression=None) as socket:
        yield View(socket)
