"""The HTTP protocol with a fast path for envelopes.

The fast path saves a scope, a task and four switches of the event loop, a fifth of a request's time. Every
request that it does not handle goes through the ASGI application, which makes the same checks and more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

from starlette.responses import Response
from starlette.types import Message, Send

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.server import metrics
from sandbox_agent.server.agents.connection import AgentConnection
from sandbox_agent.server.http.fast_path import ROUTE, FastPath
from sandbox_agent.server.http.limited_protocol import LimitedProtocol
from sandbox_agent.server.http.problems import error_response
from sandbox_agent.server.http.send_file import offer_file_sending
from sandbox_agent.server.log_context import log_fields, new_request_id, request_id_header
from sandbox_agent.server.state import JsonResponse
from sandbox_agent.wire.jsonrpc import read_head

# The one path of which responses are files.
_FILE = b"/v1/fs/file?"


class _Exchange:
    """The cycle that uvicorn sees while an envelope takes the fast path."""

    __slots__ = (
        "_disconnected",
        "begun",
        "end_use",
        "keep_alive",
        "message_event",
        "request",
        "request_id",
        "response_complete",
    )

    def __init__(
        self,
        request: str,
        message_event: asyncio.Event,
        *,
        keep_alive: bool,
        end_use: Callable[[], None],
    ) -> None:
        self.request = request
        self.message_event = message_event
        self.keep_alive = keep_alive
        self.end_use = end_use
        self._disconnected = False
        self.response_complete = False
        self.begun = time.perf_counter()
        self.request_id = new_request_id()

    @property
    def disconnected(self) -> bool:
        """Whether the client has disconnected; uvicorn sets it."""
        return self._disconnected

    @disconnected.setter
    def disconnected(self, value: bool) -> None:
        self._disconnected = value
        self.end_use()


def _without_chunks(cycle: Any) -> Send:
    """Return the ``send`` of a cycle for an HTTP/1.0 client, which cannot read chunks.

    A body without a length ends with the connection (RFC 9112, section 6.3).
    """
    send: Send = cycle.send
    sized = True

    async def send_plainly(message: Message) -> None:
        nonlocal sized
        if message["type"] == "http.response.start":
            sized = any(name == b"content-length" for name, _ in message["headers"])
            if not sized:
                cycle.chunked_encoding = False
        elif not sized:
            cycle.expected_content_length = len(message.get("body", b""))
        await send(message)

    return send_plainly


class FastPathProtocol(LimitedProtocol):
    """The HTTP protocol with a fast path for envelopes."""

    _envelope: tuple[AgentConnection, bytearray] | None = None
    # uvicorn sets this event of a cycle when the connection is lost; nothing waits for it here
    _message_event = asyncio.Event()

    def on_head(self) -> None:
        untyped = cast("Any", self)
        fast_path: FastPath | None = getattr(untyped.app, "fast_path", None)
        if (
            fast_path is not None
            and (untyped.cycle is None or untyped.cycle.response_complete)
            and untyped.parser.get_method() == b"POST"
            and untyped.parser.get_http_version() == "1.1"
            and (found := fast_path.find(self.url, self.headers)) is not None
        ):
            self._envelope = (found, bytearray())
        else:
            super().on_head()
            if untyped.parser.get_http_version() == "1.0" and untyped.cycle is not None:
                cycle: Any = untyped.cycle
                cycle.send = _without_chunks(cycle)
            if self.url.startswith(_FILE) and untyped.cycle is not None:
                offer_file_sending(untyped.cycle, self._limits.write_timeout)

    def on_body(self, body: bytes) -> None:
        if self._envelope is not None:
            self._envelope[1].extend(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        held, self._envelope = self._envelope, None
        if held is None:
            super().on_message_complete()
        elif not self._send(*held):
            super().on_head()
            super().on_body(bytes(held[1]))
            super().on_message_complete()

    def _send(self, connection: AgentConnection, body: bytearray) -> bool:
        envelope = bytes(body)
        try:
            head = read_head(envelope)
            answer = connection.submit_nowait(UNNAMED, head, envelope)
        except Exception:  # noqa: BLE001 - uvicorn would answer 400; the application answers with the error
            return False
        if answer is None:
            return False
        keep_alive: bool = cast("Any", self).parser.should_keep_alive()
        exchange = _Exchange(
            f"POST {self.url.decode('latin-1')}",
            self._message_event,
            keep_alive=keep_alive,
            end_use=connection.usage.begin(UNNAMED),
        )
        cast("Any", self).cycle = exchange
        answer.add_done_callback(lambda done: self._answer(exchange, connection, done))
        return True

    def _answer(
        self, exchange: _Exchange, connection: AgentConnection, answer: asyncio.Future[bytes]
    ) -> None:
        exchange.end_use()
        if exchange.disconnected or self.transport.is_closing():
            answer.exception()  # marks the exception as retrieved
            return
        try:
            response: Response = JsonResponse(connection.with_stderr(answer.result()))
        except Exception as error:  # noqa: BLE001 - the boundary, as in dispatch
            with log_fields(request_id=exchange.request_id, server_id=connection.server_id):
                response = error_response(exchange.request, error)
        status = HTTPStatus(response.status_code)
        metrics.count_request(ROUTE, "POST", status, time.perf_counter() - exchange.begun)
        head = [b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode())]
        headers: list[tuple[bytes, bytes]] = [
            *self.server_state.default_headers,
            *response.raw_headers,
            request_id_header(exchange.request_id),
        ]
        head += [b"%s: %s\r\n" % header for header in headers]
        if not exchange.keep_alive:
            head.append(b"connection: close\r\n")
        self.transport.write(b"%s\r\n%s" % (b"".join(head), response.body))
        exchange.response_complete = True
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()
