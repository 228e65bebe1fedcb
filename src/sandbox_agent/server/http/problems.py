"""Errors as RFC 9457 problem documents: the one boundary where an exception becomes an answer."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from starlette.responses import Response

from sandbox_agent.errors import (
    InvalidRequestError,
    PersistError,
    ProblemError,
    StreamError,
    TokenInvalidError,
)
from sandbox_agent.wire.jsonrpc import dumps

__all__ = ["PROBLEM_JSON", "answer_for", "method_not_allowed", "no_endpoint", "problem_response"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

PROBLEM_JSON = "application/problem+json"


def problem_response(error: ProblemError, *, headers: dict[str, str] | None = None) -> Response:
    """Return the answer for an error."""
    if isinstance(error, TokenInvalidError):
        headers = {**(headers or {}), "WWW-Authenticate": "Bearer"}
    return _response(error.to_problem(), headers)


def _response(document: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(dumps(document), document["status"], headers, media_type=PROBLEM_JSON)


def answer_for(asked: str, error: Exception) -> Response:
    """Return the answer for whatever an operation raised; what it doesn't know is logged, not shown.

    Args:
        asked: method and path, for the log.
        error: what it raised.
    """
    if isinstance(error, ProblemError):
        return problem_response(error)
    if isinstance(error, PersistError):
        return problem_response(StreamError(f"stream error: {error}"))
    logger.error("%s failed", asked, exc_info=error)
    return _response(
        {
            "type": "about:blank",
            "title": "Internal Server Error",
            "status": 500,
            "detail": "an unexpected error; the server's log has the details",
        }
    )


def no_endpoint() -> Response:
    """Return the answer for a path that isn't served."""
    problem = InvalidRequestError("endpoint not found").to_problem()
    return _response({**problem, "title": "Not Found", "status": 404})


def method_not_allowed(allowed: Iterable[str]) -> Response:
    """Return the answer for a path that is served, but not with that method."""
    methods = ", ".join(sorted(allowed))
    problem = InvalidRequestError(f"method not allowed: this path takes {methods}").to_problem()
    return _response({**problem, "title": "Method Not Allowed", "status": 405}, {"Allow": methods})
