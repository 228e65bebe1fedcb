"""Delivers the envelopes of one connection by POST; sends an envelope again if its outcome is unknown."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from sandbox_agent.client.http import (
    Http,
    describe,
    describe_failure,
    is_server_fault,
    problem_error,
    quote_segment,
    raise_for_redirect,
)
from sandbox_agent.errors import RequestTimeoutError, SandboxAgentError, StreamError
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, read_head

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# A server that answers before the agent does has answered by then; a proxy may have swallowed the request.
ANSWER_TIMEOUT = 30.0
# For servers that do not say how long an agent has; those that answer with the response end it before.
RESPONSE_TIMEOUT = 130.0
TIMEOUT_HEADER = "Sandbox-Agent-Request-Timeout"
LIST_TIMEOUT = 10.0
MIN_DELAY = 0.05
MAX_DELAY = 2.0
# A proxy is obeyed up to this; a date far in the future would stop the session.
MAX_RETRY_AFTER = 120.0
# How long an envelope is sent again; the default of the health check, too.
GIVE_UP_AFTER = 120.0
# An agent that did not read its input may do so later; an agent that cannot be started will not start.
TRIES_OF_A_PROBLEM = 3
# Sent by gateways and servers that did not process the request.
UNPROCESSED = frozenset({429, 503})
RESPOND_ASYNC = "respond-async"
KEY_HEADER = "Idempotency-Key"


class UnknownOutcomeError(Exception):
    """The server may have received the envelope, or may not have.

    Attributes:
        status: the status of the answer, 0 without one.
        problem: the server's own error, if it has answered.
        is_fault: whether the server says that it failed unexpectedly.
        unprocessed: whether the envelope certainly was not processed.
        retry_after: how long to wait before the next try, in seconds.
    """

    def __init__(
        self,
        reason: str,
        *,
        status: int = 0,
        problem: SandboxAgentError | None = None,
        is_fault: bool = False,
        unprocessed: bool = False,
        retry_after: float = 0.0,
    ) -> None:
        super().__init__(reason)
        self.status = status
        self.problem = problem
        self.is_fault = is_fault
        self.unprocessed = unprocessed
        self.retry_after = retry_after


class Delivery:
    """The POSTs of one connection.

    Args:
        http: the HTTP client.
        path: the connection's path.
        headers: headers of every request; they name the client.

    Attributes:
        closed: whether the connection is lost: nothing is sent again.
        response_timeout: how long the agent has to respond to a request other than a prompt, in seconds.
        repeatable: whether the server recognizes an envelope that is sent again, as its first answer says. If
            it does not (the published server), an envelope with an unknown outcome is not sent again.
    """

    def __init__(self, http: Http, path: str, headers: Mapping[str, str]) -> None:
        self.closed: bool = False
        self.repeatable: bool = False
        self.response_timeout: float = RESPONSE_TIMEOUT
        self._http = http
        self._path = path
        self._headers = {**headers, "Content-Type": "application/json", "Accept": "application/json"}

    async def request(
        self,
        body: bytes,
        response: asyncio.Future[bytes],
        *,
        key: str | None = None,
        params: Mapping[str, str] | None = None,
    ) -> bytes:
        """Send a request until the server has received it, or its response has arrived by the stream.

        Args:
            body: the envelope.
            response: the response, which the stream brings.
            key: the id of the request's event, by which a client that attaches recognizes the request.
            params: the query.

        Returns:
            The response from a server that answers with it; b"" if the stream brings it.

        Raises:
            UnknownOutcomeError: the server does not recognize repetitions, or no try had a usable answer.
            SandboxAgentError: the server refused the request.
            httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout: nothing was sent.
        """
        headers = {"Prefer": RESPOND_ASYNC} | ({KEY_HEADER: key} if key else {})
        return await self._repeat(body, headers, params, response)

    async def fetch_response(self, body: bytes) -> bytes:
        """Send a request again for its response; raises as ``request``."""
        return await self._post(body, {}, None, None)

    async def is_known(self, *, unless: bool) -> bool:
        """Return whether the server knows the connection; ``unless`` if it does not say."""
        try:
            answer: dict[str, Any] | None = await self._http.json("GET", "/v1/acp", read_timeout=LIST_TIMEOUT)
        except SandboxAgentError:
            return unless
        servers: list[dict[str, Any]] = (answer or {}).get("servers") or []
        known = [quote_segment(server["serverId"]) for server in servers]
        return self._path.rpartition("/")[2] in known

    async def notify(self, body: bytes, key: str | None = None) -> None:
        """Send a notification or a response, with the id of its event as its key; raises as ``request``."""
        await self._repeat(body, {KEY_HEADER: key or uuid.uuid4().hex}, None, None)

    async def _repeat(
        self,
        body: bytes,
        headers: Mapping[str, str],
        params: Mapping[str, str] | None,
        response: asyncio.Future[bytes] | None,
    ) -> bytes:
        delay = MIN_DELAY
        problems = 0
        is_uncertain = False
        began = time.monotonic()
        # A server that answers with the response takes as long as the agent does, also for a turn.
        slow = RESPONSE_TIMEOUT if params is not None else None
        while True:
            read_timeout = ANSWER_TIMEOUT if self.repeatable else slow
            try:
                return await self._post(body, headers, params, read_timeout)
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as refused:
                if not is_uncertain:
                    raise
                error = UnknownOutcomeError(describe(refused))  # an earlier try may have arrived
            except UnknownOutcomeError as unknown:
                error = unknown
                is_uncertain = is_uncertain or not error.unprocessed
                error.unprocessed = not is_uncertain
                problems += error.problem is not None
            if error.problem is not None and self.repeatable and problems >= TRIES_OF_A_PROBLEM:
                raise error.problem
            may_repeat = (self.repeatable or error.unprocessed) and not self.closed
            if not may_repeat or time.monotonic() - began > GIVE_UP_AFTER:
                raise error
            logger.info("a POST to %s has no usable answer (%s): sending it again", self._path, error)
            pause = max(delay, error.retry_after)
            if response is None:
                await asyncio.sleep(pause)
            elif (await asyncio.wait({response}, timeout=pause))[0]:
                return b""
            delay = min(delay * 2, MAX_DELAY)

    async def _post(
        self,
        body: bytes,
        headers: Mapping[str, str],
        params: Mapping[str, str] | None,
        read_timeout: float | None,
    ) -> bytes:
        """Send an envelope once; raises as ``request``."""
        try:
            answer = await self._http.send(
                "POST",
                self._path,
                content=body,
                params=params,
                headers={**self._headers, **headers},
                read_timeout=read_timeout,
            )
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout):
            raise
        except httpx2.TransportError as error:
            raise UnknownOutcomeError(describe(error)) from error
        status = answer.status_code
        if status < 300:
            if RESPOND_ASYNC in answer.headers.get("Preference-Applied", ""):
                self.repeatable = True
                self._read_timeout(answer)
            return _envelope(answer)
        raise_for_redirect(answer)
        problem = problem_error(answer)
        if problem is None or isinstance(problem, (RequestTimeoutError, StreamError)):
            raise UnknownOutcomeError(
                describe_failure(answer) if problem is None else str(problem),
                status=status,
                problem=problem,
                is_fault=is_server_fault(answer),
                unprocessed=problem is None and status in UNPROCESSED,
                retry_after=retry_after(answer),
            )
        raise problem

    def _read_timeout(self, answer: httpx2.Response) -> None:
        try:
            self.response_timeout = max(float(answer.headers.get(TIMEOUT_HEADER, "")), 0.001)
        except ValueError:
            self.response_timeout = RESPONSE_TIMEOUT


def _envelope(answer: httpx2.Response) -> bytes:
    """Return the body if it is an envelope or empty; a proxy may answer with a page of its own."""
    if answer.content:
        try:
            read_head(answer.content)
        except InvalidEnvelopeError as error:
            raise UnknownOutcomeError(
                f"status {answer.status_code} with a body that is not a JSON-RPC envelope ({error})",
                status=answer.status_code,
            ) from error
    return answer.content


def retry_after(answer: httpx2.Response) -> float:
    """Return the seconds of a Retry-After header (RFC 9110, section 10.2.3); 0 if there is none."""
    value = answer.headers.get("Retry-After", "").strip()
    if value.isascii() and value.isdigit():
        seconds = float(value)
    else:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), MAX_RETRY_AFTER)
