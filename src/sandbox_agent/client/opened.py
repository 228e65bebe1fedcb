"""A connection that this client opens: it starts the agent and initializes it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import httpx2

from sandbox_agent.client.agent_info import auth_methods
from sandbox_agent.client.connection import Connection
from sandbox_agent.client.delivery import TRIES_OF_A_PROBLEM, UnknownOutcomeError
from sandbox_agent.client.envelopes import Answer, request
from sandbox_agent.client.http import describe, quote_segment
from sandbox_agent.client.outgoing import NotSentError, Outgoing, PendingRequest
from sandbox_agent.engine.handshake import auth_method, initialize_params, offered_methods
from sandbox_agent.errors import (
    AcpRpcError,
    AgentNotInstalledError,
    ConnectionLostError,
    InvalidRequestError,
    SandboxAgentError,
)
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, members

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

RETRY_DELAY = 0.1
_UNKNOWN_ROUTE = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
# An agent that has not responded after so long may be one that the server installs first.
INSTALL_NOTICE_SECONDS = 2.0


class OpenedConnection(Connection):
    """A connection with an agent of its own; ``open`` starts it."""

    _env: Mapping[str, str]

    async def open(self, env: Mapping[str, str]) -> None:
        """Start the agent, initialize it, open the feed, and authenticate if that needs no user.

        Args:
            env: variables of this agent, besides those that agents inherit.
        """
        self._env = env
        sent = PendingRequest(Outgoing(next(self._request_ids)), "initialize", None)
        try:
            # A cancelled caller may already have started the agent: close() ends it.
            if env:
                await self._start_with(env)
            line = await self._start_agent(sent)
            self.initialize_result: dict[str, Any] = self._read_initialize(line)
            self._start_feed()
            await self._authenticate()
        except BaseException:
            await self.close()
            raise

    async def _start_with(self, env: Mapping[str, str]) -> None:
        """Start the agent with variables, which are not part of ACP."""
        try:
            await self._http.json("PUT", self._path, body={"agent": self.agent, "env": dict(env)})
        except ConnectionLostError as error:
            raise self._not_started(str(error)) from error
        except SandboxAgentError as error:
            if error.status in _UNKNOWN_ROUTE and not isinstance(error, AgentNotInstalledError):
                raise InvalidRequestError(
                    "this server cannot give a session variables of its own: leave env out, or set the "
                    "variables where the server is started"
                ) from error
            raise

    async def _start_agent(self, sent: PendingRequest) -> bytes:
        """Send initialize, which starts the agent, and return the response."""
        notice = self._tasks.spawn(self._report_installation(), name=f"installation of {self.agent}")
        try:
            return await self._initialize(sent)
        finally:
            notice.cancel()

    async def _report_installation(self) -> None:
        """Log that the server installs the agent first, if that is why it does not respond."""
        await asyncio.sleep(INSTALL_NOTICE_SECONDS)
        with contextlib.suppress(SandboxAgentError, httpx2.TransportError):
            info = members(await self._http.json("GET", f"/v1/agents/{quote_segment(self.agent)}"))
            if info.get("installed") is False:
                logger.warning(
                    "agent %s is not installed: the server installs it first, which can take minutes",
                    self.agent,
                )

    async def _initialize(self, sent: PendingRequest) -> bytes:
        self._pending[sent.outgoing.id] = sent
        initialize = initialize_params("sandbox-agent-sdk", answers_questions=self.answers_questions)
        sent.body = body = request(sent.outgoing.id, "initialize", initialize)
        deadline = time.monotonic() + self._delivery.response_timeout
        failures = 0
        while True:
            try:
                # An agent with variables runs already. If it has ended, it must not start without them.
                params = {} if self._env else {"agent": self.agent}
                answer = await self._delivery.request(body, sent.future, params=params)
                break
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
                raise self._not_started(describe(error)) from error
            except UnknownOutcomeError as error:
                if await self._delivery.is_known(unless=False):
                    self._start_feed()
                    opened = self._tasks.run(self._feed.opened.wait(), name="feed opened")
                    await asyncio.wait({opened, sent.future}, return_when=asyncio.FIRST_COMPLETED)
                    opened.cancel()
                    if sent.future.done() or not self._feed.complete:
                        answer = b""  # a server without epochs does not recognize repetitions
                        break
                elif error.problem is not None:
                    raise error.problem from None
                elif error.status == 200:
                    raise SandboxAgentError(
                        f"the answer to initialize is not a JSON-RPC envelope: is {self._http.base_url} a "
                        "sandbox-agent server?"
                    ) from error
                failures += error.is_fault
                if time.monotonic() > deadline or failures >= TRIES_OF_A_PROBLEM:
                    raise self._not_started(str(error)) from error
                await asyncio.sleep(max(error.retry_after, RETRY_DELAY))
        sent.posted.set()
        if answer:
            self._pending.pop(sent.outgoing.id, None)
            return answer
        self._start_feed()
        return await self._response_of(sent)

    def _not_started(self, why: str) -> NotSentError:
        return NotSentError(
            f"agent '{self.agent}' could not be started: no response from {self._http.base_url} ({why})"
        )

    def _read_initialize(self, line: bytes) -> dict[str, Any]:
        try:
            return members(Answer.read(line).unwrap())
        except InvalidEnvelopeError as error:
            raise SandboxAgentError(
                f"the response to initialize is not a JSON-RPC envelope ({error}): "
                f"is {self._http.base_url} a sandbox-agent server?"
            ) from error

    async def _authenticate(self) -> None:
        offered = offered_methods(self.initialize_result)
        method_id = auth_method(offered, await self._usable_methods()) if offered else None
        if method_id is None:
            return
        try:
            await self.request("authenticate", {"methodId": method_id})
        except AcpRpcError as error:
            # The agent may have credentials already; if not, its first prompt fails with the reason.
            logger.info("agent %s did not authenticate with %s: %s", self.agent, method_id, error)

    async def _usable_methods(self) -> list[str] | None:
        """Return the authentication methods whose credentials the server has; None if it does not say."""
        methods = await auth_methods(self._http, self.agent)
        usable = [
            each.method
            for each in methods or ()
            if each.required and (each.satisfied or any(self._env.get(name) for name in each.variables))
        ]
        return usable if methods else None
