"""An HTTP transport to a port of a pod, through the API server's WebSockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any

import httpcore2
import httpx2

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.providers.http_service import open_socket
from sandbox_agent.providers.kubernetes_access import Access

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

_SUBPROTOCOL = "v4.channel.k8s.io"
# The first byte of each message. The first message of each is the port.
_DATA, _ERROR = 0, 1
_PART = 32_768
# What the cluster says of a port on which nothing listens.
_REFUSED = "refused"


class ForwardTransport(httpx2.AsyncHTTPTransport):
    """Sends requests to a port of a pod. Each is a WebSocket to the API server.

    None is used again: whether the other end of an idle one still exists shows only when a request is lost.
    """

    def __init__(self, path: str, access: Callable[[], Awaitable[Access]]) -> None:
        """Create a transport. It connects with the first request.

        Args:
            path: The path and query of the API server's URL that forwards the port.
            access: Returns how the API server is reached.
        """
        super().__init__(verify=False)  # no TLS within the connection
        self._pool: httpcore2.AsyncConnectionPool = httpcore2.AsyncConnectionPool(
            max_connections=None, max_keepalive_connections=0, network_backend=_Backend(path, access)
        )


class _Backend(httpcore2.AsyncNetworkBackend):
    def __init__(self, path: str, access: Callable[[], Awaitable[Access]]) -> None:
        self._path = path
        self._access = access

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        async with _mapped(httpcore2.ConnectTimeout, httpcore2.ConnectError, timeout):
            access = await self._access()
            stack = contextlib.AsyncExitStack()
            opened = open_socket(access.url + self._path, access.headers, [_SUBPROTOCOL], access.tls)
            return _Stream(await stack.enter_async_context(opened), stack)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Stream(httpcore2.AsyncNetworkStream):
    def __init__(self, socket: ClientConnection, stack: contextlib.AsyncExitStack) -> None:
        self._socket = socket
        self._stack = stack
        self._rest = b""
        self._opened: set[int] = set()
        self._has_data = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        from websockets.exceptions import ConnectionClosed

        async with _mapped(httpcore2.ReadTimeout, httpcore2.ReadError, timeout):
            while not self._rest:
                try:
                    message = await self._socket.recv(decode=False)
                except ConnectionClosed:
                    return b""
                channel, data = message[0], message[1:]
                if channel not in self._opened:
                    self._opened.add(channel)
                elif channel == _DATA:
                    self._rest = data
                    self._has_data = True
                elif channel == _ERROR and data:
                    text = data.decode(errors="replace")
                    if _REFUSED in text and not self._has_data:
                        raise httpcore2.ConnectError(text)  # the request has not arrived
                    raise ConnectionError(text)
        part, self._rest = self._rest[:max_bytes], self._rest[max_bytes:]
        return part

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        async with _mapped(httpcore2.WriteTimeout, httpcore2.WriteError, timeout):
            for start in range(0, len(buffer), _PART):
                await self._socket.send(bytes([_DATA]) + buffer[start : start + _PART])

    async def aclose(self) -> None:
        await self._stack.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.AsyncNetworkStream:
        raise httpcore2.UnsupportedProtocol("the server in the pod has no TLS")

    def get_extra_info(self, info: str) -> Any:
        # of an idle connection: whether it has ended
        return self._socket.close_code is not None if info == "is_readable" else None


@contextlib.asynccontextmanager
async def _mapped(
    too_late: type[Exception], failure: type[Exception], seconds: float | None
) -> AsyncGenerator[None]:
    from websockets.exceptions import WebSocketException

    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise too_late(str(error)) from error
    except (OSError, WebSocketException, SandboxAgentError) as error:
        raise failure(str(error)) from error
