"""The relay inside of the sandbox: a port on its loopback interface for programs, and the proxy outside."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from sandbox_agent.egress.http import error_response
from sandbox_agent.egress.refusals import PATH, Refusal
from sandbox_agent.egress.streams import Stream, cancel, close, pump
from sandbox_agent.errors import InvalidRequestError

logger: logging.Logger = logging.getLogger("sandbox_agent.egress")

CONNECT_SECONDS = 10.0
# Each has two descriptors of the server, which needs others for its own clients.
MAX_CONNECTIONS = 256
# The subscription is opened again after this time when the proxy was restarted.
RETRY_SECONDS = 0.2
# A refusal has some hundred bytes; several may arrive at once.
MAX_LINE = 128 * 1024

_SUBSCRIBE = f"GET {PATH} HTTP/1.1\r\nhost: proxy\r\n\r\n".encode()


class Where(NamedTuple):
    """Where the proxy listens: a socket, or a host and a port."""

    path: Path | None
    host: str = ""
    port: int = 0

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect to the proxy.

        Raises:
            OSError: It does not listen there.
        """
        async with asyncio.timeout(CONNECT_SECONDS):
            if self.path is not None:
                return await asyncio.open_unix_connection(self.path)
            return await asyncio.open_connection(self.host, self.port)


def parse_where(text: str) -> Where:
    """Return where a proxy listens: ``unix:PATH`` or ``http://HOST:PORT``.

    Raises:
        InvalidRequestError: It is neither.
    """
    if text.startswith("unix:/"):
        return Where(Path(text.removeprefix("unix:")))
    with contextlib.suppress(ValueError):
        url = urlsplit(text)
        if url.scheme == "http" and url.hostname and url.port and not url.username and url.path in ("", "/"):
            return Where(None, url.hostname, url.port)
    raise InvalidRequestError(f"invalid egress proxy {text!r}: use unix:/PATH or http://HOST:PORT")


class Relay:
    """Passes connections on to the proxy, and reads what it refuses.

    Args:
        where: Where the proxy listens.
        on_refused: Called with each refusal.

    Attributes:
        port: The port on 127.0.0.1.
    """

    def __init__(self, where: Where, on_refused: Callable[[Refusal], None]) -> None:
        self._where = where
        self._on_refused = on_refused
        self.port: int = 0

    @contextlib.asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """Listen while the context lasts."""
        running: set[asyncio.Task[None]] = set()

        def start(work: Coroutine[Any, Any, None]) -> None:
            task = asyncio.ensure_future(work)
            running.add(task)
            task.add_done_callback(running.discard)

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if len(running) > MAX_CONNECTIONS:
                writer.transport.abort()
                return
            start(self._serve(Stream(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        start(self._subscribe())
        try:
            yield
        finally:
            server.close()
            await cancel(running)

    async def _serve(self, client: Stream) -> None:
        streams = [client]
        try:
            try:
                proxy = Stream(*await self._where.connect())
            except OSError as error:
                message = f"the proxy of the sandbox cannot be reached: {error.strerror or error}"
                await client.refuse(error_response(HTTPStatus.BAD_GATEWAY, message))
                return
            streams.append(proxy)
            ways = [asyncio.ensure_future(way) for way in (pump(client, proxy), pump(proxy, client))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)  # one that breaks ends both
            finally:
                await cancel(ways)
        finally:
            await close(*streams)

    async def _subscribe(self) -> None:
        """Read the refusals, also those of a proxy that is started again."""
        while True:
            try:
                await self._read_refusals(Stream(*await self._where.connect()))
            except OSError as error:
                logger.debug("no refusals are read: %s", error)
            except Exception:  # the boundary: the connections are passed on whatever the proxy says
                logger.exception("the refusals of the proxy cannot be read")
            await asyncio.sleep(RETRY_SECONDS)

    async def _read_refusals(self, proxy: Stream) -> None:
        try:
            await proxy.write(_SUBSCRIBE)
            is_head = True
            while await proxy.read_more() and len(proxy.rest) <= MAX_LINE:
                if is_head:
                    head, end, rest = proxy.rest.partition(b"\r\n\r\n")
                    if not end:
                        continue
                    if not head.startswith(b"HTTP/1.1 200 "):
                        return
                    is_head, proxy.rest = False, rest
                *lines, proxy.rest = proxy.rest.split(b"\n")
                for line in lines:
                    self._on_refused(msgspec.json.decode(line, type=Refusal))
        finally:
            await close(proxy)
