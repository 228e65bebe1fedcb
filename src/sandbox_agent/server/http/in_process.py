"""Clients of tests that call the application in their own process, and return responses only at their end."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from starlette.responses import Response

from sandbox_agent.server.http.problems import status_problem

# The port that the transports of httpx and httpx2 name as that of their client. No real client has it.
_HTTPX_PORT = 123
# Starlette's TestClient offers this extension.
_TEST_CLIENT = "http.response.debug"


def buffers_responses(scope: Mapping[str, Any]) -> bool:
    """Return whether the client of a request gets nothing of a response before it ends."""
    extensions: Mapping[str, Any] = scope.get("extensions") or {}
    if _TEST_CLIENT in extensions:
        return True
    client: tuple[str, int] | None = scope.get("client")
    is_httpx = client is not None and client[1] == _HTTPX_PORT and "spec_version" not in scope["asgi"]
    return is_httpx and not extensions


def endless_stream() -> Response:
    """Return the response to a client that would wait forever for the end of a stream."""
    return status_problem(
        HTTPStatus.NOT_IMPLEMENTED,
        "this stream does not end, and the ASGITransport of httpx and the TestClient of Starlette return a "
        "response only at its end: use sandbox_agent.testing.asgi.ASGITransport(app) with "
        "httpx2.AsyncClient, or SandboxAgent.connect(transport=...)",
        {},
    )
