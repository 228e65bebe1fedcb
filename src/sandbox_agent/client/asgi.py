"""A transport that calls an ASGI application in this process, and returns responses while they are made."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias, cast

import httpx2

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

_Message: TypeAlias = MutableMapping[str, Any]
AsgiApp: TypeAlias = Callable[
    [MutableMapping[str, Any], Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]],
    Awaitable[None],
]
# How long requests may take to end once the transport was closed; what is left is cancelled.
CLOSE_SECONDS = 2.0
# Parts of a response that wait for the reader; then the application waits.
_PARTS = 4


class ASGITransport(httpx2.AsyncBaseTransport):
    """Sends requests to an ASGI application in this process. It runs in the event loop of the caller.

    Unlike ``httpx2.ASGITransport``, it returns a response when its head was sent, so streams can be read. The
    application's lifespan is not run: enter it yourself.

    Args:
        app: The application.
        root_path: Where the application is mounted, as in ``httpx2.ASGITransport``.
        client: The address that the application sees.
    """

    def __init__(
        self, app: AsgiApp, *, root_path: str = "", client: tuple[str, int] = ("127.0.0.1", 50000)
    ) -> None:
        self._app = app
        self._root_path = root_path
        self._client = client
        self._exchanges: set[_Exchange] = set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the response as soon as the application has sent its head.

        Raises:
            httpx2.RemoteProtocolError: The application has failed.
            httpx2.ReadTimeout: It has sent nothing within the read timeout of the request.
        """
        assert isinstance(request.stream, httpx2.AsyncByteStream)
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "scheme": request.url.scheme,
            "path": request.url.path,
            "raw_path": request.url.raw_path.partition(b"?")[0],
            "query_string": request.url.query,
            "server": (request.url.host, request.url.port),
            "client": self._client,
            "root_path": self._root_path,
        }
        exchange = _Exchange(request)
        exchange.task = asyncio.create_task(exchange.run(self._app, scope))
        self._exchanges.add(exchange)
        exchange.task.add_done_callback(lambda _: self._exchanges.discard(exchange))
        try:
            status, headers = await exchange.head()
        except BaseException:
            exchange.disconnect()
            raise
        return httpx2.Response(status, headers=headers, stream=exchange)

    async def aclose(self) -> None:
        """Disconnect all clients, and wait until their requests have ended."""
        tasks = [exchange.task for exchange in self._exchanges if exchange.task is not None]
        for exchange in list(self._exchanges):
            exchange.disconnect()
        if not tasks:
            return
        _, left = await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)


class _Exchange(httpx2.AsyncByteStream):
    """One request and its response, which is the body's stream."""

    def __init__(self, request: httpx2.Request) -> None:
        self.task: asyncio.Task[None] | None = None
        self._request = request
        self._is_head = request.method == "HEAD"
        stream = cast("httpx2.AsyncByteStream", request.stream)
        self._body: AsyncIterator[bytes] | None = stream.__aiter__()
        self._disconnected = asyncio.Event()
        self._parts: asyncio.Queue[_Message | Exception | None] = asyncio.Queue(_PARTS)
        timeouts: dict[str, Any] = request.extensions.get("timeout", {})
        self._read_timeout: float | None = timeouts.get("read")

    async def run(self, app: AsgiApp, scope: dict[str, Any]) -> None:
        end: Exception | None = None
        try:
            await app(scope, self._receive, self._send)
        except asyncio.CancelledError:
            self.disconnect()
            raise
        except Exception as error:
            logger.exception("the application failed: %s %s", scope["method"], scope["path"])
            end = error
        await self._put(end)

    async def _put(self, part: _Message | Exception | None) -> None:
        """Add a part for the reader; it is dropped if the reader has left."""
        if self._disconnected.is_set():
            return
        putting = asyncio.ensure_future(self._parts.put(part))
        leaving = asyncio.ensure_future(self._disconnected.wait())
        try:
            await asyncio.wait({putting, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()
            leaving.cancel()

    async def _receive(self) -> _Message:
        if self._body is not None:
            try:
                return {"type": "http.request", "body": await anext(self._body), "more_body": True}
            except StopAsyncIteration:
                self._body = None
                return {"type": "http.request", "body": b"", "more_body": False}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: _Message) -> None:
        if message["type"] == "http.response.start" or (message.get("body") and not self._is_head):
            await self._put(message)

    def disconnect(self) -> None:
        self._disconnected.set()

    async def _next(self) -> _Message | None:
        """Return the next message; None at the end of the response."""
        getting = asyncio.ensure_future(self._parts.get())
        leaving = asyncio.ensure_future(self._disconnected.wait())
        try:
            await asyncio.wait(
                {getting, leaving}, timeout=self._read_timeout, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            getting.cancel()
            leaving.cancel()
        if not getting.done():
            if self._disconnected.is_set():
                raise httpx2.ReadError("the transport was closed", request=self._request)
            raise httpx2.ReadTimeout(
                f"the application has sent nothing for {self._read_timeout:g} s", request=self._request
            )
        part = getting.result()
        if isinstance(part, Exception):
            raise httpx2.RemoteProtocolError(
                f"the application failed: {part!r}", request=self._request
            ) from part
        return part

    async def head(self) -> tuple[int, list[tuple[bytes, bytes]]]:
        message = await self._next()
        if message is None:
            raise httpx2.RemoteProtocolError(
                "the application has returned without a response", request=self._request
            )
        return message["status"], list(message.get("headers", ()))

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self._next()) is not None:
            yield message["body"]

    async def aclose(self) -> None:
        self.disconnect()


def streaming(transport: httpx2.AsyncBaseTransport | None) -> httpx2.AsyncBaseTransport | None:
    """Return a transport that streams for one of httpx2 or httpx that does not; any other as it is."""
    kind = type(transport)
    if kind.__name__ != "ASGITransport" or kind.__module__.partition(".")[0] not in ("httpx", "httpx2"):
        return transport
    given: Any = transport
    # The client's default address would be that of a client that cannot read streams.
    address = (given.client[0], given.client[1] if given.client[1] != 123 else 50000)
    return ASGITransport(given.app, root_path=given.root_path, client=address)
