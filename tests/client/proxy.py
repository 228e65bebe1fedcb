"""A TCP proxy that loses connections when told to."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class LossyProxy:
    """Forwards to a server; ``cut`` aborts the connections whose requests begin with a method.

    Attributes:
        requests: the request lines that came, in order.
    """

    def __init__(self, port: int) -> None:
        self.requests: list[str] = []
        self._port = port
        self._open: list[tuple[str, asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._server: asyncio.Server | None = None
        self._came = asyncio.Condition()
        self.refusing: str | None = None

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut("")
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n")
            line = head.decode().strip()
            if self.refusing and line.startswith(self.refusing):
                writer.transport.abort()
                return
            async with self._came:
                self.requests.append(line)
                self._came.notify_all()
            back, upstream = await asyncio.open_connection("127.0.0.1", self._port)
            self._open.append((line, writer, upstream))
            upstream.write(head)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, upstream))
                group.create_task(self._pump(back, writer))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            for side in (writer, upstream):
                if side is not None:
                    side.transport.abort()
                    with contextlib.suppress(OSError):
                        await side.wait_closed()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    def cut(self, method: str) -> int:
        """Abort the connections whose first request line begins so; returns how many."""
        hit = [entry for entry in self._open if entry[0].startswith(method)]
        self._open = [entry for entry in self._open if entry not in hit]
        for _, writer, upstream in hit:
            writer.transport.abort()
            upstream.transport.abort()
        return len(hit)

    async def wait_for(self, method: str, count: int) -> None:
        """Return when so many requests of the method came (as first of their connections)."""
        async with self._came:
            await self._came.wait_for(lambda: sum(line.startswith(method) for line in self.requests) >= count)
