"""uvicorn's HTTP protocol with limits for what a client may send before anything checks who it is.

uvicorn and httptools have none: a head may be of any size and take any time, and a client that does not read
keeps its connection.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus
from typing import Any, cast

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sandbox_agent.server import metrics
from sandbox_agent.server.config import ServerConfig
from sandbox_agent.server.http.auth import BearerAuth
from sandbox_agent.server.http.problems import status_problem
from sandbox_agent.server.http.turns import MAX_HELD_BYTES, Turns
from sandbox_agent.server.http.unread import UnreadWatch
from sandbox_agent.server.log_context import log_fields, request_id_header, request_id_of
from sandbox_agent.server.tickets import TERMINAL, Tickets, has_ticket

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# Descriptors that are left for agents, stores and files when --max-connections is not given.
RESERVED_DESCRIPTORS = 128
# How many requests a client may send before it has the response to the first.
MAX_PIPELINED = 32
# A flood of bad requests is one line of the log in this time.
LOG_SECONDS = 60.0


class _RejectedError(Exception):
    """Stops the parser: the request exceeds a limit."""


class _BadRequestLog:
    """Logs the first bad request at once, and then how many there were."""

    def __init__(self) -> None:
        self._logged_at = -LOG_SECONDS
        self._count = 0

    def add(self, what: str) -> None:
        """Count a bad request, and log it if it is time."""
        self._count += 1
        now = time.monotonic()
        if now - self._logged_at >= LOG_SECONDS:
            others = f"; {self._count - 1} others since the last of these lines" if self._count > 1 else ""
            logger.warning("a request was refused before it was read: %s%s", what, others)
            self._logged_at, self._count = now, 0


_log = _BadRequestLog()


@lru_cache(1)
def _default_max_connections() -> int:
    """Return how many connections this process can have open, with a reserve."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 100_000
    return max(soft - RESERVED_DESCRIPTORS, soft // 2)


class LimitedProtocol(UnreadWatch, HttpToolsProtocol):
    """uvicorn's httptools protocol with the limits of a ``ServerConfig``, which the application has."""

    # Not in uvicorn's dict: with more keys it would share none of them, which costs every connection 1.4 KB.
    __slots__ = (
        "_guard",
        "_has_begun",
        "_head_bytes",
        "_head_since",
        "_heads",
        "_held",
        "_is_discarding",
        "_late",
        "_limits",
        "_rejection",
        "_tickets",
        "_turns",
        "_unwritten",
        "_unwritten_since",
    )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        untyped = cast("Any", self)
        self._limits: ServerConfig = getattr(untyped.app, "config", None) or ServerConfig()
        self._guard: BearerAuth | None = getattr(untyped.app, "guard", None)
        self._tickets: Tickets | None = getattr(untyped.app, "tickets", None)
        self._turns: Turns = getattr(untyped.app, "turns", None) or Turns()
        self._rejection: tuple[HTTPStatus, str] | None = None
        # What has come while other connections have their turn.
        self._late: bytes = b""
        # What counts of this connection as held, in bytes.
        self._held: int = 0
        # How many heads the current chunk has had.
        self._heads: int = 0
        # When the head that is being received began; None between requests and in a body.
        self._head_since: float | None = self.loop.time()
        self._head_bytes: int = 0
        self._has_begun: bool = False
        # Whether the body of a request that was refused is being received.
        self._is_discarding: bool = False
        self._unwritten: int = 0
        self._unwritten_since: float = 0.0
        limit = self._limits.max_connections or _default_max_connections()
        if len(self.connections) > limit:
            metrics.REFUSED_CONNECTIONS.add()
            self._reject(HTTPStatus.SERVICE_UNAVAILABLE, f"the server has its {limit} connections")
            self._answer_rejection()

    def connection_lost(self, exc: Exception | None) -> None:
        self._late = b""
        self._hold(0)
        self._turns.end_discarding(self)
        # uvicorn forgets this one if the client has reset the connection, which then stays in memory.
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._rejection is not None:
            return  # what is still on its way
        self._unset_keepalive_if_required()
        if self._is_in_body() or self._is_discarding:
            self._feed(data)
        elif self._late:
            self._late += data
            self._hold(self._held + len(data))
        else:
            self._late = data
            if not self._turns.run(len(data), self._feed_late):
                self.flow.pause_reading()
                self._hold(self._held + len(data))

    def _is_in_body(self) -> bool:
        """Return whether the body of a request is being received, for which somebody waits."""
        cycle = cast("Any", self).cycle
        return self._head_since is None and cycle is not None and getattr(cycle, "more_body", False)

    def _is_endless(self, data: bytes) -> bool:
        """Return whether a chunk is a part of a head that is too large, which needs no parser."""
        most = self._limits.max_head_bytes
        is_head = self._head_since is not None and not self._is_in_body()
        return is_head and len(data) > most and data.find(b"\r\n\r\n", 0, most) < 0

    def _feed_late(self) -> None:
        data, self._late = self._late, b""
        if data and self._rejection is None:
            self.flow.resume_reading()
            self._feed(data)

    def read_on(self) -> None:
        """Read the next chunk of a body that is not used."""
        self.flow.resume_reading()

    def drop(self) -> None:
        """Close a connection that sends a body that is not used, for newer ones."""
        self.transport.close()

    def _hold(self, size: int) -> None:
        """Count bytes as held for this connection, and reject it if all connections hold too many."""
        self._turns.held += size - self._held
        self._held = size
        if size and self._turns.held > MAX_HELD_BYTES:
            self._reject(HTTPStatus.SERVICE_UNAVAILABLE, "too many requests are incomplete")
            self._answer_rejection()

    def _feed(self, data: bytes) -> None:
        self._hold(0)
        self._heads = 0
        if self._head_since is not None and self._has_begun:
            # A chunk in which the head begins is not counted: it also holds the end of what was before.
            self._head_bytes += len(data)
        self._has_begun = True
        if self._is_endless(data):
            self._reject(*self._too_large())
            self._answer_rejection()
            return
        try:
            cast("Any", self).parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self._should_upgrade():
                self._upgrade()
                return
            # else the request was answered as if it had not asked
        except httptools.HttpParserError:
            self._reject(HTTPStatus.BAD_REQUEST, "this is not a valid HTTP/1.1 request")
            self._answer_rejection()
            return
        if self._head_since is not None and self._head_bytes > self._limits.max_head_bytes:
            self._reject(*self._too_large())
            self._answer_rejection()
        elif self._head_since is not None:
            self._hold(self._head_bytes or len(data))
        elif self._is_discarding:
            # The rest of the body comes last: a client may send much of it, and often.
            self.flow.pause_reading()
            self._turns.discard(self)

    def _should_upgrade(self) -> bool:
        """Return whether the request is for a WebSocket, which only a few paths have."""
        parser: Any = cast("Any", self).parser
        path = self.url.partition(b"?")[0].decode("latin-1")
        return (
            super()._should_upgrade()
            and parser.get_method() == b"GET"
            and parser.get_http_version() == "1.1"
            and self._tickets is not None
            and self._tickets.has_stream(TERMINAL, path)
        )

    def _upgrade(self) -> None:
        """Let uvicorn's protocol for WebSockets go on."""
        cycle = cast("Any", self).cycle
        if cycle is not None and not cycle.response_complete:
            self._reject(HTTPStatus.BAD_REQUEST, "a WebSocket was requested before the last response")
            self._answer_rejection()
            return
        self._turns.end_discarding(self)
        self.handle_websocket_upgrade()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._head_since is None:
            self._head_since = self.loop.time()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > self._limits.max_target_bytes:
            self._reject(
                HTTPStatus.REQUEST_URI_TOO_LONG,
                f"the request target has more than {self._limits.max_target_bytes} bytes",
            )
            raise _RejectedError

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        if len(self.headers) > self._limits.max_headers:
            self._reject(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"the request has more than {self._limits.max_headers} headers",
            )
            raise _RejectedError

    def on_headers_complete(self) -> None:
        self._check_head()
        self.on_head()

    def on_head(self) -> None:
        """Start the request, or refuse it: its head is complete and within the limits."""
        if not self._refuse():
            super().on_headers_complete()

    def _refuse(self) -> bool:
        """Refuse a request without the token at once, which takes a fifth of the time of the application.

        What the application would answer in another way is left to it.
        """
        untyped = cast("Any", self)
        guard, cycle = self._guard, untyped.cycle
        if guard is None or not (cycle is None or cycle.response_complete) or not self.url.startswith(b"/"):
            return False
        path, _, query = self.url.partition(b"?")
        method = untyped.parser.get_method().decode("ascii")
        scope = {**untyped.scope, "method": method, "path": path.decode("ascii"), "query_string": query}
        is_plain = (
            method in _PLAIN_METHODS
            and b"%" not in path
            and untyped.parser.get_http_version() == "1.1"
            and untyped.parser.should_keep_alive()
            and all(name not in _NOT_PLAIN for name, _ in self.headers)
        )
        if not is_plain or has_ticket(scope) or guard.allows(scope):
            return False
        if self.flow.write_paused:
            self._reject(HTTPStatus.SERVICE_UNAVAILABLE, "the responses to earlier requests were not read")
            raise _RejectedError
        request_id = request_id_of(self.headers)
        with log_fields(request_id=request_id):
            refusal = guard.refuse(scope)
        headers = [*self.server_state.default_headers, request_id_header(request_id)]
        self.transport.write(_raw_response(refusal, headers))
        # The body is received all the same: a client may send all of it before it reads the response.
        self._is_discarding = True
        untyped.cycle = _REFUSED
        self.on_response_complete()
        return True

    def on_message_complete(self) -> None:
        if self._is_discarding:
            self._is_discarding = False
            self._turns.end_discarding(self)
        super().on_message_complete()

    def _check_head(self) -> None:
        self._head_since = None
        self._heads += 1
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.max_head_bytes:
            self._reject(*self._too_large())
            raise _RejectedError
        if len(self.pipeline) >= MAX_PIPELINED or self._heads > MAX_PIPELINED:
            self._reject(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{MAX_PIPELINED} requests of this connection wait already"
            )
            raise _RejectedError

    def _too_large(self) -> tuple[HTTPStatus, str]:
        return (
            HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
            f"the head of the request has more than {self._limits.max_head_bytes} bytes",
        )

    def _reject(self, status: HTTPStatus, why: str) -> None:
        if self._rejection is None:
            self._rejection = status, why

    def _answer_rejection(self) -> None:
        """Answer the rejected request, unless responses to earlier ones are due, and close the connection."""
        if self._rejection is None:
            return
        status, why = self._rejection
        _log.add(why)
        metrics.REFUSED.add(str(int(status)))
        cycle = cast("Any", self).cycle
        if cycle is None or cycle.response_complete:
            self.transport.write(_raw_rejection(status, why))
        self.transport.close()

    def check_times(self, now: float) -> None:
        """Close the connection if a head takes too long, or the client does not read."""
        limits = self._limits
        since = self._head_since
        if since is not None and now - since > limits.head_timeout and self._rejection is None:
            if self._has_begun:
                self._reject(
                    HTTPStatus.REQUEST_TIMEOUT,
                    f"the head of the request was not complete after {limits.head_timeout:g} s",
                )
                self._answer_rejection()
            else:
                self.transport.close()
        self.check_unread(now, limits.write_timeout, paused=self.flow.write_paused)


class _Refused:
    """The cycle that uvicorn sees after a request that was refused: its body is not used."""

    response_complete = True
    disconnected = False
    keep_alive = True
    more_body = False
    message_event = asyncio.Event()  # nothing waits for it


_REFUSED = _Refused()
_CLOSE = ((b"connection", b"close"),)
_PLAIN_METHODS = frozenset({"GET", "POST", "PUT", "DELETE"})
# With an origin, the response has headers for browsers; with the others, the connection changes.
_NOT_PLAIN = frozenset({b"origin", b"expect", b"upgrade"})


@lru_cache(64)
def _raw_rejection(status: HTTPStatus, why: str) -> bytes:
    headers = {"retry-after": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return _raw_response(status_problem(status, why, headers), _CLOSE)


def _raw_response(response: Response, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    status = HTTPStatus(response.status_code)
    lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
    lines += [b"%s: %s" % header for header in (*response.raw_headers, *headers)]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
