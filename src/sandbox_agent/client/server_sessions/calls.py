"""HTTP calls to the session routes: sent once, or retried until the server responds."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import TypedDict, Unpack

import httpx2

from sandbox_agent.client.feed import READ_TIMEOUT
from sandbox_agent.client.health import HealthCheck
from sandbox_agent.client.http import Http, quote_segment, raise_for_problem
from sandbox_agent.client.server_sessions.retry import RETRIED_STATUSES, RetryPolicy
from sandbox_agent.errors import ConnectionLostError, SandboxAgentError

# Each of these calls responds from the store, or starts an agent at most.
CALL_TIMEOUT = 150.0


class UnavailableError(Exception):
    """The response has a status that may pass; ``__cause__`` is its error."""


class _RequestParts(TypedDict, total=False):
    params: Mapping[str, str | None] | None
    body: object
    headers: Mapping[str, str] | None


def session_path(session_id: str, *rest: str) -> str:
    """Return the path of a session, or of a part of it.

    Raises:
        ValueError: the id is empty.
    """
    if not session_id:
        raise ValueError("the session id is empty")
    return "/".join(["/v1/sessions", *(quote_segment(part) for part in (session_id, *rest))])


class SessionCalls:
    """Sends requests to the session routes of one server."""

    def __init__(self, http: Http, health: HealthCheck) -> None:
        self._http = http
        self._health = health

    def retry_policy(self, what: str) -> RetryPolicy:
        """Return the retry policy of one call."""
        return RetryPolicy(self._health, what)

    async def once(self, method: str, path: str, **parts: Unpack[_RequestParts]) -> httpx2.Response:
        """Send a request once the server is healthy; return the response with its body.

        Raises:
            ConnectionLostError: no response was received; whether the request took effect is unknown.
            SandboxAgentError: the response is an error.
        """
        await self._health.wait_ready()
        return await self._send(method, path, **parts)

    async def until_answered(
        self, method: str, path: str, *, retry: RetryPolicy | None = None, **parts: Unpack[_RequestParts]
    ) -> httpx2.Response:
        """Send an idempotent request until the server responds; raises as ``once``.

        Args:
            method: the HTTP method.
            path: the route's path.
            retry: the policy of the call that this request is a part of; None makes one.
            **parts: the request's query, body and headers.
        """
        retry = retry or self.retry_policy(f"{method} {path}")
        await retry.wait_ready()
        while True:
            try:
                return await self._send(method, path, **parts)
            except ConnectionLostError as error:
                await retry.wait(error)
            except SandboxAgentError as error:
                if error.status not in RETRIED_STATUSES:
                    raise
                retry.mark_responded()
                await retry.wait(error)

    async def _send(self, method: str, path: str, **parts: Unpack[_RequestParts]) -> httpx2.Response:
        try:
            return await self._http.fetch(method, path, read_timeout=CALL_TIMEOUT, **parts)
        except ConnectionLostError:
            self._health.mark_suspect()
            raise

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | None],
        headers: Mapping[str, str],
        content: bytes | None = None,
    ) -> AsyncGenerator[httpx2.Response]:
        """Open an event stream.

        Raises:
            httpx2.TransportError: the request failed, or the stream was cut off.
            UnavailableError: the server is temporarily unavailable.
            SandboxAgentError: the response is an error.
        """
        present = {key: value for key, value in params.items() if value is not None}
        headers = {"Accept": "text/event-stream", **headers}
        async with self._http.stream(
            path, params=present, headers=headers, read_timeout=READ_TIMEOUT, method=method, content=content
        ) as response:
            if response.status_code >= 400:
                _raise_status(response.status_code, await response.aread())
            yield response


def _raise_status(status: int, body: bytes) -> None:
    try:
        raise_for_problem(status, body)
    except SandboxAgentError as error:
        if status in RETRIED_STATUSES:
            raise UnavailableError(str(error)) from error
        raise
