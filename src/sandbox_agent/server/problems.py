"""Errors as RFC 9457 problem documents: the one boundary where an exception becomes an answer."""

from __future__ import annotations

import logging
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ExceptionHandler

from sandbox_agent.errors import (
    InvalidRequestError,
    PersistError,
    ProblemError,
    StreamError,
    TokenInvalidError,
)
from sandbox_agent.wire.jsonrpc import dumps

__all__ = ["EXCEPTION_HANDLERS", "PROBLEM_JSON", "problem_response"]

logger = logging.getLogger("sandbox_agent.server")

PROBLEM_JSON = "application/problem+json"


def problem_response(error: ProblemError, *, headers: dict[str, str] | None = None) -> Response:
    """Return the answer for an error."""
    if isinstance(error, TokenInvalidError):
        headers = {**(headers or {}), "WWW-Authenticate": "Bearer"}
    return _response(error.to_problem(), headers)


def _response(document: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    return Response(dumps(document), document["status"], headers, media_type=PROBLEM_JSON)


async def _on_problem(_: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)
    return problem_response(error)


async def _on_persist(_: Request, error: Exception) -> Response:
    return problem_response(StreamError(f"stream error: {error}"))


async def _on_http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        problem = InvalidRequestError("endpoint not found").to_problem()
        return _response({**problem, "title": "Not Found", "status": 404})
    problem = InvalidRequestError(error.detail).to_problem()
    title = "Method Not Allowed" if error.status_code == 405 else problem["title"]
    return _response({**problem, "title": title, "status": error.status_code}, dict(error.headers or {}))


async def _on_unexpected(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _response(
        {
            "type": "about:blank",
            "title": "Internal Server Error",
            "status": 500,
            "detail": "an unexpected error; the server's log has the details",
        }
    )


EXCEPTION_HANDLERS: dict[Any, ExceptionHandler] = {
    ProblemError: _on_problem,
    PersistError: _on_persist,
    HTTPException: _on_http,
    Exception: _on_unexpected,
}
