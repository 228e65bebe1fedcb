"""A thin HTTP client for measuring: raw sockets, so that the servers are what is measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from typing import Any, cast

__all__ = ["Connection", "EventReader", "end_session", "open_session", "percentile"]

END_SECONDS = 2.0
# What may stand behind the burst's last event: its frame, the prompt's answer, a comment.
TAIL_BYTES = 2048


class Connection:
    """One keep-alive connection; answers with a Content-Length only."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def open(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 26)

    def close(self) -> None:
        """Disconnect."""
        if self._writer is not None:
            self._writer.close()

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request and return the status and the body."""
        if self._writer is None:
            await self.open()
        assert self._reader is not None
        assert self._writer is not None
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self._writer.write(head.encode() + body)
        header = await self._reader.readuntil(b"\r\n\r\n")
        status = int(header[9:12])
        length = re.search(rb"content-length: (\d+)", header, re.IGNORECASE)
        answer = await self._reader.readexactly(int(length[1])) if length else b""
        return status, answer

    async def rpc(self, path: str, request_id: int, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a JSON-RPC request and return the response."""
        envelope = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
        status, answer = await self.request("POST", path, json.dumps(envelope).encode())
        if status != 200:
            raise RuntimeError(f"{method}: {status} {answer.decode()}")
        decoded: dict[str, Any] = json.loads(answer)
        return decoded


async def open_session(port: int, agent: str, server_id: str) -> tuple[Connection, str, str]:
    """Start an agent and a session; return the connection, the path and the session id."""
    connection = Connection(port)
    path = f"/v1/acp/{server_id}"
    await connection.rpc(f"{path}?agent={agent}", 1, "initialize", {"protocolVersion": 1})
    answer = await connection.rpc(path, 2, "session/new", {"cwd": "/tmp", "mcpServers": []})
    session_id: str = answer["result"]["sessionId"]
    return connection, path, session_id


async def end_session(connection: Connection, path: str) -> None:
    """End the agent and disconnect."""
    # the published server's DELETE hangs here now and then
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(connection.request("DELETE", path), END_SECONDS)
    connection.close()


class EventReader(asyncio.Protocol):
    """A viewer of the event stream that does next to nothing but keep what it got for a later check.

    Attributes:
        size: bytes that came.
        last_at: when the last of them came.
        complete: done when the last event of the burst came.
    """

    def __init__(self, path: str, events: int, size: int) -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.complete: asyncio.Future[None] = loop.create_future()
        self.size = 0
        self.last_at = 0.0
        self.parts: list[bytes] = []
        self._last = b'"%06d ' % events
        self._window = size + TAIL_BYTES
        self._tail = b""
        self._path = path
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, port: int, path: str, *, events: int, size: int) -> EventReader:
        """Open the stream, wait for its head, and wait for that many events of that size."""
        loop = asyncio.get_running_loop()
        _, reader = await loop.create_connection(lambda: cls(path, events, size), "127.0.0.1", port)
        await reader.opened
        return reader

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        headers = "Host: localhost\r\nAccept: text/event-stream\r\n\r\n"
        transport.write(f"GET {self._path} HTTP/1.1\r\n{headers}".encode())

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            self.opened.set_result(None)
        self.parts.append(data)
        self.size += len(data)
        self.last_at = time.perf_counter()
        self._tail = (self._tail + data[-self._window :])[-self._window :]
        if self._last in self._tail and not self.complete.done():
            self.complete.set_result(None)

    def close(self) -> None:
        """Disconnect."""
        if self._transport is not None:
            self._transport.abort()

    def numbers(self) -> list[int]:
        """Return the running numbers of the burst that arrived, in order."""
        # chunked transfer coding may cut anywhere: its size lines are taken out first
        raw = b"".join(self.parts)
        body: list[bytes] = []
        position = raw.index(b"\r\n\r\n") + 4
        while position < len(raw):
            end = raw.find(b"\r\n", position)
            if end < 0:
                break
            size = int(raw[position:end], 16)
            body.append(raw[end + 2 : end + 2 + size])
            position = end + 4 + size
        return [int(number) for number in re.findall(rb'"text": ?"(\d{6,}) ', b"".join(body))]


def percentile(values: list[float], share: float) -> float:
    """Return the value below which that share of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
