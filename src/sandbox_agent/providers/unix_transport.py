"""An HTTP transport over a Unix socket.

That of httpx2 uses anyio's Unix sockets, which fail in the event loop when a read that has become possible
is canceled at the same time (an InvalidStateError in ``Future.set_result``). These are plain sockets of
asyncio's loop, from which a response can be read that the server has sent before it closed the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import httpcore2
import httpx2

Check = Callable[[socket.socket], None]


class UnixTransport(httpx2.AsyncHTTPTransport):
    """Sends requests over a Unix socket, without a bound on connections."""

    def __init__(self, path: Path, check: Check | None = None) -> None:
        """Create a transport. It connects with the first request.

        Args:
            path: The socket's path.
            check: Raises OSError if a new connection is not one to the server. None checks nothing.
        """
        super().__init__(uds=str(path), verify=False)  # no TLS
        self._pool: httpcore2.AsyncConnectionPool = httpcore2.AsyncConnectionPool(
            uds=str(path),
            max_connections=None,
            max_keepalive_connections=100,
            network_backend=_Backend(check),
        )


class _Backend(httpcore2.AsyncNetworkBackend):
    def __init__(self, check: Check | None) -> None:
        self._check = check

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        connection = socket.socket(socket.AF_UNIX)
        try:
            with _mapped(httpcore2.ConnectTimeout, httpcore2.ConnectError):
                connection.setblocking(False)
                async with asyncio.timeout(timeout):
                    await asyncio.get_running_loop().sock_connect(connection, path)
                if self._check is not None:
                    self._check(connection)
        except BaseException:
            connection.close()
            raise
        return _Stream(connection)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(httpcore2.AsyncNetworkStream):
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _mapped(httpcore2.ReadTimeout, httpcore2.ReadError):
            async with asyncio.timeout(timeout):
                return await asyncio.get_running_loop().sock_recv(self._socket, max_bytes)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _mapped(httpcore2.WriteTimeout, httpcore2.WriteError):
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_sendall(self._socket, buffer)

    async def aclose(self) -> None:
        self._socket.close()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.UnsupportedProtocol("there is no TLS on a Unix socket")

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # of an idle connection: whether it has ended
            if self._socket.fileno() < 0:
                return True
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return bool(poll.poll(0))
        return self._socket if info == "socket" else None


@contextlib.contextmanager
def _mapped(timeout: type[Exception], failure: type[Exception]) -> Generator[None]:
    try:
        yield
    except TimeoutError as error:
        raise timeout(str(error)) from error
    except OSError as error:
        raise failure(str(error)) from error
