"""A proxy in this process, servers behind it that keep what they get, and clients that send any bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from ipaddress import ip_address

import anyio
import msgspec

from sandbox_agent.egress.allow_list import Address, AllowList
from sandbox_agent.egress.dial import Dialer, Upstream
from sandbox_agent.egress.proxy import Bounds, Proxy
from sandbox_agent.egress.refusals import Refusal

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
MOMENT = 20.0
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"


class Origin:
    """A server that keeps what each connection sends. It answers once, when a head or a hello has arrived.

    Args:
        handler: What it does instead.
        closes: Whether it ends after its answer to a request.
    """

    def __init__(self, handler: Handler | None = None, *, closes: bool = True) -> None:
        self._closes = closes
        self.connected = asyncio.Event()
        self.received: list[bytearray] = []
        self.ended: list[asyncio.Event] = []
        self.port = 0
        self._handler = handler

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connected.set()
        with contextlib.suppress(ConnectionError):
            if self._handler is not None:
                await self._handler(reader, writer)
            else:
                await self._answer(reader, writer)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        mine, ended = bytearray(), asyncio.Event()
        self.received.append(mine)
        self.ended.append(ended)
        answered = False
        while data := await reader.read(65_536):
            mine += data
            if not answered and (b"\r\n\r\n" in mine or mine[0] == 0x16):
                answered = True
                writer.write(OK)
                if self._closes and mine[0] != 0x16:
                    writer.write_eof()
        ended.set()

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncGenerator[Origin]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()


class Client:
    """A connection to the proxy."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> bytes:
        """Return the next head."""
        with anyio.fail_after(MOMENT):
            return await self.reader.readuntil(b"\r\n\r\n")

    async def rest(self) -> bytes:
        """Return everything until the end."""
        with anyio.fail_after(MOMENT):
            return await self.reader.read()

    async def connect(self, target: str) -> None:
        """Open a tunnel."""
        await self.send(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = await self.head()
        assert head.startswith(b"HTTP/1.1 200 "), head


class Proxied:
    """A proxy that runs.

    Attributes:
        port: Its port.
        resolved: The names that it has resolved.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.resolved: list[str] = []

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncGenerator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def talk(self, data: bytes) -> bytes:
        """Send bytes and return everything that comes back."""
        async with self.client() as client:
            await client.send(data)
            return await client.rest()

    async def get(self, url: str, *headers: str) -> bytes:
        """Send a GET request for a URL."""
        return await self.talk("\r\n".join([f"GET {url} HTTP/1.1", *headers, "", ""]).encode())

    @contextlib.asynccontextmanager
    async def refusals(self) -> AsyncGenerator[Callable[[], Awaitable[Refusal]]]:
        """Yield a function that returns the next refusal."""
        async with self.client() as client:
            await client.send(b"GET /refusals HTTP/1.1\r\n\r\n")
            assert b" 200 OK" in await client.head()

            async def following() -> Refusal:
                with anyio.fail_after(MOMENT):
                    return msgspec.json.decode(await client.reader.readline(), type=Refusal)

            yield following


@contextlib.asynccontextmanager
async def proxying(
    *hosts: str,
    names: Mapping[str, Sequence[str]] | None = None,
    upstreams: Mapping[str, Upstream] | None = None,
    bounds: Bounds | None = None,
    port: int = 0,
) -> AsyncGenerator[Proxied]:
    """A proxy with these hosts; ``names`` are all that its resolver knows."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        proxied = Proxied(listener.getsockname()[1])

        async def resolve(host: str, port: int) -> Sequence[Address]:
            proxied.resolved.append(host)
            found = (names or {}).get(host)
            if found is None:
                raise socket.gaierror(socket.EAI_NONAME, "unknown")
            return [ip_address(address) for address in found]

        proxy = Proxy(Dialer(AllowList(hosts), upstreams, resolve), bounds or Bounds())
        task = asyncio.ensure_future(
            proxy.serve(lambda serve: asyncio.start_server(serve, sock=listener, backlog=1_000))
        )
        try:
            yield proxied
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled()


def hello(name: str | None) -> bytes:
    """Return what OpenSSL sends first."""
    context = ssl.create_default_context()
    context.check_hostname = False
    sent = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return sent.read()
