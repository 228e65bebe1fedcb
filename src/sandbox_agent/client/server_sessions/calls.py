"""HTTP calls to the session routes: retried until the server responds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import TypedDict, TypeVar, Unpack

import httpx2
import msgspec

from sandbox_agent.client.delivery import UNPROCESSED
from sandbox_agent.client.feed import READ_TIMEOUT, RECONNECT_MAX_DELAY, RECONNECT_MIN_DELAY, UNREACHABLE_FOR
from sandbox_agent.client.health import HealthCheck
from sandbox_agent.client.http import Http, describe, quote_segment, raise_for_problem
from sandbox_agent.errors import ConnectionLostError, ProblemError, SandboxAgentError
from sandbox_agent.wire.jsonrpc import (
    InvalidEnvelopeError,
    dumps,
    elements,
    loads,
    members,
    replace_surrogates,
)
from sandbox_agent.wire.sessions import EnvelopesResponse, EventsResponse

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

T = TypeVar("T")

# Sent by a proxy whose server is away, or by a server whose store fails: a later try may succeed.
RETRIED_STATUSES = frozenset({429, 502, 503, 504})


def is_temporary(error: SandboxAgentError) -> bool:
    """Whether a request that has no effect, or has it once, may succeed when it is sent again."""
    return isinstance(error, ConnectionLostError) or error.status in RETRIED_STATUSES


def is_of_network(error: SandboxAgentError) -> bool:
    """Whether a temporary error is one of the network or of a proxy: the server's own are raised."""
    is_silent = isinstance(error.__cause__, httpx2.ReadTimeout)
    return is_temporary(error) and not isinstance(error, ProblemError) and not is_silent


def is_unprocessed(error: SandboxAgentError) -> bool:
    """Whether a proxy says that the server has not received the request."""
    return not isinstance(error, ProblemError) and error.status in UNPROCESSED


