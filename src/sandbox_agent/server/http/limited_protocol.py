"""uvicorn's HTTP protocol with limits for what a client may send before anything checks who it is.

uvicorn and httptools have none: a head may be of any size and take any time, and a client that does not read
keeps its connection.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from http import HTTPStatus
from typing import Any, cast

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sandbox_agent.server.config import ServerConfig
from sandbox_agent.server.http.problems import status_problem

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# Descriptors that are left for agents, stores and files when --max-connections is not given.
RESERVED_DESCRIPTORS = 128
# How many requests a client may send before it has the response to the first.
MAX_PIPELINED = 64
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


def default_max_connections() -> int:
    """Return how many connections this process can have open, with a reserve."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return 100_000
    return max(soft - RESERVED_DESCRIPTORS, soft // 2)


class LimitedProtocol(HttpToolsProtocol):
    """uvicorn's httptools protocol with the limits of a ``ServerConfig``, which the application has."""

    # Not in uvicorn's dict: with more keys it would share none of them, which costs every connection 1.4 KB.
    __slots__ = (
        "_has_begun",
        "_head_bytes",
        "_head_since",
        "_limits",
        "_rejection",
        "_unwritten",
        "_unwritten_since",
    )

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        untyped = cast("Any", self)
        self._limits: ServerConfig = getattr(untyped.app, "config", None) or ServerConfig()
        self._rejection: tuple[HTTPStatus, str] | None = None
        # When the head that is being received began; None between requests and in a body.
        self._head_since: float | None = self.loop.time()
        self._head_bytes: int = 0
        self._has_begun: bool = False
        self._unwritten: int = 0
        self._unwritten_since: float = 0.0
        limit = self._limits.max_connections or default_max_connections()
        if len(self.connections) > limit:
            self._reject(HTTPStatus.SERVICE_UNAVAILABLE, f"the server has its {limit} connections")
            self._answer_rejection()

    def data_received(self, data: bytes) -> None:
        if self._rejection is not None:
            return  # what is still on its way
        self._unset_keepalive_if_required()
        if self._head_since is not None and self._has_begun:
            # A chunk in which the head begins is not counted: it also holds the end of what was before.
            self._head_bytes += len(data)
        self._has_begun = True
        try:
            cast("Any", self).parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no protocol is offered: the request was answered as if it had not asked
        except httptools.HttpParserError:
            self._reject(HTTPStatus.BAD_REQUEST, "this is not a valid HTTP/1.1 request")
            self._answer_rejection()
            return
        if self._head_since is not None and self._head_bytes > self._limits.max_head_bytes:
            self._reject(*self._too_large())
            self._answer_rejection()

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
        """Start the request: its head is complete and within the limits."""
        super().on_headers_complete()

    def _check_head(self) -> None:
        self._head_since = None
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > self._limits.max_head_bytes:
            self._reject(*self._too_large())
            raise _RejectedError
        if len(self.pipeline) >= MAX_PIPELINED:
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
        cycle = cast("Any", self).cycle
        if cycle is None or cycle.response_complete:
            headers = {"retry-after": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
            self.transport.write(_raw_response(status_problem(status, why, headers)))
        self.transport.close()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwritten = 0  # the client has read, even if the buffer is full again at the next check

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
        size = self.transport.get_write_buffer_size()
        waits = size and (self.flow.write_paused or self.transport.is_closing())
        if not waits or size < self._unwritten or not self._unwritten:
            self._unwritten_since = now
        elif now - self._unwritten_since > limits.write_timeout:
            self.transport.abort()
        self._unwritten = size if waits else 0


def _raw_response(response: Response) -> bytes:
    status = HTTPStatus(response.status_code)
    lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
    lines += [b"%s: %s" % header for header in response.raw_headers]
    return b"\r\n".join([*lines, b"connection: close", b"", response.body])
