"""Converts errors to responses with RFC 9457 problem documents (``ProblemError.to_problem``)."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from sandbox_agent.errors import (
    InvalidRequestError,
    PersistError,
    ProblemError,
    StoreUnavailableError,
    TokenInvalidError,
)
from sandbox_agent.server.errors import without_path
from sandbox_agent.server.log_context import current_request_id
from sandbox_agent.wire.jsonrpc import dumps

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

PROBLEM_JSON = "application/problem+json"
# The recorder tries a store that failed about as often.
RETRY_AFTER_SECONDS = 1


def problem_response(error: ProblemError, *, headers: dict[str, str] | None = None) -> Response:
    """Return the response for an error of the HTTP contract."""
    if isinstance(error, TokenInvalidError):
        headers = {**(headers or {}), "WWW-Authenticate": "Bearer"}
    if isinstance(error, StoreUnavailableError):
        headers = {**(headers or {}), "Retry-After": str(RETRY_AFTER_SECONDS)}
    return _response(error.to_problem(), headers)


def _response(document: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    request_id = current_request_id()
    if request_id is not None:
        document = {**document, "requestId": request_id}
    return Response(dumps(document), document["status"], headers, media_type=PROBLEM_JSON)


def error_response(request: str, error: Exception) -> Response:
    """Return the response for any exception of an operation; unexpected ones are logged, not shown.

    ``request`` is the method and path, for the log.
    """
    if isinstance(error, ProblemError):
        return problem_response(error)
    if isinstance(error, PersistError):
        return problem_response(StoreUnavailableError(f"store unavailable: {without_path(str(error))}"))
    logger.error("%s failed", request, exc_info=error)
    return _response(
        {
            "type": "about:blank",
            "title": "Internal Server Error",
            "status": 500,
            "detail": "an unexpected error; see the server's log for details",
        }
    )


def status_problem(status: HTTPStatus, why: str, headers: dict[str, str]) -> Response:
    """Return the response for a request that is refused by HTTP's own rules, before any operation."""
    document = {"type": "about:blank", "title": status.phrase, "status": int(status), "detail": why}
    return _response(document, headers)


def no_endpoint() -> Response:
    """Return the response for an unknown path."""
    problem = InvalidRequestError("endpoint not found").to_problem()
    return _response({**problem, "title": "Not Found", "status": 404})


def method_not_allowed(allowed: Iterable[str]) -> Response:
    """Return the response for a path that does not support the method."""
    methods = ", ".join(sorted(allowed))
    problem = InvalidRequestError(f"method not allowed: this path supports {methods}").to_problem()
    return _response({**problem, "title": "Method Not Allowed", "status": 405}, {"Allow": methods})
