"""The proxy: CONNECT, and requests for http:// URLs. It runs outside of the sandbox.

Each connection of a client carries one request or one tunnel. What a tunnel begins with is read, too: a TLS
hello or a request that names a host which is not allowed is refused. No bodies are kept or logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

from sandbox_agent.egress import refusals
from sandbox_agent.egress.allow_list import Address, read_host
from sandbox_agent.egress.dial import Connected, Dialer, RefusedError
from sandbox_agent.egress.http import (
    MAX_HEAD,
    ChunkedBody,
    Request,
    RequestError,
    error_response,
    read_request,
)
from sandbox_agent.egress.refusals import Refusal, Refusals
from sandbox_agent.egress.streams import Stream, cancel, close, pump
from sandbox_agent.egress.tls import HANDSHAKE, UNRECOGNIZED_NAME, InvalidHelloError, read_server_names

logger: logging.Logger = logging.getLogger("sandbox_agent.egress")

ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_SWITCHED = b"HTTP/1.1 101"
# What servers may take for a request, and what may become one with more bytes.
_REQUEST = re.compile(rb"\s*[^\s\0]+[ \t]+[^\s\0]+[ \t]+HTTP/")
_START = re.compile(rb"\s*(?:[!-~]+(?:[ \t]+(?:[^\s\0]+(?:[ \t]+(?:H(?:T(?:T(?:P)?)?)?)?)?)?)?)?")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one client, and all of them, may use.

    Attributes:
        connections: The number of open connections.
        head_seconds: The time for the head of a request, and for what a tunnel begins with.
        idle_seconds: The time after which a connection without traffic is closed.
    """

    connections: int = 400
    head_seconds: float = 20.0
    idle_seconds: float = 3600.0


class Proxy:
    """Serves clients on a listening socket.

    Args:
        dialer: Connects to the hosts that are allowed.
        bounds: What clients may use.
    """

    def __init__(self, dialer: Dialer, bounds: Bounds = Bounds()) -> None:
        self._dialer = dialer
        self._bounds = bounds
        self._refusals = Refusals()
        self._open = 0

    async def serve(self, listen: Callable[[Callable[..., Any]], Awaitable[asyncio.Server]]) -> None:
        """Serve until cancelled.

        Args:
            listen: Starts a server of asyncio, given its callback: ``lambda serve:
                asyncio.start_unix_server(serve, sock=listener)``.
        """
        async with asyncio.TaskGroup() as tasks:

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                tasks.create_task(self._serve(Stream(reader, writer)))

            server = await listen(accept)
            try:
                await asyncio.Event().wait()
            finally:
                server.close()

    async def wait_alone(self, seconds: float) -> None:
        """Wait until no sandbox has been connected for so many seconds."""
        await self._refusals.wait_alone(seconds)

    async def _serve(self, client: Stream) -> None:
        self._open += 1
        try:
            if self._open > 2 * self._bounds.connections:
                client.abort()  # too many wait already for the answer that there are too many
                return
            if self._open > self._bounds.connections:
                raise RequestError("the proxy has too many connections", HTTPStatus.SERVICE_UNAVAILABLE)
            await _Exchange(client, self._dialer, self._bounds, self._refusals).run()
        except RequestError as error:
            await client.refuse(error.answer)
        except OSError as error:
            logger.debug("a connection broke: %s", error)
        except Exception:  # the boundary: a failure with one connection must not end the others
            logger.exception("a connection failed")
        finally:
            self._open -= 1
            await close(client)


