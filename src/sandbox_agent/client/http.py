"""HTTP to one sandbox-agent server: base URL, token, answers that are errors raised as errors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import Any, cast

import httpx2

from sandbox_agent.errors import ConnectionLostError, SandboxAgentError, error_from_problem
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads

__all__ = ["DEFAULT_BASE_URL", "Http", "quote_segment", "raise_for_problem"]

# Where requests go when only a transport was given: it decides about the rest.
DEFAULT_BASE_URL = "http://sandbox-agent"
CONNECT_TIMEOUT = 10.0
WRITE_TIMEOUT = 60.0
# A prompt's POST is silent for as long as its turn lasts, so reads are not timed by default.
READ_TIMEOUT = None
# Helpers (health, agents) answer from memory or run an installer.
HELPER_READ_TIMEOUT = 600.0
# A server closes idle connections after 5 s (uvicorn): reusing one at that moment loses the request.
KEEPALIVE_EXPIRY = 2.0


class Http:
    """One pooled client; many long POSTs and streams at once never wait for each other.

    Raises:
        ValueError: the address or the token can't be one.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        if transport is None:
            _check_url(base_url)
        if token and not token.isprintable():
            raise ValueError("the token holds a line break or another character that no header can carry")
        self.base_url: str = base_url.rstrip("/")
        merged = httpx2.Headers(dict(headers or {}))
        merged["Accept-Encoding"] = "identity"
        if token:
            merged["Authorization"] = f"Bearer {token}"
        self._client = httpx2.AsyncClient(
            headers=merged,
            transport=transport,
            timeout=httpx2.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT, write=WRITE_TIMEOUT),
            limits=httpx2.Limits(
                max_connections=None, max_keepalive_connections=100, keepalive_expiry=KEEPALIVE_EXPIRY
            ),
        )

    def url(self, path: str) -> str:
        """Return the absolute URL of a path of the contract."""
        return self.base_url + path

    def _check_open(self) -> None:
        if self._client.is_closed:
            raise httpx2.ConnectError("this client is disposed")

    async def json(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | None] | None = None,
        body: object = None,
        read_timeout: float | None = HELPER_READ_TIMEOUT,
    ) -> Any:
        """Send and decode the JSON answer; None for an empty one.

        Raises:
            ConnectionLostError: the server can't be reached.
            SandboxAgentError: the answer is an error; the subclass of its urn where it has one.
        """
        answer = await self.fetch(method, path, params=params, body=body, read_timeout=read_timeout)
        if not answer.content:
            return None
        try:
            return loads(answer.content)
        except InvalidEnvelopeError as error:
            raise SandboxAgentError(f"{method} {path}: the answer is not JSON ({error})") from error

    async def fetch(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | None] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        read_timeout: float | None = HELPER_READ_TIMEOUT,
    ) -> httpx2.Response:
        """Send JSON and return the answer, its body read; errors as ``json``."""
        try:
            self._check_open()
            response = await self._client.request(
                method,
                self.url(path),
                params={key: value for key, value in (params or {}).items() if value is not None},
                content=None if body is None else dumps(body),
                headers={
                    "Accept": "application/json",
                    **({} if body is None else {"Content-Type": "application/json"}),
                    **(headers or {}),
                },
                timeout=httpx2.Timeout(
                    READ_TIMEOUT, connect=CONNECT_TIMEOUT, write=WRITE_TIMEOUT, read=read_timeout
                ),
            )
        except httpx2.TransportError as error:
            raise ConnectionLostError(
                f"{method} {path}: no answer from {self.base_url} ({describe(error)})"
            ) from error
        raise_for_problem(response.status_code, response.content)
        return response

    async def send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Send bytes and return status and body; nothing is judged.

        Raises:
            httpx2.TransportError: what the transport says.
        """
        self._check_open()
        response = await self._client.request(
            method, self.url(path), content=content, params=params, headers=headers
        )
        return response.status_code, response.content

    @contextlib.asynccontextmanager
    async def stream(
        self,
        path: str,
        *,
        params: Mapping[str, str],
        headers: Mapping[str, str],
        read_timeout: float,
        method: str = "GET",
        content: bytes | None = None,
    ) -> AsyncGenerator[httpx2.Response]:
        """Open a request whose answer's body is read as it comes."""
        timeout = httpx2.Timeout(
            READ_TIMEOUT, connect=CONNECT_TIMEOUT, write=WRITE_TIMEOUT, read=read_timeout
        )
        self._check_open()
        async with self._client.stream(
            method, self.url(path), params=params, headers=headers, timeout=timeout, content=content
        ) as response:
            yield response

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def _check_url(base_url: str) -> None:
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"base_url {base_url!r} can't be read: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError(f"base_url {base_url!r} is no HTTP address: one looks like 'http://127.0.0.1:2468'")
    if url.port is not None and not 0 < url.port < 65_536:
        raise ValueError(f"base_url {base_url!r} has a port that does not exist")


def describe(error: BaseException) -> str:
    """Return an exception as one readable phrase."""
    return str(error) or type(error).__name__


def raise_for_problem(status: int, body: bytes) -> None:
    """Raise the error for a status of 400 or more."""
    if status < 400:
        return
    try:
        document: object = loads(body)
    except InvalidEnvelopeError:
        document = None
    problem = cast("dict[str, Any]", document) if isinstance(document, dict) else None
    raise error_from_problem(status, problem)


def quote_segment(segment: str) -> str:
    """Return a path segment with everything but unreserved characters escaped."""
    from urllib.parse import quote

    return segment if segment.replace("-", "").isalnum() and segment.isascii() else quote(segment, safe="")
