"""Selects the requests that take the fast path: plain envelopes for a live agent.

The protocol of the fast path is a module of its own, because it needs httptools, which is optional.
"""

from __future__ import annotations

from collections.abc import Sequence

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.agents.connection import AgentConnection
from sandbox_agent.server.client_names import CLIENT_HEADER_BYTES, is_allowed
from sandbox_agent.server.http.auth import bearer_allows

_PREFIX = b"/v1/acp/"
# Larger bodies arrive in several reads; the dispatcher's time does not matter for them.
_MAX_BODY_BYTES = 64 * 1024
_JSON = b"application/json"
# Headers that affect the answer, with the values that the fast path handles.
_PLAIN: dict[bytes, Sequence[bytes]] = {
    b"content-type": (_JSON,),
    b"accept": (b"*/*", _JSON),
    b"origin": (),
    b"expect": (),
    b"upgrade": (),
    b"transfer-encoding": (),
}


class FastPath:
    """Selects the requests that take the fast path, by the server's token and its limit of a body's size."""

    def __init__(self, bridge: Bridge, token: str | None, max_body_bytes: int) -> None:
        self._bridge = bridge
        self._token = token.encode() if token is not None else None
        self._limit = min(max_body_bytes, _MAX_BODY_BYTES)

    def find(self, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> tuple[AgentConnection, str] | None:
        """Return a POST's connection and the name of its client; None if it does not take the fast path."""
        if not url.startswith(_PREFIX) or b"%" in url or b"?" in url:
            return None
        client = UNNAMED
        seen = 0
        for name, value in headers:
            if name in _PLAIN:
                if value not in _PLAIN[name]:
                    return None
                seen += name == b"content-type"
            elif name == b"content-length":
                if not value.isdigit() or int(value) > self._limit:
                    return None
            elif name == CLIENT_HEADER_BYTES:
                if client is not UNNAMED:
                    return None
                client = value.decode("latin-1").strip(" \t")
                if not is_allowed(client):
                    return None
        if seen != 1 or (self._token is not None and not bearer_allows(headers, self._token)):
            return None
        connection = self._bridge.peek(url[len(_PREFIX) :].decode("latin-1"))
        return None if connection is None else (connection, client or UNNAMED)
