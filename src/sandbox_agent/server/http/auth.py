"""Authentication by the bearer token."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from urllib.parse import parse_qs

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox_agent.errors import TokenInvalidError
from sandbox_agent.server import metrics
from sandbox_agent.server.http.problems import problem_response
from sandbox_agent.server.state import json_response
from sandbox_agent.server.tickets import Tickets, has_ticket


class BearerAuth:
    """Middleware that refuses requests without the token or a ticket; WebSockets may have it in the query.

    Health without credentials says only that the server answers, which load balancers ask. Without a token,
    only tickets are accepted.
    """

    def __init__(self, app: ASGIApp, token: str | None, tickets: Tickets) -> None:
        self._app = app
        self._token = None if token is None else token.encode()
        self._tickets = tickets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self.allows(scope):
            await self._app(scope, receive, send)
            return
        ticket = self._tickets.redeem(scope) if _has_no_credentials(scope) else None
        if ticket is None:
            await self.refuse(scope)(scope, receive, send)
            return
        with ticket:
            await self._app(scope, receive, send)

    def decides(self, scope: Scope) -> bool:
        """Return whether a request has a ticket instead of credentials."""
        return has_ticket(scope) and _has_no_credentials(scope)

    def refuse(self, scope: Scope) -> Response:
        """Return the response to a request without the token or a ticket."""
        if asks_for_health(scope):
            return json_response({"status": "ok"})
        metrics.REFUSED.add("401")
        if has_ticket(scope):
            return problem_response(_BAD_TICKET)
        return problem_response(_REFUSED if self._token is None else _BAD_TOKEN)

    def allows(self, scope: Scope) -> bool:
        """Return whether a request has the token."""
        if self._token is None:
            return False
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        if scope["type"] == "websocket" and _has_no_credentials(scope):
            given = parse_qs(scope["query_string"].decode("latin-1")).get("access_token", [""])[0]
            return hmac.compare_digest(given.encode(), self._token)
        return bearer_allows(headers, self._token)


_BAD_TICKET = TokenInvalidError(
    "ticket invalid: it has expired or was used, or it is for another path, query or method; "
    "get a new one with POST /v1/tickets"
)
_REFUSED = TokenInvalidError(
    "not authenticated: the program that this server is a part of refuses the request"
)
_BAD_TOKEN = TokenInvalidError("token invalid: send the header 'Authorization: Bearer <token>'")


def asks_for_health(scope: Scope) -> bool:
    """Return whether this is a request for health without credentials."""
    return (
        scope["type"] == "http"
        and scope["path"] == "/v1/health"
        and scope["method"] in ("GET", "HEAD")
        and _has_no_credentials(scope)
    )


def _has_no_credentials(scope: Scope) -> bool:
    return all(name != b"authorization" for name, _ in scope["headers"])


def bearer_allows(headers: Iterable[tuple[bytes, bytes]], token: bytes) -> bool:
    """Return whether the first Authorization header has the token; compared in constant time."""
    for name, value in headers:
        if name == b"authorization":
            scheme, _, given = value.partition(b" ")
            return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), token)
    return False
