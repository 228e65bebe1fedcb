"""The session routes as calls: plain ones, ones that are tried again, and streams."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping, Sequence

import httpx2

from sandbox_agent.client.feed import READ_TIMEOUT
from sandbox_agent.client.health import HealthGate
from sandbox_agent.client.http import Http, quote_segment, raise_for_problem
from sandbox_agent.client.server_sessions.retry import RETRIED_STATUSES, Patience
from sandbox_agent.engine.sse import SseDecoder, SseEvent, SseTooLargeError
from sandbox_agent.errors import ConnectionLostError, SandboxAgentError

__all__ = ["SessionCalls", "UnavailableError", "read_stream", "session_path"]

# Each of these calls answers from the store, or starts an agent at most.
CALL_TIMEOUT = 150.0


class UnavailableError(Exception):
    """The answer was a status that may pass; ``__cause__`` is the error that it stands for."""


def session_path(session_id: str, *rest: str) -> str:
    """Return the path of a session, or of something of it.

    Raises:
        ValueError: the id is empty.
    """
    if not session_id:
        raise ValueError("the session id is empty")
    return "/".join(["/v1/sessions", *(quote_segment(part) for part in (session_id, *rest))])


class SessionCalls:
    """HTTP to the session routes of one server."""

    def __init__(self, http: Http, gate: HealthGate) -> None:
        self._http = http
        self._gate = gate

    def patience(self, what: str) -> Patience:
        """Return the patience of one call."""
        return Patience(self._gate, what)

    async def once(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | None] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """Send once the server is healthy and return the answer, its body read.

        Raises:
            ConnectionLostError: no answer came; whether it was done is unknown.
            SandboxAgentError: the answer is an error.
        """
        await self._gate.ready()
        return await self._send(method, path, params=params, body=body, headers=headers)

    async def until_answered(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | None] | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
        patience: Patience | None = None,
    ) -> httpx2.Response:
        """Send what does no harm twice until an answer comes; errors as ``once``.

        The patience is that of the call which this is a part of; None: its own.
        """
        patience = patience or self.patience(f"{method} {path}")
        await patience.begin()
        while True:
            try:
                return await self._send(method, path, params=params, body=body, headers=headers)
            except ConnectionLostError as error:
                await patience.bear(error)
            except SandboxAgentError as error:
                if error.status not in RETRIED_STATUSES:
                    raise
                patience.meet()
                await patience.bear(error)

    async def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | None] | None,
        body: object,
        headers: Mapping[str, str] | None,
    ) -> httpx2.Response:
        try:
            return await self._http.fetch(
                method, path, params=params, body=body, headers=headers, read_timeout=CALL_TIMEOUT
            )
        except ConnectionLostError:
            self._gate.suspect()
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
        """Open a stream.

        Raises:
            httpx2.TransportError: it can't be had, or ends before its end.
            UnavailableError: not now.
            SandboxAgentError: the answer is an error.
        """
        present = {key: value for key, value in params.items() if value is not None}
        async with self._http.stream(
            path, params=present, headers=headers, read_timeout=READ_TIMEOUT, method=method, content=content
        ) as response:
            if response.status_code >= 400:
                _refuse(response.status_code, await response.aread())
            yield response


def _refuse(status: int, body: bytes) -> None:
    try:
        raise_for_problem(status, body)
    except SandboxAgentError as error:
        if status in RETRIED_STATUSES:
            raise UnavailableError(str(error)) from error
        raise


async def read_stream(response: httpx2.Response) -> AsyncGenerator[Sequence[SseEvent]]:
    """Iterate over a stream's events, those of a chunk together; comments give an empty batch.

    Raises:
        httpx2.TransportError: it was cut off.
        ConnectionLostError: it can't be read.
    """
    decoder = SseDecoder()
    async for chunk in response.aiter_raw():
        try:
            yield decoder.feed(chunk)
        except SseTooLargeError as error:
            raise ConnectionLostError(f"the event stream can't be read: {error}") from error