class RetryPolicy:
    """Decides after every loss whether to try again, and waits before it.

    A client with a health check waits as long as that does (``health_timeout``). While the server is
    healthy, losses are retried for UNREACHABLE_FOR without progress. A client without a health check gives
    up at once if the connection is refused, unless the server has responded before.
    """

    def __init__(self, health: HealthCheck, what: str) -> None:
        self._health = health
        self._what = what
        self._delay = RECONNECT_MIN_DELAY
        self._lost_since: float | None = None
        self._responded = False

    async def wait_ready(self) -> None:
        """Wait until the server is healthy.

        Raises:
            HealthTimeoutError: the server was not healthy in time.
        """
        await self._health.wait_ready()

    def mark_responded(self) -> None:
        """Record that the server responded."""
        self._responded = True

    def mark_progress(self) -> None:
        """Record that new data was received: the retry time starts again."""
        self._responded = True
        self._lost_since = None
        self._delay = RECONNECT_MIN_DELAY

    async def wait(self, loss: Exception | str) -> None:
        """Wait before the next try.

        Raises:
            ConnectionLostError: the server is gone.
            HealthTimeoutError: the server was not healthy in time.
            SandboxAgentError: the loss itself, if it is such an error and has lasted too long.
        """
        text = describe(loss) if isinstance(loss, Exception) else loss
        root = loss.__cause__ or loss if isinstance(loss, Exception) else None
        refused = isinstance(root, (httpx2.ConnectError, httpx2.ConnectTimeout))
        now = time.monotonic()
        expired = self._lost_since is not None and now - self._lost_since > UNREACHABLE_FOR
        if self._lost_since is None:
            self._lost_since = now
        if expired or (refused and not self._health.enabled and not self._responded):
            if isinstance(loss, SandboxAgentError):
                raise loss
            raise ConnectionLostError(f"{self._what}: the server is gone ({text})")
        logger.info("%s: %s: trying again", self._what, text)
        await asyncio.sleep(self._delay)
        self._delay = min(self._delay * 2, RECONNECT_MAX_DELAY)
        if refused or (isinstance(root, SandboxAgentError) and is_of_network(root)):
            self._health.mark_suspect()
        before = time.monotonic()
        await self._health.wait_ready()
        # The health check has a timeout of its own.
        self._lost_since += time.monotonic() - before


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
        ValueError: the id, or another part, is empty or a dot segment.
    """
    return "/".join(["/v1/sessions", *(quote_segment(part) for part in (session_id, *rest))])


class SessionCalls:
    """Sends requests to the session routes of one server."""

    def __init__(self, http: Http, health: HealthCheck) -> None:
        self._http = http
        self._health = health

    def retry_policy(self, what: str) -> RetryPolicy:
        """Return the retry policy of one call."""
        return RetryPolicy(self._health, what)

    async def send(
        self,
        method: str,
        path: str,
        *,
        retry: RetryPolicy | None = None,
        repeats: Callable[[SandboxAgentError], bool] = is_temporary,
        is_done: Callable[[SandboxAgentError], bool] = lambda _error: False,
        read_timeout: float | None = None,
        **parts: Unpack[_RequestParts],
    ) -> httpx2.Response:
        """Send a request until the server responds; return the response with its body.

        Args:
            method: the HTTP method.
            path: the route's path.
            retry: the policy of the call that this request is a part of; None makes one.
            repeats: whether the request is sent again after an error.
            is_done: whether an error says that an earlier try, whose response was lost, took effect.
            read_timeout: how long one try may be silent; None is CALL_TIMEOUT.
            **parts: the request's query, body and headers.

        Raises:
            ConnectionLostError: no response was received; whether the request took effect is unknown.
            SandboxAgentError: the response is an error.
        """
        retry = retry or self.retry_policy(f"{method} {path}")
        await retry.wait_ready()
        read_timeout = read_timeout or CALL_TIMEOUT
        is_uncertain = False
        while True:
            try:
                return await self._http.fetch(method, path, read_timeout=read_timeout, **parts)
            except SandboxAgentError as error:
                if is_uncertain and is_done(error):
                    return httpx2.Response(204)
                is_lost = isinstance(error, ConnectionLostError)
                if is_lost or is_of_network(error):
                    self._health.mark_suspect()
                if not is_lost:
                    retry.mark_responded()
                if not repeats(error):
                    raise
                is_uncertain = is_uncertain or not is_unprocessed(error)
                await retry.wait(error)

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


def query(**values: str | int | bool | None) -> dict[str, str | None]:
    """Return query parameters; None and False are left out."""
    return {name: _parameter(value) for name, value in values.items()}


def _parameter(value: str | int | bool | None) -> str | None:
    if isinstance(value, bool):
        return "true" if value else None
    return None if value is None else str(value)


def decode(answer: httpx2.Response, kind: type[T], what: str) -> T:
    """Decode a response.

    Raises:
        SandboxAgentError: the response does not have the expected shape.
    """
    try:
        if rb"\ud" in answer.content:
            return _decode_halves(answer.content, kind)
        return msgspec.json.decode(answer.content, type=kind)
    except (InvalidEnvelopeError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SandboxAgentError(
            f"{what}: unexpected response ({error}): is that a sandbox-agent server?"
        ) from error


def _decode_halves(content: bytes, kind: type[T]) -> T:
    """Decode a response that may have half of a surrogate pair, which msgspec refuses; events keep it."""
    value = loads(content)
    if kind is EventsResponse:
        events: list[object] = elements(members(value).get("events"))
        return msgspec.convert({**value, "events": [msgspec.Raw(dumps(event)) for event in events]}, kind)
    if kind is EnvelopesResponse:
        found = [members(each) for each in elements(members(value).get("envelopes"))]
        raw = [{**each, "envelope": msgspec.Raw(dumps(each.get("envelope")))} for each in found]
        return msgspec.convert({**value, "envelopes": raw}, kind)
    return msgspec.json.decode(replace_surrogates(json.dumps(value, ensure_ascii=False)), type=kind)
