"""An HTTP gateway between client and server that behaves like the worst of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

PAGE = b"<html><body><h1>%d</h1>a page of the gateway's own</body></html>"


@dataclass
class Faults:
    """What the gateway does; the defaults do nothing.

    Attributes:
        idle: seconds after which a request without a response head is answered with 504.
        cut_every: every so many seconds, all connections are cut off, in whatever they are doing.
        first_cut: seconds from the first connection to the first time; None is ``cut_every``.
        prefix: a path in front of the server's own.
        answer: returns the status and headers of the gateway's own answer; None forwards the request.
        swallow: whether to answer 502 although the server has received the request.
        on_request: called with the first line and the body of each request.
        black_hole: until it is set, nothing passes in any direction.
    """

    idle: float | None = None
    cut_every: float | None = None
    first_cut: float | None = None
    prefix: str = ""
    answer: Callable[[str], tuple[int, dict[str, str]] | None] = lambda _line: None
    swallow: Callable[[str, bytes], bool] = lambda _line, _body: False
    black_hole: asyncio.Event | None = None
    on_request: Callable[[str, bytes], object] = lambda _line, _body: None
    seen: list[str] = field(default_factory=list[str])


class Gateway:
    """Forwards HTTP/1.1 to a port of this machine, one upstream connection per request."""

    def __init__(self, port: int, faults: Faults) -> None:
        self._port = port
        self._faults = faults
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._next_cut: float | None = None

    @property
    def url(self) -> str:
        """The base URL for a client."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}{self._faults.prefix}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout_at(self._cut_at()):
                while await self._exchange(reader, writer):
                    pass
        except TimeoutError:
            await self._pass()  # the end of a connection is not seen either
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def _cut_at(self) -> float | None:
        """Return when the next cut is, on the loop's clock."""
        every, now = self._faults.cut_every, asyncio.get_running_loop().time()
        if every is None:
            return None
        if self._next_cut is None:
            self._next_cut = now + (self._faults.first_cut or every)
        while self._next_cut <= now:
            self._next_cut += every
        return self._next_cut

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Handle one request; return whether the connection stays open."""
        faults = self._faults
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *headers = head.split("\r\n")
        lengths = [header for header in headers if header.lower().startswith("content-length:")]
        body = await reader.readexactly(int(lengths[0].partition(":")[2])) if lengths else b""
        faults.seen.append(line)
        faults.on_request(line, body)
        await self._pass()
        method, path, version = line.split(" ")
        if not path.startswith(faults.prefix + "/"):
            return await self._page(writer, 404, {})
        answer = faults.answer(line)
        if answer is not None:
            return await self._page(writer, *answer)
        kept = [header for header in headers if header and not header.lower().startswith("connection:")]
        forwarded = "\r\n".join(
            [f"{method} {path[len(faults.prefix) :]} {version}", *kept, "connection: close"]
        )
        try:
            back, upstream = await asyncio.open_connection("127.0.0.1", self._port)
        except OSError:
            return await self._page(writer, 502, {})
        try:
            upstream.write(forwarded.encode("latin-1") + b"\r\n\r\n" + body)
            try:
                async with asyncio.timeout(faults.idle):
                    response_head = await back.readuntil(b"\r\n\r\n")
            except TimeoutError:
                return await self._page(writer, 504, {})
            if faults.swallow(line, body):
                return await self._page(writer, 502, {})
            if b"text/event-stream" not in response_head:
                whole = response_head + await back.read()
                await self._pass()
                writer.write(whole)
                await writer.drain()
                return False
            writer.write(response_head)
            while data := await back.read(65536):
                await self._pass()
                writer.write(data)
                await writer.drain()
            return False
        finally:
            upstream.transport.abort()
            with contextlib.suppress(OSError):
                await upstream.wait_closed()

    async def _pass(self) -> None:
        if self._faults.black_hole is not None:
            await self._faults.black_hole.wait()

    async def _page(self, writer: asyncio.StreamWriter, status: int, headers: dict[str, str]) -> bool:
        page = PAGE % status
        lines = [f"HTTP/1.1 {status} Gateway", "content-type: text/html", f"content-length: {len(page)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + page)
        await writer.drain()
        return True
