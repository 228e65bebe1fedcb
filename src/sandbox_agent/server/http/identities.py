"""Authentication by a function of the program that the server is a part of."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeAlias

from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox_agent.server import metrics
from sandbox_agent.server.client_names import check_client_name
from sandbox_agent.server.config import CorsConfig
from sandbox_agent.server.http.auth import BearerAuth, asks_for_health
from sandbox_agent.server.http.local_only import allows_origin
from sandbox_agent.server.http.operations import IDENTITY
from sandbox_agent.server.http.problems import error_response, status_problem
from sandbox_agent.server.log_context import log_fields

Identity: TypeAlias = str | bool | None
"""Who sends a request: a name, or True without one. None and False refuse the request."""
Authenticate: TypeAlias = Callable[[HTTPConnection], Identity | Awaitable[Identity]]
"""Returns who sends a request, or raises an HTTPException of Starlette or FastAPI."""


# Browsers add these to requests by themselves, as they do with cookies.
_OF_BROWSERS = (b"basic", b"digest", b"negotiate", b"ntlm")


class HookAuth:
    """Middleware that lets a function decide about requests without the token or a ticket.

    Browsers add cookies and passwords to requests of all pages. A request of a page must be from the server
    itself or from an origin that CORS allows, with credentials if it has some that browsers add. A request
    with another Authorization header, such as a bearer token, can be from any page.

    Args:
        app: the application.
        guard: knows the token, if there is one, and the tickets.
        authenticate: the function.
        cors: the origins that CORS allows, and whether their pages may send cookies.
    """

    def __init__(self, app: ASGIApp, guard: BearerAuth, authenticate: Authenticate, cors: CorsConfig) -> None:
        self._app = app
        self._guard = guard
        self._authenticate = authenticate
        self._origins = frozenset(cors.allow_origins)
        self._allows_credentials = cors.allow_credentials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._guard.allows(scope):
            await self._app(scope, receive, send)
            return
        if self._guard.decides(scope):
            await self._guard(scope, receive, send)
            return
        try:
            identity = await self._identify(scope)
        except HTTPException as error:
            refusal = self._guard.refuse(scope) if asks_for_health(scope) else _count(_refusal_of(error))
            await refusal(scope, receive, send)
            return
        except Exception as error:  # noqa: BLE001 - a function of the program's; what is unexpected is logged
            await error_response(f"authenticate of {scope['path']}", error)(scope, receive, send)
            return
        if identity is None:
            await self._guard.refuse(scope)(scope, receive, send)
        elif (origin := self._foreign_origin(scope)) is not None:
            why = (
                f"pages of {origin} may not use this server with credentials that browsers add: name the "
                "origin in cors_allow_origins of create_app, with cors_allow_credentials=True, or send a "
                "bearer token in the Authorization header"
            )
            await _count(status_problem(HTTPStatus.FORBIDDEN, why, {}))(scope, receive, send)
        else:
            scope[IDENTITY] = identity
            with log_fields(identity=identity or None):
                await self._app(scope, receive, send)

    async def _identify(self, scope: Scope) -> str | None:
        """Return the name, which is empty if there is none; None for a request that is refused."""
        found = self._authenticate(HTTPConnection(scope))
        if inspect.isawaitable(found):
            found = await found
        if found is None or found is False:
            return None
        if found is True:
            return ""
        if not isinstance(found, str) or not found:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"authenticate must return a name, True, or None to refuse, not {found!r}")
        return check_client_name(found)

    def _foreign_origin(self, scope: Scope) -> str | None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        scheme = headers.get(b"authorization", b"").partition(b" ")[0].lower()
        if not origin or (scheme and scheme not in _OF_BROWSERS):
            return None
        has_credentials = bool(scheme) or b"cookie" in headers
        origins = self._origins if self._allows_credentials or not has_credentials else frozenset[str]()
        return None if allows_origin(origin, headers.get(b"host", b""), origins) else origin


def _refusal_of(error: HTTPException) -> Response:
    return status_problem(HTTPStatus(error.status_code), str(error.detail), dict(error.headers or {}))


def _count(refusal: Response) -> Response:
    metrics.REFUSED.add(str(refusal.status_code))
    return refusal
