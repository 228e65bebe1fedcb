"""A TCP proxy that loses connections when told to."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass(eq=False)
class _Link:
    line: str
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter


class LossyProxy:
    """Forwards to a server; ``cut`` aborts the connections whose requests begin with a method.

    Attributes:
        down: abort every new connection.
    """

    def __init__(self, port: int) -> None:
        self.down = False
        self._port = port
        self._open: list[_Link] = []
        self._changed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut("")
        await self._server.wait_closed()
        if self._handlers:
            await asyncio.wait(self._handlers)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.down:
            writer.transport.abort()
            return
        handler = asyncio.create_task(self._serve(reader, writer))
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        try:
            head = await reader.readuntil(b"\r\n")
            line = head.decode().strip()
            back, upstream = await asyncio.open_connection("127.0.0.1", self._port)
            link = _Link(line, writer, upstream)
            self._open.append(link)
            self._changed.set()
            upstream.write(head)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, upstream, link))
                group.create_task(self._pump(back, writer))
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            for side in (writer, upstream):
                if side is not None:
                    side.transport.abort()
                    with contextlib.suppress(OSError):
                        await side.wait_closed()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: _Link | None = None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if link is not None and data.startswith((b"GET ", b"POST ", b"DELETE ")):
                    link.line = data.partition(b"\r\n")[0].decode()
                    self._changed.set()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    async def cut_next(self, method: str) -> None:
        """Abort such a connection, as soon as there is one."""
        while not self.cut(method):
            self._changed.clear()
            await self._changed.wait()

    def cut(self, method: str) -> int:
        """Abort the connections whose newest request line begins so; returns how many."""
        hit = [link for link in self._open if link.line.startswith(method)]
        self._open = [link for link in self._open if link not in hit]
        for link in hit:
            link.client.transport.abort()
            link.server.transport.abort()
        return len(hit)
