"""HTTP to one sandbox-agent server: base URL, token, and error responses raised as errors."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, Mapping
from functools import cache
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote

import httpx2

from sandbox_agent.client.asgi import streaming
from sandbox_agent.errors import URN_PREFIX, ConnectionLostError, SandboxAgentError, error_from_problem
from sandbox_agent.extras import missing_extra
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, dumps, loads

# The base URL if only a transport was given, which decides where requests are sent.
DEFAULT_BASE_URL = "http://sandbox-agent"
CONNECT_TIMEOUT = 10.0
WRITE_TIMEOUT = 60.0
# A prompt's POST is silent for as long as its turn lasts, so there is no read timeout by default.
READ_TIMEOUT = None
# Other calls (health, agents) respond from memory or run an installer.
HELPER_READ_TIMEOUT = 600.0
# A server closes idle connections after 5 s (uvicorn); a request sent at that moment would be lost.
KEEPALIVE_EXPIRY = 2.0
_PROBLEM_JSON = "application/problem+json"
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F)))


class Http:
    """One pooled client; any number of long POSTs and streams run side by side.

    Raises:
        ValueError: the base URL or the token is invalid.
        MissingExtraError: the environment names a SOCKS proxy, and its extra is not installed.
    """

    def __init__(
        self,
        *,
        base_url: str,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.base_url: str = base_url.rstrip("/")
        self._headers = httpx2.Headers(dict(headers or {}))
        self._headers["Accept-Encoding"] = "identity"
        self._transport = transport
        self._client = self._make_client(no_proxy=_needs_no_proxy(base_url, transport))
        self._set_token(token)

    def _make_client(self, *, no_proxy: bool) -> httpx2.AsyncClient:
        limits = httpx2.Limits(
            max_connections=None, max_keepalive_connections=100, keepalive_expiry=KEEPALIVE_EXPIRY
        )
        self._no_proxy = no_proxy
        # A client with a transport ignores HTTP_PROXY and ALL_PROXY.
        trusted = self._transport is not None or _trusted(
            os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
        )
        transport = streaming(self._transport)
        if no_proxy:
            transport = httpx2.AsyncHTTPTransport(verify=trusted, limits=limits)
        try:
            return httpx2.AsyncClient(
                headers=self._headers,
                verify=trusted,
                transport=transport,
                timeout=_timeout(READ_TIMEOUT),
                limits=limits,
            )
        except ImportError as error:
            raise missing_extra("the SOCKS proxy that the environment names", "socks") from error

    def _set_token(self, token: str | None) -> None:
        if token and not (token.isascii() and token.isprintable()):
            raise ValueError("the token contains a line break or another character that no header can carry")
        if token:
            self._headers["Authorization"] = self._client.headers["Authorization"] = f"Bearer {token}"

    @property
    def is_on_this_machine(self) -> bool:
        """Whether the base URL is one of this machine. Where only a transport is given, that is not known."""
        return is_loopback(httpx2.URL(self.base_url).host)

    async def set_address(
        self, base_url: str, *, token: str | None, transport: httpx2.AsyncBaseTransport | None
    ) -> None:
        """Send all later requests elsewhere. A transport that is replaced is closed.

        Raises:
            ValueError: the base URL or the token is invalid.
        """
        no_proxy = _needs_no_proxy(base_url, transport)
        if transport is not self._transport or no_proxy != self._no_proxy:
            self._transport = transport
            former, self._client = self._client, self._make_client(no_proxy=no_proxy)
            await former.aclose()
        self._set_token(token)
        self.base_url = base_url.rstrip("/")

    def _open_client(self) -> httpx2.AsyncClient:
        if self._client.is_closed:
            raise httpx2.ConnectError("this client is disposed")
        return self._client

    async def json(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | None] | None = None,
        body: object = None,
        read_timeout: float | None = HELPER_READ_TIMEOUT,
    ) -> Any:
        """Send a request and return the decoded JSON response; None for an empty one.

        Raises:
            ConnectionLostError: the server cannot be reached.
            SandboxAgentError: the response is an error; the subclass of its URN if it has one.
        """
        answer = await self.fetch(method, path, params=params, body=body, read_timeout=read_timeout)
        if not answer.content:
            return None
        try:
            return loads(answer.content)
        except InvalidEnvelopeError as error:
            raise SandboxAgentError(f"{method} {path}: the response is not JSON ({error})") from error

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
        """Send JSON and return the response with its body; raises as ``json``."""
        content_type = {} if body is None else {"Content-Type": "application/json"}

        async def send() -> httpx2.Response:
            return await self._open_client().request(
                method,
                self.base_url + path,
                params={key: value for key, value in (params or {}).items() if value is not None},
                content=None if body is None else dumps(body),
                headers={"Accept": "application/json", **content_type, **(headers or {})},
                timeout=_timeout(read_timeout),
                follow_redirects=method == "GET",
            )

        try:
            try:
                response = await send()
            except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
                # The connection was kept from an earlier request, and its server or gateway has ended since.
                if method != "GET":
                    raise
                response = await send()
        except httpx2.TransportError as error:
            raise ConnectionLostError(
                f"{method} {path}: no response from {self.base_url} ({describe(error)})"
            ) from error
        raise_for_redirect(response)
        raise_for_problem(response.status_code, response.content)
        return response

    async def send(
        self,
        method: str,
        path: str,
        *,
        content: bytes | AsyncIterable[bytes] | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        read_timeout: float | None = READ_TIMEOUT,
    ) -> httpx2.Response:
        """Send bytes and return the response with its body; an error status does not raise.

        Raises:
            httpx2.TransportError: the request failed.
        """
        return await self._open_client().request(
            method,
            self.base_url + path,
            content=content,
            params=params,
            headers=headers,
            timeout=_timeout(read_timeout),
        )

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
        """Open a request whose response body is read as it arrives."""
        async with self._open_client().stream(
            method,
            self.base_url + path,
            params=params,
            headers=headers,
            timeout=_timeout(read_timeout),
            content=content,
            follow_redirects=method == "GET",
        ) as response:
            yield response

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()


def _timeout(read: float | None) -> httpx2.Timeout:
    return httpx2.Timeout(None, connect=CONNECT_TIMEOUT, write=WRITE_TIMEOUT, read=read)


@cache
def _trusted(_file: str | None, _folder: str | None) -> ssl.SSLContext:
    """Return the authorities of this machine or of the variables; reading them takes 20 ms."""
    return httpx2.create_ssl_context()


def _needs_no_proxy(base_url: str, transport: httpx2.AsyncBaseTransport | None) -> bool:
    return transport is None and is_loopback(_parse_url(base_url).host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def encode_header(text: str) -> str:
    """Return text as a header value: characters other than printable ASCII are percent-encoded."""
    return quote(text, safe=_PRINTABLE, errors="replace")


def _parse_url(base_url: str) -> httpx2.URL:
    rule = f"base_url must be an http(s) URL such as http://127.0.0.1:2468, not {base_url!r}"
    try:
        url = httpx2.URL(base_url)
    except httpx2.InvalidURL as error:
        raise ValueError(f"{rule}: {error}") from error
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError(rule)
    if url.port is not None and not 0 < url.port < 65_536:
        raise ValueError(f"{rule}: the port must be between 1 and 65535")
    if url.query or url.fragment or base_url.endswith(("?", "#")):
        raise ValueError(f"base_url must be an http(s) URL without query and fragment, not {base_url!r}")
    return url


def describe(error: BaseException) -> str:
    """Return an exception's message, or its type if the message is empty."""
    return str(error) or type(error).__name__


