"""Gives each request an id, which is in its response and in the lines of the log, and its trace context."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sandbox_agent.server.log_context import log_fields, request_id_header, request_id_of
from sandbox_agent.server.trace_context import TRACE_HEADERS, parse_trace, trace_context

_BEGINNINGS = frozenset({"http.response.start", "websocket.accept", "websocket.http.response.start"})


class RequestIds:
    """Middleware that uses the X-Request-Id of a request if it is well-formed, else a new id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = request_id_of(scope["headers"])

        async def send_with_id(message: Message) -> None:
            if message["type"] in _BEGINNINGS:
                headers = [*message.get("headers", ()), request_id_header(request_id)]
                message = {**message, "headers": headers}
            await send(message)

        trace = [
            (name.decode(), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name in TRACE_HEADERS
        ]
        with log_fields(request_id=request_id), trace_context(parse_trace(trace) if trace else None):
            await self._app(scope, receive, send_with_id)