class _Exchange:
    """One connection of a client."""

    def __init__(self, client: Stream, dialer: Dialer, bounds: Bounds, refused: Refusals) -> None:
        self._client = client
        self._dialer = dialer
        self._bounds = bounds
        self._refusals = refused
        self._idle: asyncio.Timeout | None = None
        self._responded: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Answer or forward what the client sends.

        Raises:
            RequestError: It is refused, or fails, and the client is not answered.
        """
        head = await self._read_head()
        if head is None:
            return
        request = read_request(head)
        if request.target is None:
            await self._answer(request)
            return
        try:
            await self._forward(request, *request.target)
        except RefusedError as error:
            self._refusals.report(Refusal(request.user, error.host, error.port, str(error)))
            raise

    async def _forward(self, request: Request, host: str | Address, port: int) -> None:
        is_tunnel = request.method == "CONNECT"
        try:
            server = await self._dialer.connect(host, port, tunnel=is_tunnel)
        except RefusedError as error:
            if not request.user:
                # Git and others name the user only when they are asked.
                status, challenge = HTTPStatus.PROXY_AUTHENTICATION_REQUIRED, 'Basic realm="sandbox-agent"'
                error.answer = error_response(status, str(error), f"proxy-authenticate: {challenge}")
            raise
        try:
            if is_tunnel:
                await self._client.write(ESTABLISHED)
                await self._run_both(self._tunnel(server.stream, host, port), server.stream)
            else:
                await self._run_both(self._send(server, request), server.stream, is_request=True)
        finally:
            await close(server.stream)

    async def _answer(self, request: Request) -> None:
        if request.path != refusals.PATH.encode():
            raise RequestError(
                "this is a proxy, and not a server: set it as HTTP_PROXY and HTTPS_PROXY",
                HTTPStatus.NOT_FOUND,
            )
        if self._refusals.is_full:
            raise RequestError("there are too many subscribers", HTTPStatus.SERVICE_UNAVAILABLE)
        with self._refusals.subscribe() as queue:
            await self._client.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n"
            )
            tasks = [asyncio.ensure_future(way) for way in (self._send_refusals(queue), self._discard())]
            try:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel(tasks)

    async def _send_refusals(self, queue: asyncio.Queue[Refusal]) -> None:
        while True:
            await self._client.write(msgspec.json.encode(await queue.get()) + b"\n")

    async def _run_both(
        self, up: Coroutine[Any, Any, None], server: Stream, *, is_request: bool = False
    ) -> None:
        """Send to the server and pass on what it sends, until both have ended, or the response to a request.

        Raises:
            RequestError: What the client sends is refused.
            OSError: A connection broke.
        """
        down = asyncio.ensure_future(self._pass_down(server))
        pending = {asyncio.ensure_future(up), down}
        tasks = list(pending)
        try:
            async with asyncio.timeout(self._bounds.idle_seconds) as self._idle:
                while pending and not (is_request and down.done()):
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()
        except TimeoutError:
            if self._idle is None or not self._idle.expired():
                raise
            logger.debug("a connection without traffic was closed")
        finally:
            await cancel(tasks)

    def _active(self) -> None:
        if self._idle is not None and not self._idle.expired():
            self._idle.reschedule(asyncio.get_running_loop().time() + self._bounds.idle_seconds)

    async def _pass_down(self, server: Stream) -> None:
        """Pass on what the server sends. Its first bytes say whether it has become a WebSocket."""
        first = b""
        while len(first) < len(_SWITCHED) and (data := await server.read()):
            first += data[: len(_SWITCHED)]
            self._active()
            await self._client.write(data)
        self._responded.set_result(first[: len(_SWITCHED)])
        await pump(server, self._client, self._active)

    # to the server

    async def _send(self, server: Connected, request: Request) -> None:
        """Send one request, and nothing that follows it."""
        proxy = server.proxy
        head = request.forwarded(absolute=proxy is not None, authorization=proxy and proxy.authorization)
        await server.stream.write(head)
        if request.is_websocket:
            if await self._responded == _SWITCHED:
                await pump(self._client, server.stream, self._active)
            return
        await self._send_body(server.stream, request)
        await self._discard()
        server.stream.end()

    async def _send_body(self, server: Stream, request: Request) -> None:
        chunked = ChunkedBody() if request.length is None else None
        left = request.length or 0
        while left or (chunked is not None and not chunked.is_over):
            data = await self._client.read()
            if not data:
                raise ConnectionResetError("the client has ended in its request")
            self._active()
            if chunked is None:
                await server.write(data[:left])
                left -= len(data[:left])
            else:
                await server.write(b"".join(chunked.feed(data)))

    async def _discard(self) -> None:
        while await self._client.read():
            pass

    async def _tunnel(self, server: Stream, host: str | Address, port: int) -> None:
        """Pass on what the client sends, once it is known to name no other host."""
        client = self._client
        if not client.rest and not await client.read_more():
            server.end()
            return
        if client.rest[0] == HANDSHAKE:
            await self._check_hello(host, port)
        elif await self._is_request(host, port):
            await self._send_inner(server, host, port)
            return
        await pump(client, server, self._active)

    async def _is_request(self, host: str | Address, port: int) -> bool:
        entry = self._dialer.hosts.find(host, port)
        if entry is None or entry.port is None:
            return True  # other protocols are for ports that the list names
        client = self._client
        async with self._head_timeout():
            while _START.fullmatch(client.rest) and len(client.rest) <= MAX_HEAD:
                if not await client.read_more():
                    return False
        return len(client.rest) > MAX_HEAD or _REQUEST.match(client.rest) is not None

    async def _check_hello(self, host: str | Address, port: int) -> None:
        try:
            async with self._head_timeout():
                while (names := read_server_names(self._client.rest)) is None:
                    if not await self._client.read_more():
                        raise ConnectionResetError("the client has ended in its hello")
        except InvalidHelloError as error:
            raise RefusedError(host, port, f"the connection is not valid TLS: {error}") from None
        for name in names:
            named = read_host(name)
            if named != host and (named is None or self._dialer.hosts.find(named, port) is None):
                shown = name if named is not None else "what is not a name"
                raise RefusedError(
                    shown, port, f"a connection to {host} asks for it in its TLS handshake", UNRECOGNIZED_NAME
                )

    async def _send_inner(self, server: Stream, host: str | Address, port: int) -> None:
        """Send the one request of a tunnel without TLS."""
        head = await self._read_head()
        if head is None:
            return
        request = read_request(head, tunnel=(host, port))
        assert request.target is not None
        if request.target != (host, port):
            self._dialer.check(*request.target)
        await self._send(Connected(server), request)

    # from the client

    async def _read_head(self) -> bytes | None:
        """Return the head of a request, or None if the client ends before it."""
        client = self._client
        async with self._head_timeout():
            while (end := client.rest.find(b"\r\n\r\n")) < 0:
                if len(client.rest) > MAX_HEAD:
                    break
                if not await client.read_more():
                    return None
        if not 0 <= end <= MAX_HEAD:
            raise RequestError(
                f"the head of the request is larger than {MAX_HEAD} bytes",
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            )
        head, client.rest = client.rest[: end + 4], client.rest[end + 4 :]
        return head

    @contextlib.asynccontextmanager
    async def _head_timeout(self) -> AsyncGenerator[None]:
        try:
            async with asyncio.timeout(self._bounds.head_seconds):
                yield
        except TimeoutError:
            raise RequestError(
                f"the request did not begin within {self._bounds.head_seconds:g} s",
                HTTPStatus.REQUEST_TIMEOUT,
            ) from None