def raise_for_redirect(response: httpx2.Response) -> None:
    """Raise an error that names where a response redirects to; a redirected POST would arrive as a GET."""
    if response.is_redirect:
        raise SandboxAgentError(
            f"{response.request.url} redirects to {response.headers.get('Location')}: use that "
            "address as base_url",
            status=response.status_code,
        )


def raise_for_problem(status: int, body: bytes) -> None:
    """Raise the error of a response with a status of 400 or more."""
    if status >= 400:
        raise error_from_problem(status, _read_object(body))


def problem_error(response: httpx2.Response) -> SandboxAgentError | None:
    """Return the error of a sandbox-agent server's problem document; None for any other response.

    A proxy in front of the server may answer with any status and a page of its own.
    """
    document = _read_object(response.content)
    if document is None or not str(document.get("type")).startswith(URN_PREFIX):
        return None
    return error_from_problem(response.status_code, document)


def describe_failure(response: httpx2.Response) -> str:
    """Return the status of a response, and what it says about it."""
    detail = (_read_object(response.content) or {}).get("detail")
    return f"status {response.status_code}{f': {detail}' if isinstance(detail, str) else ''}"


def is_server_fault(response: httpx2.Response) -> bool:
    """Return whether the server itself, and no gateway, says that it failed unexpectedly."""
    kind = response.headers.get("Content-Type", "")
    return response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR and kind.startswith(_PROBLEM_JSON)


def _read_object(body: bytes) -> dict[str, Any] | None:
    try:
        document: object = loads(body)
    except InvalidEnvelopeError:
        return None
    return cast("dict[str, Any]", document) if isinstance(document, dict) else None


def quote_segment(segment: str) -> str:
    """Return a path segment with all reserved characters escaped.

    Raises:
        ValueError: the segment is empty, or would be removed from the path.
    """
    if segment in {"", ".", ".."}:
        raise ValueError(f"an id must not be empty, '.' or '..', not {segment!r}")
    return segment if segment.replace("-", "").isalnum() and segment.isascii() else quote(segment, safe="")
