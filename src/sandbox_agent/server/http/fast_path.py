"""Selects the requests that take the fast path: plain envelopes for a live agent.

The protocol of the fast path is a module of its own, because it needs httptools, which is optional.
"""

from __future__ import annotations

from collections.abc import Sequence

from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.agents.connection import AgentConnection
from sandbox_agent.server.client_names import CLIENT_HEADER_BYTES
from sandbox_agent.server.http.auth import bearer_allows
from sandbox_agent.server.http.local_only import AllowedHosts

_PREFIX = b"/v1/acp/"
ROUTE = "/v1/acp/{server_id}"
# Larger bodies arrive in several reads; the dispatcher's time does not matter for them.
_MAX_BODY_BYTES = 64 * 1024
_JSON = b"application/json"
# Headers that affect the answer, with the values that the fast path handles.
_PLAIN: dict[bytes, Sequence[bytes]] = {
    b"content-type": (_JSON,),
    b"accept": (b"*/*", _JSON),
    b"origin": (),
    b"sec-fetch-site": (),
    b"expect": (),
    b"upgrade": (),
    b"transfer-encoding": (),
    b"idempotency-key": (),
    b"prefer": (),
    b"x-request-id": (),
    b"traceparent": (),
    # A named client may send an envelope again, which takes more than the fast path does.
    CLIENT_HEADER_BYTES: (b"",),
}
_CHECKED = frozenset({b"host", b"content-length"})


class FastPath:
    """Selects the requests that take the fast path, by the server's token, names and limit of a body."""

    def __init__(
        self, bridge: Bridge, token: str | None, max_body_bytes: int, hosts: AllowedHosts | None = None
    ) -> None:
        self._hosts = hosts
        self._bridge = bridge
        self._token = token.encode() if token is not None else None
        self._limit = min(max_body_bytes, _MAX_BODY_BYTES)

    def find(self, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> AgentConnection | None:
        """Return a POST's connection; None if the request does not take the fast path."""
        if not url.startswith(_PREFIX) or b"%" in url or b"?" in url:
            return None
        seen = 0
        for name, value in headers:
            if name in _PLAIN:
                if value not in _PLAIN[name]:
                    return None
                seen += name == b"content-type"
            elif name in _CHECKED and not self._accepts(name, value):
                return None
        if seen != 1 or (self._token is not None and not bearer_allows(headers, self._token)):
            return None
        return self._bridge.peek(url[len(_PREFIX) :].decode("latin-1"))

    def _accepts(self, name: bytes, value: bytes) -> bool:
        if name == b"host":
            return self._hosts is None or self._hosts.allows(value)
        return value.isdigit() and int(value) <= self._limit
