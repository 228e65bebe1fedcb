"""One ACP connection over HTTP: sends requests, and passes the feed's envelopes to the sessions' journals."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
import msgspec

from sandbox_agent.client.envelopes import Answer, Envelope, notification, request, response
from sandbox_agent.client.feed import Feed, parse_event_data
from sandbox_agent.client.http import Http, describe, quote_segment, raise_for_problem
from sandbox_agent.client.journal import Journal
from sandbox_agent.client.outgoing import NotSentError, Outgoing, PendingRequest
from sandbox_agent.client.ports import ClientSession
from sandbox_agent.client.router import Router
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.engine.handshake import auth_method, initialize_params
from sandbox_agent.engine.sse import SseEvent
from sandbox_agent.errors import (
    AcpRpcError,
    AgentProcessExitedError,
    ConnectionLostError,
    SandboxAgentError,
)
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads
from sandbox_agent.wire.members import members

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

CLIENT_HEADER = "Sandbox-Agent-Client"
# A response arrives twice; the feed's copy has the right place. If the POST has returned it and the feed is
# silent for this long, the feed's copy is lost (the published server drops events under load).
FEED_SILENCE = 1.0
# The feed of a server that sends an epoch loses nothing: it is only late.
COMPLETE_FEED_SILENCE = 15.0
# A prompt lasts as long as its turn; any other request whose POST was cut off fails after this.
LOST_ANSWER_TIMEOUT = 130.0
# After the agent has exited, its POSTs have this long to return the reason (stderr, exit code).
EXIT_GRACE = 0.5
CLOSE_TIMEOUT = 2.0

RequestHandlers = dict[str, Callable[[Any], Awaitable[object] | object]]


class Connection:
    """An ACP connection; ``open`` starts it.

    Attributes:
        agent: the agent's id.
        connection_id: the id that records and events store.
        server_id: the connection's id on the server.
        lost: why the connection cannot be used any more, or None.
        closing: whether ``close`` was called.
        initialize_result: the agent's result of initialize.
        router: routes envelopes to the bound sessions.
    """

    def __init__(
        self,
        http: Http,
        tasks: TaskOwner,
        agent: str,
        request_ids: itertools.count[int],
        on_lost: Callable[[Connection], None],
        handlers: RequestHandlers,
        on_unreachable: Callable[[], None],
    ) -> None:
        self.agent = agent
        self.connection_id: str = str(uuid.uuid4())
        self.server_id: str = f"sdk-{agent}-{uuid.uuid4()}"
        self.lost: SandboxAgentError | None = None
        self.closing: bool = False
        self.initialize_result: dict[str, Any] = {}
        self.router: Router = Router(self.connection_id, self._receive)
        self._http = http
        self._tasks = tasks
        self._request_ids = request_ids
        self._on_lost = on_lost
        self._handlers = handlers
        self._on_unreachable = on_unreachable
        self._path = f"/v1/acp/{quote_segment(self.server_id)}"
        self._headers = {CLIENT_HEADER: f"sdk-{self.connection_id}"}
        self._pending: dict[int, PendingRequest] = {}
        self._exit_seen = asyncio.Event()
        self._feed = Feed(http, self._path, self._headers, self._on_events, self._on_feed_failed)
        self._feed_task: asyncio.Task[None] | None = None

    # opening

    async def open(self) -> None:
        """Start the agent, initialize it, open the feed, and authenticate if that needs no user."""
        params = initialize_params("sandbox-agent-sdk")
        try:
            # A cancelled caller may already have started the agent: close() ends it.
            line = await self._start_agent(request(next(self._request_ids), "initialize", params))
            self.initialize_result = self._read_initialize(line)
            self._feed_task = self._tasks.spawn(self._run_feed(), name=f"feed {self.server_id}")
            await self._authenticate()
        except BaseException:
            await self.close()
            raise

    async def _start_agent(self, body: bytes) -> bytes:
        try:
            status, answer = await self._post(body, {"agent": self.agent})
        except httpx2.TransportError as error:
            raise NotSentError(
                f"agent '{self.agent}' could not be started: no response from {self._http.base_url} "
                f"({describe(error)})"
            ) from error
        raise_for_problem(status, answer)
        return answer

    def _read_initialize(self, line: bytes) -> dict[str, Any]:
        try:
            return members(Answer.read(line).unwrap())
        except InvalidEnvelopeError as error:
            raise SandboxAgentError(
                f"the response to initialize is not a JSON-RPC envelope ({error}): "
                f"is {self._http.base_url} a sandbox-agent server?"
            ) from error

    async def _authenticate(self) -> None:
        method_id = auth_method(self.initialize_result)
        if method_id is None:
            return
        try:
            await self.request("authenticate", {"methodId": method_id})
        except AcpRpcError as error:
            # The agent may have credentials already; if not, its first prompt fails with the reason.
            logger.info("agent %s did not authenticate with %s: %s", self.agent, method_id, error)

    # sessions

    def turns_of(self, session: ClientSession) -> set[asyncio.Future[bytes]]:
        """Return the pending responses of the session's prompts."""
        return {
            pending.future
            for pending in self._pending.values()
            if pending.session is session and pending.method == "session/prompt"
        }

    def is_bound(self, agent_session_id: str, session: ClientSession) -> bool:
        """Whether the agent holds that session on this connection."""
        return self.lost is None and self.router.get(agent_session_id) is session

    async def release(self, session: ClientSession, fenced: SandboxAgentError) -> None:
        """Cancel the agent's turn for a session that another process owns; drop the session's events.

        Args:
            session: the session.
            fenced: the error that its pending requests fail with.

        Raises:
            SandboxAgentError: the cancellation could not be sent.
        """
        for pending in [pending for pending in self._pending.values() if pending.session is session]:
            self._fail(pending, fenced)
        for agent_session in self.router.unbind_all(session):
            cancel = notification("session/cancel", {"sessionId": agent_session})
            await self._post_accepted(cancel, None, "session/cancel")

    # sending

    async def request(
        self,
        method: str,
        params: object,
        *,
        session: ClientSession | None = None,
        stored_params: object = None,
        outgoing: Outgoing | None = None,
        opens: str | None = None,
        on_result: Callable[[Any], None] | None = None,
    ) -> Any:
        """Send a request and return its result.

        Args:
            method: the JSON-RPC method.
            params: the params that the agent receives.
            session: the session whose journal stores the request and the response.
            stored_params: the params that are stored, if they differ.
            outgoing: an earlier try of the same request.
            opens: the agent session that the request opens again; it is bound when the agent has opened it.
            on_result: called with the result before anything that the agent sends later is handled.

        Raises:
            NotSentError: the agent did not receive the request.
            ConnectionLostError: the connection was lost during the request.
            AgentProcessExitedError: the agent exited.
            AcpRpcError: the agent responded with an error.
        """
        if self.lost is not None:
            raise NotSentError(f"{method} was not sent: {self.lost}") from self.lost
        sent = outgoing or Outgoing(next(self._request_ids))
        body = request(sent.id, method, params)
        pending = PendingRequest(sent, method, session, opens=opens, on_result=on_result)
        self._pending[sent.id] = pending
        if session is not None and method == "session/prompt":
            self.router.end_filter(session)
        if session is not None and sent.event is None:
            stored = body if stored_params is None else request(sent.id, method, stored_params)
            sent.event = session.journal.append("client", [stored], self.connection_id)
        self._tasks.spawn(self._send(pending, body), name=f"{method} {sent.id}")
        return Answer.read(await pending.future).unwrap()

    async def notify(self, method: str, params: object, *, session: ClientSession) -> None:
        """Send a notification; it is stored."""
        await self._post_accepted(notification(method, params), session, method)

    async def respond(
        self,
        raw_id: msgspec.Raw,
        session: ClientSession | None,
        *,
        result: object = None,
        error: object = None,
    ) -> None:
        """Send the response to a request of the agent; it is stored."""
        await self._post_accepted(response(raw_id, result=result, error=error), session, "the response")

    async def _post(self, body: bytes, params: dict[str, str] | None = None) -> tuple[int, bytes]:
        headers = {**self._headers, "Content-Type": "application/json", "Accept": "application/json"}
        return await self._http.send("POST", self._path, content=body, params=params, headers=headers)

    async def _post_accepted(self, body: bytes, session: ClientSession | None, what: str) -> None:
        if self.lost is not None:
            raise NotSentError(f"{what} was not sent: {self.lost}") from self.lost
        if session is not None:
            session.journal.append("client", [body], self.connection_id)
        try:
            status, answer = await self._post(body)
        except httpx2.TransportError as error:
            raise ConnectionLostError(f"{what} may not have arrived ({describe(error)})") from error
        raise_for_problem(status, answer)

    async def _send(self, pending: PendingRequest, body: bytes) -> None:
        try:
            status, answer = await self._post(body)
            if status >= 400:
                await self._handle_refusal(pending, status, answer)
            elif answer:
                await self._prefer_feed(pending, answer)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            url = self._http.base_url
            self._on_unreachable()
            self._fail(
                pending,
                NotSentError(f"{pending.method} was not sent: cannot connect to {url} ({describe(error)})"),
            )
        except httpx2.TransportError as error:
            pending.post_open = False
            await self._wait_for_feed(pending, error)
        finally:
            pending.post_open = False

    async def _wait_for_feed(self, pending: PendingRequest, error: httpx2.TransportError) -> None:
        # The POST is lost, the turn is not: its response is also sent in the feed.
        if self.lost is not None:
            self._fail(pending, self._lost_error())
        logger.info("the POST of %s was cut off (%s): waiting for the feed", pending.method, describe(error))
        if pending.method != "session/prompt":
            await asyncio.wait({pending.future}, timeout=LOST_ANSWER_TIMEOUT)
            self._fail(
                pending,
                ConnectionLostError(f"{pending.method}: no response was received ({describe(error)})"),
            )

    async def _handle_refusal(self, pending: PendingRequest, status: int, answer: bytes) -> None:
        if status in {400, 404, 410} and not await self._is_on_server():
            gone = NotSentError(f"{pending.method} was not sent: the server no longer knows this connection")
            self._lose(pending, gone)
            return
        try:
            raise_for_problem(status, answer)
        except AgentProcessExitedError as error:
            # The agent's last messages are in the feed, before its exit.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_GRACE):
                    await self._exit_seen.wait()
            self._lose(pending, error)
        except SandboxAgentError as error:
            self._fail(pending, error)

    def _lose(self, pending: PendingRequest, error: SandboxAgentError) -> None:
        self._mark_lost(error)
        self._fail(pending, error)
        self._tasks.spawn(self._retire(error), name=f"retire {self.server_id}")

    async def _is_on_server(self) -> bool:
        try:
            answer: dict[str, Any] | None = await self._http.json("GET", "/v1/acp")
        except SandboxAgentError:
            return True
        servers: list[dict[str, Any]] = (answer or {}).get("servers") or []
        return any(server.get("serverId") == self.server_id for server in servers)

    async def _prefer_feed(self, pending: PendingRequest, answer: bytes) -> None:
        answered = time.monotonic()
        patience = COMPLETE_FEED_SILENCE if self._feed.complete else FEED_SILENCE
        while not pending.future.done() and self.lost is None:
            quiet = self._feed.quiet_since(answered)
            if quiet >= patience and self._feed.live:
                break
            await asyncio.wait({pending.future}, timeout=max(patience - quiet, 0.05))
        if not pending.future.done():
            logger.warning("the feed lost the response to %s: using the POST's copy", pending.method)
            self.router.route([answer.strip()])

    def _fail(self, pending: PendingRequest, error: SandboxAgentError) -> None:
        if self._pending.get(pending.outgoing.id) is pending:
            del self._pending[pending.outgoing.id]
        pending.fail(error)

    # receiving

    async def _run_feed(self) -> None:
        try:
            reason = await self._feed.run()
        except Exception as error:
            # A bug in this client must not leave requests waiting forever.
            logger.exception("the feed of %s failed", self.server_id)
            reason = ConnectionLostError(f"the event stream could not be processed: {describe(error)}")
        await self._retire(reason)

    def _on_feed_failed(self) -> None:
        # A sandbox that is idle may sleep: only a request in progress wakes it.
        if self._pending:
            self._on_unreachable()

    async def _on_events(self, events: list[SseEvent]) -> None:
        journals = self.router.route([event.data for event in events if event.event == "message"])
        for event in events:
            if event.event == "gap":
                self._append_gap(parse_event_data(event.data))
        for journal in journals:
            if journal.over_limit:
                await journal.wait_drained()

    def _append_gap(self, params: dict[str, object]) -> None:
        logger.warning("the server no longer has some events of %s: %s", self.server_id, params)
        line = notification(
            "_sandbox_agent/events_lost", {**params, "reason": "the server no longer has them"}
        )
        for session in self.router.sessions:
            session.journal.append("client", [line], self.connection_id)

    def _receive(self, line: bytes, head: Envelope, touched: set[Journal]) -> None:
        if head.is_response:
            self._receive_response(line, head, touched)
        elif head.is_request:
            self._receive_request(line, head, touched)
        elif head.method == "_adapter/agent_exited":
            self._receive_exit(line)
        elif head.method is not None:
            logger.debug("notification %s of %s belongs to no session", head.method, self.server_id)

    def _receive_response(self, line: bytes, head: Envelope, touched: set[Journal]) -> None:
        request_id = head.own_id()
        pending = self._pending.pop(request_id, None) if request_id is not None else None
        if pending is None:
            return  # the second copy, or the response to initialize
        session = pending.session
        if pending.on_result is not None and (answer := Answer.read(line)).error is None:
            pending.on_result(answer.result)
        if session is not None:
            if pending.method == "session/new":
                self._bind_new(line, session, pending)
            elif pending.opens is not None:
                self._bind_opened(line, session, pending, pending.opens)
            pending.outgoing.answer_event = session.journal.append("agent", [line], self.connection_id)
            touched.add(session.journal)
        if not pending.future.done():
            pending.future.set_result(line)

    def _bind_new(self, line: bytes, session: ClientSession, pending: PendingRequest) -> None:
        result = members(Answer.read(line).result)
        agent_session: object = result.get("sessionId")
        if isinstance(agent_session, str):
            if not pending.future.done():  # the caller is still waiting
                session.on_bound(self, result)
            self.router.bind(agent_session, session)

    def _bind_opened(
        self, line: bytes, session: ClientSession, pending: PendingRequest, agent_session: str
    ) -> None:
        answer = Answer.read(line)
        if answer.error is not None or pending.future.done():  # refused, or the caller has given up
            self.router.ignore(agent_session)
            return
        result = members(answer.result)
        session.on_bound(self, {**result, "sessionId": agent_session})
        self.router.finish_filter(agent_session, session, result)

    def _receive_request(self, line: bytes, head: Envelope, touched: set[Journal]) -> None:
        session = self.router.get(head.session_id)
        is_permission = head.method == "session/request_permission"
        if session is not None:
            event = session.journal.append("agent", [line], self.connection_id)
            touched.add(session.journal)
            if is_permission:
                session.on_agent_request(self, head, event)
                return
        work = self._cancel_unknown(head) if is_permission else self._call_handler(line, head, session)
        self._tasks.spawn(work, name=f"answer {head.method}")

    async def _cancel_unknown(self, head: Envelope) -> None:
        await self.respond(head.id, None, result={"outcome": {"outcome": "cancelled"}})

    async def _call_handler(self, line: bytes, head: Envelope, session: ClientSession | None) -> None:
        handler = self._handlers.get(head.method or "")
        if handler is None:
            message = f'"Method not found": {head.method}'
            await self.respond(head.id, session, error={"code": -32601, "message": message})
            return
        try:
            answer = handler(loads(line).get("params"))
            result: object = await answer if inspect.isawaitable(answer) else answer
        except Exception as error:
            logger.exception("the handler of %s failed", head.method)
            await self.respond(head.id, session, error={"code": -32603, "message": describe(error)})
            return
        await self.respond(head.id, session, result=result)

    def _receive_exit(self, line: bytes) -> None:
        params: dict[str, Any] = loads(line).get("params") or {}
        code = params.get("code")
        error = AgentProcessExitedError(
            f"agent '{self.agent}' exited (code {code}): the next call starts it and restores the session",
            agent=self.agent,
            exitCode=code,
        )
        for session in self.router.sessions:
            session.journal.append("agent", [line], self.connection_id)
        self._exit_seen.set()
        self._tasks.spawn(self._retire(error), name=f"exit of {self.agent}")

    # closing

    async def _retire(self, error: SandboxAgentError) -> None:
        self._mark_lost(error)
        for pending in [pending for pending in self._pending.values() if not pending.post_open]:
            self._fail(pending, self._lost_error())
        # An open POST returns more: the agent's stderr, or that the request was refused and can be repeated.
        futures = {pending.future for pending in self._pending.values()}
        if futures:
            await asyncio.wait(futures, timeout=EXIT_GRACE)
        await self.close()

    def _lost_error(self) -> SandboxAgentError:
        if isinstance(self.lost, AgentProcessExitedError):
            return self.lost
        return ConnectionLostError(
            f"{self.lost}: the turn's outcome is unknown; the next call restores the session"
        )

    def _mark_lost(self, error: SandboxAgentError) -> None:
        if self.lost is not None:
            return
        self.lost = error
        for session in self.router.sessions:
            session.on_unbound(self)
        self.router.close()
        self._on_lost(self)

    def abandon(self) -> None:
        """Mark the connection as lost; pending requests fail."""
        self._mark_lost(ConnectionLostError("the connection was closed"))
        pendings, self._pending = list(self._pending.values()), {}
        for pending in pendings:
            pending.fail(self._lost_error())

    async def close(self) -> None:
        """End the agent, within CLOSE_TIMEOUT; pending requests fail."""
        if self.closing:
            return
        self.closing = True
        self.abandon()
        if self._feed_task is not None and self._feed_task is not asyncio.current_task():
            self._feed_task.cancel()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._http.send("DELETE", self._path, headers=self._headers)
        except (httpx2.TransportError, TimeoutError) as error:
            logger.info("connection %s was not deleted: %s", self.server_id, describe(error))
