"""An HTTP transport over a Unix socket.

That of httpx2 uses anyio's Unix sockets, which fail in the event loop when a read that has become possible is
canceled at the same time (an InvalidStateError in ``Future.set_result``). These are asyncio's own streams.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import ssl
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import httpcore2
import httpx2


class UnixTransport(httpx2.AsyncHTTPTransport):
    """Sends requests over a Unix socket, without a bound on connections."""

    def __init__(self, path: Path) -> None:
        """Create a transport. It connects with the first request."""
        super().__init__(uds=str(path), verify=False)  # no TLS
        self._pool: httpcore2.AsyncConnectionPool = httpcore2.AsyncConnectionPool(
            uds=str(path), max_connections=None, max_keepalive_connections=100, network_backend=_Backend()
        )


class _Backend(httpcore2.AsyncNetworkBackend):
    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        with _mapped(httpcore2.ConnectTimeout, httpcore2.ConnectError):
            async with asyncio.timeout(timeout):
                return _Stream(*await asyncio.open_unix_connection(path))

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(httpcore2.AsyncNetworkStream):
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore2.ReadTimeout, httpcore2.ReadError):
            async with asyncio.timeout(timeout):
                return await self._reader.read(max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _mapped(httpcore2.WriteTimeout, httpcore2.WriteError):
            async with asyncio.timeout(timeout):
                self._writer.write(buffer)
                await self._writer.drain()

    async def aclose(self) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.UnsupportedProtocol("there is no TLS on a Unix socket")

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            # Whether an idle connection has ended: the reader has read that, or it is about to.
            if self._reader.at_eof() or self._writer.is_closing():
                return True
            poll = select.poll()
            poll.register(self._writer.get_extra_info("socket"), select.POLLIN)
            return bool(poll.poll(0))
        return self._writer.get_extra_info("socket") if info == "socket" else None


@contextlib.contextmanager
def _mapped(timeout: type[Exception], failure: type[Exception]) -> Generator[None]:
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except OSError as error:
        raise failure(str(error)) from error
