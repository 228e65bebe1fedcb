"""Connections to the hosts of the list: the name is resolved here, and its address is checked."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from sandbox_agent.egress.allow_list import (
    Address,
    AllowList,
    Entry,
    is_public,
    join_port,
    plain_address,
)
from sandbox_agent.egress.http import MAX_HEAD, RequestError
from sandbox_agent.egress.streams import Stream, close
from sandbox_agent.errors import InvalidRequestError

# Seconds, of a client that waits.
RESOLVE_SECONDS = 10.0
CONNECT_SECONDS = 20.0
# Of these addresses of a name, so many are tried.
MAX_ADDRESSES = 4

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]


class RefusedError(RequestError):
    """The list does not allow this.

    Attributes:
        host: The host.
        port: The port.
    """

    def __init__(self, host: str | Address, port: int, why: str, answer: bytes | None = None) -> None:
        message = f"the sandbox does not allow {join_port(host, port)}: {why}"
        super().__init__(message, HTTPStatus.FORBIDDEN, answer)
        self.host: str = str(host)
        self.port: int = port


@dataclass(frozen=True, slots=True)
class Upstream:
    """Another proxy, through which this machine reaches the internet.

    Attributes:
        host: Its host.
        port: Its port.
        is_tls: Whether it is an https:// proxy.
        authorization: The value of Proxy-Authorization, or None.
    """

    host: str
    port: int
    is_tls: bool = False
    authorization: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Connected:
    """A connection.

    Attributes:
        stream: The connection.
        proxy: The proxy at its other end, which gets requests for http:// URLs; None for the host itself.
    """

    stream: Stream
    proxy: Upstream | None = None


class Dialer:
    """Checks hosts and connects to them.

    Args:
        hosts: The hosts that are allowed.
        upstreams: The proxies for "http" and "https", as from ``read_upstreams``. Hosts with an address in
            the list are reached without one.
        resolve: Returns the addresses of a name; raises OSError without any. None for the system's.
    """

    def __init__(
        self,
        hosts: AllowList,
        upstreams: Mapping[str, Upstream] | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self.hosts: AllowList = hosts
        self._upstreams = dict(upstreams or {})
        self._resolve = resolve or _resolve

    def check(self, host: str | Address, port: int) -> Entry:
        """Return the entry that allows a host.

        Raises:
            RefusedError: No entry allows the host.
        """
        entry = self.hosts.find(host, port)
        if entry is None:
            added = str(host) if port in (80, 443) else join_port(host, port)
            ports = self.hosts.ports_of(host)
            known = f"only its ports {', '.join(map(str, ports))} are" if ports else "it is not"
            raise RefusedError(host, port, f"{known} in the list. To allow it, add '{added}' to allow_hosts")
        return entry

    async def connect(self, host: str | Address, port: int, *, tunnel: bool) -> Connected:
        """Connect to a host.

        Args:
            host: The host.
            port: The port.
            tunnel: Whether a proxy on the way has to make a tunnel; otherwise it gets requests.

        Raises:
            RefusedError: The list does not allow the host, or none of its addresses is a public one.
            RequestError: It cannot be reached.
        """
        entry = self.check(host, port)
        addresses = entry.addresses
        upstream = None
        if addresses is None:
            assert isinstance(host, str)
            upstream = self._upstream(host, port, "https" if tunnel else "http")
            addresses = await self._public_addresses(host, port, needs_any=upstream is None)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                if upstream is None:
                    return Connected(await _connect_any(addresses, port))
                stream = await _open(upstream.host, upstream.port, tls=upstream.is_tls)
                if tunnel:
                    await _make_tunnel(stream, upstream, join_port(host, port))
                return Connected(stream, upstream)
        except TimeoutError:
            raise RequestError(
                f"{join_port(host, port)} did not answer within {CONNECT_SECONDS:g} s",
                HTTPStatus.GATEWAY_TIMEOUT,
            ) from None
        except OSError as error:
            raise RequestError(
                f"{join_port(host, port)} cannot be reached: {error.strerror or error}",
                HTTPStatus.BAD_GATEWAY,
            ) from None

    def _upstream(self, host: str, port: int, scheme: str) -> Upstream | None:
        if scheme not in self._upstreams or proxy_bypass(f"{host}:{port}"):
            return None
        return self._upstreams[scheme]

    async def _public_addresses(self, host: str, port: int, *, needs_any: bool) -> Sequence[Address]:
        try:
            async with asyncio.timeout(RESOLVE_SECONDS):
                addresses = [plain_address(address) for address in await self._resolve(host, port)]
        except (OSError, UnicodeError) as error:
            if not needs_any:
                return []  # the other proxy resolves the name
            why = "no answer in time" if isinstance(error, TimeoutError) else error
            raise RequestError(f"the name {host} cannot be resolved: {why}", HTTPStatus.BAD_GATEWAY) from None
        public = [address for address in addresses if is_public(address)]
        if addresses and not public:
            raise RefusedError(
                host,
                port,
                f"its address {addresses[0]} is not one of the internet. If it is meant, add "
                f"'{join_port(host, port)}={addresses[0]}' to allow_hosts",
            )
        return public


async def _connect_any(addresses: Sequence[Address], port: int) -> Stream:
    error: OSError = ConnectionRefusedError("it has no address")
    for address in addresses[:MAX_ADDRESSES]:
        try:
            return await _open(str(address), port)
        except OSError as failure:
            error = failure
    raise error


async def _open(host: str, port: int, *, tls: bool = False) -> Stream:
    context = ssl.create_default_context() if tls else None
    return Stream(*await asyncio.open_connection(host, port, ssl=context))


async def _make_tunnel(stream: Stream, upstream: Upstream, target: str) -> None:
    lines = [f"CONNECT {target} HTTP/1.1", f"host: {target}"]
    if upstream.authorization is not None:
        lines.append(f"proxy-authorization: {upstream.authorization}")
    try:
        await stream.write("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in stream.rest:
            if len(stream.rest) > MAX_HEAD or not await stream.read_more():
                raise ConnectionError("the proxy of this machine gave no answer")
        head, _, stream.rest = stream.rest.partition(b"\r\n\r\n")
        status = head.split(b"\r\n")[0].split(b" ", 2)[1:2]
        if status != [b"200"]:
            raise ConnectionError(
                f"the proxy of this machine answered {b''.join(status)[:20].decode('latin-1')}"
            )
    except BaseException:
        await close(stream)
        raise


_resolvers = ThreadPoolExecutor(16, thread_name_prefix="sandbox-agent-resolve")


async def _resolve(host: str, port: int) -> Sequence[Address]:
    def look_up() -> list[Address]:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [ip_address(str(address[0]).partition("%")[0]) for *_, address in found]

    return await asyncio.get_running_loop().run_in_executor(_resolvers, look_up)


def read_upstreams() -> dict[str, Upstream]:
    """Return the proxies that HTTP_PROXY and HTTPS_PROXY name.

    Raises:
        InvalidRequestError: One of them is not an http:// or https:// URL.
    """
    found: dict[str, Upstream] = {}
    for scheme, url in getproxies_environment().items():
        if scheme not in ("http", "https") or not url:
            continue
        with suppress(ValueError):
            parts = urlsplit(url if "://" in url else f"http://{url}")
            if parts.scheme in ("http", "https") and parts.hostname:
                authorization = None
                if parts.username is not None:
                    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
                    authorization = f"Basic {base64.b64encode(login.encode()).decode()}"
                is_tls = parts.scheme == "https"
                port = parts.port or (443 if is_tls else 80)
                found[scheme] = Upstream(parts.hostname, port, is_tls, authorization)
                continue
        raise InvalidRequestError(
            f"{scheme.upper()}_PROXY does not name an http:// or https:// proxy, and no other is supported: "
            "unset it or use another one"
        )
    return found
