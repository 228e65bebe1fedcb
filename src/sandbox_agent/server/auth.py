"""The bearer token."""

from __future__ import annotations

import hmac
from urllib.parse import parse_qs

from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox_agent.errors import TokenInvalidError
from sandbox_agent.server.problems import problem_response

__all__ = ["BearerAuth"]


class BearerAuth:
    """Middleware that lets through only requests with the token; WebSockets may put it in the query.

    Args:
        app: what it protects.
        token: the token.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._allows(scope):
            await self._app(scope, receive, send)
            return
        error = TokenInvalidError("token invalid: send the header 'Authorization: Bearer <token>'")
        await problem_response(error)(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        for name, value in scope["headers"]:
            if name == b"authorization":
                scheme, _, given = value.partition(b" ")
                return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._token)
        if scope["type"] == "websocket":
            given = parse_qs(scope["query_string"].decode("latin-1")).get("access_token", [""])[0]
            return hmac.compare_digest(given.encode(), self._token)
        return False
