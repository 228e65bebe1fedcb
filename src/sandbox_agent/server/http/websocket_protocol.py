"""uvicorn's WebSocket protocol with this server's errors, and a limit for a viewer that does not read."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any, Final

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Response
from websockets.server import ServerProtocol

from sandbox_agent.server import metrics
from sandbox_agent.server.http.problems import status_problem
from sandbox_agent.server.http.unread import UnreadWatch

# A viewer that reads nothing for so long loses its connection: the process waits for it.
VIEWER_SECONDS: Final = 10.0
# A longer message ends the connection with the code 1009.
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
# Each connection would be a line, and with "debug" what is sent over it: it may be a password.
_logger: logging.Logger = logging.getLogger("sandbox_agent.server.websocket")
_logger.setLevel(logging.WARNING)


class _Handshake(ServerProtocol):
    """The rules of WebSockets, with a problem document as the answer to an invalid request."""

    def reject(self, status: HTTPStatus | int, text: str) -> Response:
        response = super().reject(status, text)
        metrics.REFUSED.add(str(int(status)))
        problem = status_problem(HTTPStatus(status), text.strip(), {})
        body = bytes(problem.body)
        for name in ("Content-Type", "Content-Length"):
            del response.headers[name]
        response.headers["Content-Type"] = problem.media_type or ""
        response.headers["Content-Length"] = str(len(body))
        return Response(response.status_code, response.reason_phrase, response.headers, body)


class WebSocketProtocol(UnreadWatch, WebSocketsSansIOProtocol):
    """uvicorn's WebSocket protocol for terminals."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger: logging.Logger = _logger
        # No compression: it takes longer than the loopback or a network of today does.
        self.conn: ServerProtocol = _Handshake(max_size=MAX_MESSAGE_BYTES, logger=_logger)
        self.conn.debug = False
        self._unwritten: int = 0
        self._unwritten_since: float = 0.0

    async def send(self, message: Any) -> None:
        try:
            await super().send(message)
        except RuntimeError:
            if self.close_sent:  # by this protocol: the viewer does not answer, or has broken the rules
                raise ClientDisconnected from None
            raise
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # uvicorn takes a refusal for none, and logs an error

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            # Its limits for a request are lower than those of the server, and uvicorn does not answer then.
            why = "the path with its query, or a header, is too long for a WebSocket"
            response = self.conn.reject(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, why)
            self.transport.write(response.serialize())
            self.transport.close()

    def check_times(self, now: float) -> None:
        """Close the connection of a viewer that reads nothing."""
        self.check_unread(now, VIEWER_SECONDS, paused=not self.writable.is_set())
