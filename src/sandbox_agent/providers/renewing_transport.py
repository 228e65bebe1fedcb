"""The transport to a sandbox that ends if nothing renews its timeout."""

from __future__ import annotations

import logging
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import httpx2

from sandbox_agent.errors import SandboxAgentError

logger: logging.Logger = logging.getLogger("sandbox_agent.providers")

clock: Callable[[], float] = time.monotonic


class RenewingTransport(httpx2.AsyncHTTPTransport):
    """A transport that renews the sandbox's timeout while requests are sent and streams are read.

    It renews before a request or between two parts of a response, at most once per interval.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], renew: Callable[[], Awaitable[object]], interval: float
    ) -> None:
        """Create a transport. The timeout is taken to be new.

        Args:
            url: The server's URL, to which the environment may name a proxy.
            headers: Headers that the service needs.
            renew: Sets the timeout. Its errors are logged: the request then shows what is wrong.
            interval: Seconds between renewals.
        """
        # A client with a transport ignores the environment's proxies.
        target = httpx2.URL(url)
        proxies = urllib.request.getproxies()
        proxy = proxies.get(target.scheme) or proxies.get("all")
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=100)
        is_direct = bool(urllib.request.proxy_bypass(target.host))
        super().__init__(limits=limits, proxy=None if is_direct else proxy)
        self._headers = dict(headers)
        self._renew = renew
        self._interval = interval
        self._due: float = clock() + interval

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request."""
        request.headers.update(self._headers)
        await self._renew_if_due()
        response = await super().handle_async_request(request)
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _RenewingStream(response.stream, self._renew_if_due)
        return response

    async def _renew_if_due(self) -> None:
        if clock() < self._due:
            return
        self._due = clock() + self._interval
        try:
            await self._renew()
        except SandboxAgentError as error:
            logger.warning("the sandbox's timeout could not be renewed: %s", error)


class _RenewingStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, renew_if_due: Callable[[], Awaitable[None]]) -> None:
        self._stream = stream
        self._renew_if_due = renew_if_due

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            await self._renew_if_due()
            yield part

    async def aclose(self) -> None:
        await self._stream.aclose()
