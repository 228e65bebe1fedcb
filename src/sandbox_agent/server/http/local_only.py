"""Protects a server without a token, which only this machine reaches, from pages in a browser on it.

A page of any site can send requests to a server on loopback, and a site whose name resolves to 127.0.0.1 can
even read the answers (DNS rebinding). Browsers name the page's origin, and the host that they ask.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence, Set
from http import HTTPStatus
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox_agent.server import metrics
from sandbox_agent.server.http.problems import status_problem

_LOCALHOST = "localhost"
# Different Host headers that are remembered as allowed.
_MAX_KNOWN = 256


class AllowedHosts:
    """The hosts under which the server is reached: loopback, and those of ``--allow-host``."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self._names = {name.lower() for name in names}
        self._known: set[bytes] = set()

    def allows(self, value: bytes) -> bool:
        """Return whether a Host header names the server."""
        if value in self._known:
            return True
        host = _host_of(value)
        allowed = host in self._names or host == _LOCALHOST or _is_loopback(host)
        if allowed and len(self._known) < _MAX_KNOWN:
            self._known.add(value)
        return allowed


def _host_of(value: bytes) -> str:
    """Return the host of a Host header, without its port and brackets; empty if it is invalid."""
    try:
        return (urlsplit(f"//{value.decode('ascii')}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class LocalOnly:
    """Middleware that refuses requests under another host's name, and those of other sites' pages.

    A request without Host, Origin and Sec-Fetch-Site, as other programs send it, is never refused.

    Args:
        app: the application.
        hosts: the server's names.
        origins: origins whose pages may use the server (``--cors-allow-origin``); "*" for all.
    """

    def __init__(self, app: ASGIApp, hosts: AllowedHosts, origins: Sequence[str]) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            metrics.REFUSED.add(str(int(refusal[0])))
            await status_problem(*refusal, {})(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[HTTPStatus, str] | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        foreign = [
            value for name, value in scope["headers"] if name == b"host" and not self._hosts.allows(value)
        ]
        if foreign:
            return HTTPStatus.MISDIRECTED_REQUEST, (
                f"this server has no token and serves this machine, not {foreign[0].decode('latin-1')!r}: "
                "use http://127.0.0.1, or start it with --allow-host NAME or with a token"
            )
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and allows_origin(origin, headers.get(b"host", b""), self._origins):
            return None
        if origin or headers.get(b"sec-fetch-site") == b"cross-site":
            return HTTPStatus.FORBIDDEN, (
                f"pages of {origin or 'other sites'} may not use this server, which has no token: start it "
                "with --cors-allow-origin ORIGIN, or with a token"
            )
        return None


def allows_origin(origin: str, host: bytes, origins: Set[str]) -> bool:
    """Return whether a page's origin is allowed, or is that of the host to which its request was sent."""
    return bool(origins & {origin, "*"}) or origin.partition("://")[2].encode("latin-1") == host
