"""Tickets: short-lived passes for one stream, for a browser's EventSource and WebSocket."""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final
from urllib.parse import unquote

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.server.client_names import CLIENT_HEADER_BYTES

EVENTS: Final = "events"
TERMINAL: Final = "terminal"
# How long a ticket is valid before its first use, and after its last stream has ended: an EventSource
# reconnects with the same URL.
TICKET_SECONDS: Final = 60.0
MAX_TICKETS: Final = 4096
# A ticket's path with its query. A session's id alone can have 3 KiB when it is percent-encoded.
MAX_TICKET_PATH: Final = 4096
_PARAMETER: Final = b"ticket="


class _Ticket:
    __slots__ = ("expires_at", "scope", "streams", "target")

    def __init__(self, scope: str, target: bytes, expires_at: float) -> None:
        self.scope = scope
        self.target = target
        self.expires_at = expires_at
        self.streams = 0


class Tickets:
    """The valid tickets, in memory. Only hashes are kept, so the time of a lookup says nothing about tickets.

    Args:
        paths: for each scope, the paths of its streams, such as ``/v1/acp/{server_id}``.
        clock: a monotonic clock, in seconds; also an attribute.
    """

    def __init__(
        self, paths: Mapping[str, Iterable[str]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._patterns = {scope: [_pattern(path) for path in found] for scope, found in paths.items()}
        self.clock: Callable[[], float] = clock
        self._tickets: dict[bytes, _Ticket] = {}

    def __len__(self) -> int:
        return len(self._tickets)

    def issue(self, scope: str, target: str) -> str:
        """Return a new ticket for the stream of a path with its query, which is valid for TICKET_SECONDS.

        Beyond MAX_TICKETS, the oldest one without an open stream is dropped.

        Raises:
            InvalidRequestError: the path has no stream of the scope, or is not as URLs have it.
        """
        path, _, query = target.partition("?")
        self._check(scope, path, query)
        now = self.clock()
        for key, ticket in list(self._tickets.items()):
            if _is_expired(ticket, now):
                del self._tickets[key]
        if len(self._tickets) >= MAX_TICKETS:
            unused = (key for key, ticket in self._tickets.items() if not ticket.streams)
            del self._tickets[next(unused, next(iter(self._tickets)))]
        value = secrets.token_urlsafe(32)
        bound = f"{path}?{query}" if query else path
        self._tickets[_hash(value.encode())] = _Ticket(scope, bound.encode(), now + TICKET_SECONDS)
        return value

    def has_stream(self, scope: str, path: str) -> bool:
        """Return whether a path, as it is in a URL, is that of a stream of the scope."""
        return any(pattern.fullmatch(path) for pattern in self._patterns.get(scope, ()))

    def _check(self, scope: str, path: str, query: str) -> None:
        if len(path) + len(query) >= MAX_TICKET_PATH:
            raise InvalidRequestError(f"invalid request: 'path' has more than {MAX_TICKET_PATH} characters")
        if not re.fullmatch(r"[!-~]+", path + query) or "#" in path + query:
            raise InvalidRequestError(
                "invalid request: 'path' must be as in a URL, percent-encoded and without a fragment"
            )
        if any(unquote(segment) in (".", "..") for segment in path.split("/")):
            raise InvalidRequestError("invalid request: 'path' must not have a segment '.' or '..'")
        if any(part.startswith("ticket=") for part in query.split("&")):
            raise InvalidRequestError("invalid request: 'path' must not have a ticket already")
        if not self.has_stream(scope, path):
            raise InvalidRequestError(
                f"invalid request: 'path' must be that of a stream of this server with the scope '{scope}', "
                "such as /v1/sessions/ID/events/sse for 'events'"
            )

    def redeem(self, request: Mapping[str, Any]) -> AbstractContextManager[None] | None:
        """Return a context in which to serve a request; None if the request has no valid ticket for it.

        An events ticket is for GET requests of its path and query, by clients without a name, because under a
        name a stream would close that of another client. A terminal ticket is for one WebSocket.

        Args:
            request: the request's ASGI scope.
        """
        given, rest = _split(request["query_string"])
        if len(given) != 1:
            return None
        key = _hash(given[0].removeprefix(_PARAMETER))
        ticket = self._tickets.get(key)
        if ticket is None or _is_expired(ticket, self.clock()):
            return None
        path: bytes = request.get("raw_path") or request["path"].encode()
        is_for_it = (
            ticket.scope == _scope_of(request)
            and ticket.target == b"?".join([path, b"&".join(rest)] if rest else [path])
            and all(name != CLIENT_HEADER_BYTES for name, _ in request["headers"])
        )
        if not is_for_it:
            return None
        if ticket.scope == TERMINAL:
            del self._tickets[key]
        return self._used(ticket)

    @contextmanager
    def _used(self, ticket: _Ticket) -> Generator[None]:
        ticket.streams += 1
        try:
            yield
        finally:
            ticket.streams -= 1
            ticket.expires_at = self.clock() + TICKET_SECONDS


def has_ticket(request: Mapping[str, Any]) -> bool:
    """Return whether the query of a request, an ASGI scope, has a ticket, valid or not."""
    return bool(_split(request["query_string"])[0])


def _split(query: bytes) -> tuple[list[bytes], list[bytes]]:
    """Return the tickets of a query, and its other parts as they are."""
    parts = query.split(b"&")
    given = [part for part in parts if part.startswith(_PARAMETER)]
    return given, [part for part in parts if part not in given]


def _scope_of(request: Mapping[str, Any]) -> str | None:
    if request["type"] == "websocket":
        return TERMINAL
    return EVENTS if request["method"] == "GET" else None


def _is_expired(ticket: _Ticket, now: float) -> bool:
    return not ticket.streams and now >= ticket.expires_at


def _hash(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile("[^/]+".join(map(re.escape, re.split(r"\{\w+\}", path))))
