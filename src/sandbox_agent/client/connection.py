"""One ACP connection over HTTP: sends requests, and passes the feed's envelopes to the sessions' journals."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
import uuid
from collections.abc import Callable
from typing import Any

import httpx2

from sandbox_agent.client.agent_requests import AgentRequests, RequestHandlers
from sandbox_agent.client.delivery import Delivery, UnknownOutcomeError
from sandbox_agent.client.envelopes import Answer, Envelope, Line, notification, request
from sandbox_agent.client.feed import Feed, parse_event_data
from sandbox_agent.client.http import Http, describe, problem_error, quote_segment
from sandbox_agent.client.identity import client_name, connection_of, server_id_of
from sandbox_agent.client.journal import Journal
from sandbox_agent.client.outgoing import NotSentError, Outgoing, PendingRequest
from sandbox_agent.client.router import ClientSession, Router
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.engine.handshake import is_lost_session_error
from sandbox_agent.engine.sse import SseEvent
from sandbox_agent.errors import (
    AgentProcessExitedError,
    ConnectionLostError,
    RequestTimeoutError,
    SandboxAgentError,
)
from sandbox_agent.wire.jsonrpc import dumps, loads, members

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

CLIENT_HEADER = "Sandbox-Agent-Client"
# A response arrives twice; the feed's copy has the right place. If the POST has returned it and the feed is
# silent for this long, the feed's copy is lost (the published server drops events under load).
FEED_SILENCE = 1.0
# The feed of a server that sends an epoch loses nothing: it is only late.
COMPLETE_FEED_SILENCE = 15.0
RETRY_DELAY = 0.1
# After the agent has exited, its POSTs have this long to return the reason (stderr, exit code).
EXIT_GRACE = 0.5
# A proxy may answer 503 for a moment.
CLOSE_TIMEOUT = 5.0
# How long a prompt waits for the stream; then it is sent without one.
LIVE_PATIENCE = 10.0
# The published server ends the agent of a DELETE, but answers none: only the next one.
DELETE_TIMEOUT = 2.5
CONFLICT = 409


class Connection:
    """An ACP connection: the base of one that this client opens, and of one that it attaches to.

    Attributes:
        agent: the agent's id.
        connection_id: the id that records and events store.
        server_id: the connection's id on the server.
        key: the agent's id, or a key of its own where a session does not share it; and whether the agent may
            ask questions.
        answers_questions: whether the agent may ask questions.
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
        holder: str,
        *,
        connection_id: str | None = None,
        answers_questions: bool = False,
    ) -> None:
        self.agent = agent
        self.answers_questions = answers_questions
        self.key: tuple[str, bool] = (agent, answers_questions)
        self.connection_id: str = connection_id or str(uuid.uuid4())
        self.server_id: str = server_id_of(agent, self.connection_id)
        self.lost: SandboxAgentError | None = None
        self.closing: bool = False
        self.initialize_result: dict[str, Any] = {}
        self.router: Router = Router(self.connection_id, self._receive)
        self._http = http
        self._tasks = tasks
        self._handlers = handlers
        self._request_ids = request_ids
        self._on_lost = on_lost
        self._on_unreachable = on_unreachable
        self._path = f"/v1/acp/{quote_segment(self.server_id)}"
        self._headers = {CLIENT_HEADER: client_name(self.connection_id)}
        self._delivery = Delivery(http, self._path, self._headers)
        self._pending: dict[int, PendingRequest] = {}
        self._agent_requests = AgentRequests(
            self.router, tasks, handlers, self.connection_id, self._running_sessions, self._notify
        )
        self._exit_seen = asyncio.Event()
        self._lost_event = asyncio.Event()
        self._feed = Feed(http, self._path, self._headers, self._on_events, self._on_feed_failed, holder)
        self._feed_task: asyncio.Task[None] | None = None

    def _start_feed(self) -> None:
        if self._feed_task is None:
            self._feed_task = self._tasks.spawn(self._run_feed(), name=f"feed {self.server_id}")

    # sessions

    def turns(self, session: ClientSession | None = None) -> list[PendingRequest]:
        """Return the pending prompts of a session, or of all."""
        return [
            pending
            for pending in self._pending.values()
            if pending.method == "session/prompt" and session in {None, pending.session}
        ]

    def _running_sessions(self) -> set[ClientSession]:
        return {pending.session for pending in self.turns() if pending.session is not None}

    async def wait_turns_ended(self, session: ClientSession | None = None) -> None:
        """Wait until no prompt of the session, or of any, is pending."""
        while turns := self.turns(session):
            await asyncio.gather(*(pending.ended.wait() for pending in turns))

    def turns_of(self, session: ClientSession) -> set[asyncio.Event]:
        """Return the ends of the session's turns."""
        return {pending.ended for pending in self.turns(session)}

    def end_turns(self, session: ClientSession) -> None:
        """Answer the session's prompts as cancelled, and drop what the agent still sends for it."""
        for pending in self.turns(session):
            del self._pending[pending.outgoing.id]
            meta = {"sandbox-agent": {"cancelledBy": "client", "reason": "the agent ignored session/cancel"}}
            result = {"stopReason": "cancelled", "_meta": meta}
            line = dumps({"jsonrpc": "2.0", "id": pending.outgoing.id, "result": result})
            pending.outgoing.answer_event = session.journal.append("client", [line], self.connection_id)
            if not pending.future.done():
                pending.future.set_result(line)
            pending.ended.set()
        self.router.unbind_all(session)

    @property
    def is_shared(self) -> bool:
        """Whether the agent's sessions share it."""
        return self.key[0] == self.agent

    @property
    def is_used(self) -> bool:
        """Whether the agent holds a session, or a caller waits for a response."""
        return bool(self.router.sessions) or not all(
            each.future.cancelled() for each in self._pending.values()
        )

    def is_bound(self, agent_session_id: str, session: ClientSession) -> bool:
        """Whether the agent holds that session on this connection."""
        return self.lost is None and self.router.get(agent_session_id) is session

    async def release(self, session: ClientSession, fenced: SandboxAgentError) -> None:
        """Cancel the agent's turn for a session that another process owns; drop the session's events.

        Args:
            session: the session, with the record of the other process.
            fenced: the error that its pending requests fail with.

        Raises:
            SandboxAgentError: the cancellation could not be sent.
        """
        for pending in [pending for pending in self._pending.values() if pending.session is session]:
            self._fail(pending, fenced)
        agent_sessions = self.router.unbind_all(session)
        if connection_of(session.journal.record.last_connection_id) == connection_of(self.connection_id):
            return  # the process has attached to this connection: the turn is its own
        for agent_session in agent_sessions:
            cancel = notification("session/cancel", {"sessionId": agent_session})
            await self._notify(cancel, None, "session/cancel")

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
        pending = PendingRequest(sent, method, session, opens=opens, on_result=on_result, body=body)
        self._pending[sent.id] = pending
        if session is not None and method == "session/prompt":
            self.router.end_filter(session)
        if session is not None and sent.event is None:
            stored = body if stored_params is None else request(sent.id, method, stored_params)
            sent.event = session.journal.append("client", [stored], self.connection_id)
        self._tasks.spawn(self._send(pending), name=f"{method} {sent.id}")
        return Answer.read(await self._response_of(pending)).unwrap()

    async def _response_of(self, pending: PendingRequest) -> bytes:
        """Wait for a response; only a turn may take any time.

        Raises:
            RequestTimeoutError: the agent did not respond in time.
        """
        timeout = None if pending.method == "session/prompt" else self._delivery.response_timeout
        try:
            async with asyncio.timeout(timeout):
                return await pending.future
        except TimeoutError:
            self._pending.pop(pending.outgoing.id, None)
            raise RequestTimeoutError(
                f"timeout: {self.agent} did not answer {pending.method} within {timeout:g} s"
            ) from None

    async def notify(self, method: str, params: object, *, session: ClientSession) -> None:
        """Send a notification; it is stored."""
        await self._notify(notification(method, params), session, method)

    async def _notify(self, body: bytes, session: ClientSession | None, what: str) -> None:
        if self.lost is not None:
            raise NotSentError(f"{what} was not sent: {self.lost}") from self.lost
        key = None
        if session is not None:
            key = session.journal.append("client", [body], self.connection_id).id
        try:
            await self._delivery.notify(body, key)
        except (UnknownOutcomeError, httpx2.TransportError) as error:
            raise ConnectionLostError(f"{what} may not have arrived ({describe(error)})") from error

    async def _send(self, pending: PendingRequest) -> None:
        try:
            if pending.method == "session/prompt":
                await self._feed.wait_live(LIVE_PATIENCE)
                if self.lost is not None:
                    self._fail(pending, NotSentError(f"{pending.method} was not sent: {self.lost}"))
                    return
            event = pending.outgoing.event
            answer = await self._delivery.request(pending.body, pending.future, key=event and event.id)
            if answer:
                await self._prefer_feed(pending, answer)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            url = self._http.base_url
            self._on_unreachable()
            self._fail(
                pending,
                NotSentError(f"{pending.method} was not sent: cannot connect to {url} ({describe(error)})"),
            )
        except UnknownOutcomeError as error:
            pending.posted.set()
            self._wait_for_feed(pending, error)
        except SandboxAgentError as error:
            await self._handle_refusal(pending, error)
        finally:
            pending.posted.set()

    def _wait_for_feed(self, pending: PendingRequest, error: UnknownOutcomeError) -> None:
        if self.lost is not None:
            self._fail(pending, self._lost_error())
        elif error.problem is not None and pending.method != "session/prompt":
            self._fail(pending, error.problem)  # the server has waited long enough
        elif error.unprocessed:
            self._fail(pending, NotSentError(f"{pending.method} was not sent: {error}"))
        elif self._delivery.repeatable:
            # If the agent has received it nevertheless, it must not go on: the connection is closed.
            why = f"{pending.method} was not delivered ({error}): its outcome is unknown"
            self._lose(pending, ConnectionLostError(why))
        else:
            # The POST is lost, the turn is not: its response is also sent in the feed.
            logger.info("the POST of %s was cut off (%s): waiting for the feed", pending.method, error)

    async def _handle_refusal(self, pending: PendingRequest, error: SandboxAgentError) -> None:
        if isinstance(error, AgentProcessExitedError):
            # The agent's last messages are in the feed, before its exit.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_GRACE):
                    await self._exit_seen.wait()
            self._lose(pending, error)
        elif error.status in {400, 404, 410} and not await self._delivery.is_known(unless=True):
            gone = NotSentError(f"{pending.method} was not sent: the server no longer knows this connection")
            self._lose(pending, gone)
        else:
            self._fail(pending, error)

    def _lose(self, pending: PendingRequest, error: SandboxAgentError) -> None:
        self._mark_lost(error)
        self._fail(pending, error)
        self._tasks.spawn(self._retire(error), name=f"retire {self.server_id}")

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
            self.router.route([Line(answer.strip())])

    async def _fetch_response(self, pending: PendingRequest) -> None:
        """Ask for a response that the feed may have lost."""
        if not pending.posted.is_set() or not pending.body or not self._delivery.repeatable:
            return
        with contextlib.suppress(UnknownOutcomeError, SandboxAgentError, httpx2.TransportError):
            line = await self._delivery.fetch_response(pending.body)
            if not pending.future.done():
                self.router.route([Line(line.strip())])

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
        feed = self._feed.id
        journals = self.router.route(
            [Line(event.data, f"{feed}-{event.id}") for event in events if event.event == "message"]
        )
        for event in events:
            if event.event == "gap":
                self._append_gap(parse_event_data(event.data))
                for pending in list(self._pending.values()):
                    self._tasks.spawn(self._fetch_response(pending), name=f"{pending.method} after a gap")
        for journal in journals:
            if journal.over_limit:
                await journal.wait_drained()

    def _append_gap(self, params: dict[str, object]) -> None:
        logger.warning("the server no longer has some events of %s: %s", self.server_id, params)
        line = notification(
            "_sandbox_agent/events_lost", {**params, "reason": "the server no longer has them"}
        )
        self.router.append_to_all("client", Line(line))

    def _receive(self, line: Line, head: Envelope, touched: set[Journal]) -> None:
        if head.is_response:
            self._receive_response(line, head, touched)
        elif head.is_request:
            self._agent_requests.receive(line, head, touched)
        elif head.method == "_adapter/agent_exited":
            self._receive_exit(line)
        elif head.method == "_adapter/egress_refused":
            touched.update(self.router.append_to_all("agent", line))
        elif head.method == "_adapter/invalid_stdout":
            touched.update(self.router.append_invalid_line(line))
        elif head.method is not None:
            logger.debug("notification %s of %s belongs to no session", head.method, self.server_id)

    def _receive_response(self, received: Line, head: Envelope, touched: set[Journal]) -> None:
        line = received.data
        request_id = head.own_id()
        pending = self._pending.pop(request_id, None) if request_id is not None else None
        if pending is None:
            return  # the second copy, or the response to initialize
        pending.ended.set()
        session = pending.session
        if pending.on_result is not None and (answer := Answer.read(line)).error is None:
            pending.on_result(answer.result)
        if session is not None:
            if pending.method == "session/new":
                self._bind_new(line, session, pending)
            elif pending.opens is not None:
                self._bind_opened(line, session, pending, pending.opens)
            event = session.journal.append("agent", [line], self.connection_id, [received.event_id])
            error = (Answer.read(line).error if b'"error"' in line else None) or {}
            lost = is_lost_session_error(error)
            acted = pending.method == "session/prompt" and session.acted
            if pending.outgoing.retried or acted or not lost:
                pending.outgoing.answer_event = event  # else the request is sent again
            touched.add(session.journal)
        if not pending.future.done():
            pending.future.set_result(line)

    def _bind_new(self, line: bytes, session: ClientSession, pending: PendingRequest) -> None:
        result = members(Answer.read(line).result)
        agent_session: object = result.get("sessionId")
        if not isinstance(agent_session, str):
            return
        if not pending.future.done():  # the caller is still waiting
            session.on_bound(self.agent, self.connection_id, result)
            self.router.bind(agent_session, session)
            return
        self.router.ignore(agent_session)
        capabilities = members(
            members(self.initialize_result.get("agentCapabilities")).get("sessionCapabilities")
        )
        if capabilities.get("close") is not None:
            closing = self.request("session/close", {"sessionId": agent_session})
            self._tasks.spawn(closing, name=f"session/close {agent_session}")

    def _bind_opened(
        self, line: bytes, session: ClientSession, pending: PendingRequest, agent_session: str
    ) -> None:
        answer = Answer.read(line)
        if answer.error is not None or pending.future.done():  # refused, or the caller has given up
            self.router.ignore(agent_session)
            return
        result = members(answer.result)
        session.on_bound(self.agent, self.connection_id, {**result, "sessionId": agent_session})
        self.router.finish_filter(agent_session, session, result)

    def _receive_exit(self, line: Line) -> None:
        params: dict[str, Any] = loads(line.data).get("params") or {}
        code = params.get("code")
        reason = params.get("reason")
        how = f"exited (code {code})" if reason is None else f"was ended by the server ({reason})"
        error = AgentProcessExitedError(
            f"agent '{self.agent}' {how}: the next call starts it and restores the session",
            agent=self.agent,
            exitCode=code,
        )
        self.router.append_to_all("agent", line)
        self._exit_seen.set()
        self._tasks.spawn(self._retire(error), name=f"exit of {self.agent}")

    # closing

    async def _retire(self, error: SandboxAgentError) -> None:
        self._mark_lost(error)
        # An open POST returns more: the agent's stderr, or that the request was refused and can be repeated.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(EXIT_GRACE):
                await asyncio.gather(*(pending.posted.wait() for pending in self._pending.values()))
        pendings = list(self._pending.values())
        sent = next((pending for pending in pendings if pending.body), None)
        if sent is not None and isinstance(error, AgentProcessExitedError) and self._delivery.repeatable:
            self.lost = await self._exit_reason(sent) or error
        for pending in pendings:
            self._fail(pending, self._lost_error())
        await self.close()

    async def _exit_reason(self, pending: PendingRequest) -> AgentProcessExitedError | None:
        """Return why the agent exited, with its stderr: the server answers any repeated request with that."""
        try:
            async with asyncio.timeout(EXIT_GRACE):
                await self._delivery.fetch_response(pending.body)
        except AgentProcessExitedError as error:
            return error
        except (UnknownOutcomeError, SandboxAgentError, httpx2.TransportError, TimeoutError) as error:
            logger.info("the server did not say why %s exited: %s", self.agent, describe(error))
        return None

    def _lost_error(self) -> SandboxAgentError:
        if isinstance(self.lost, AgentProcessExitedError):
            return self.lost
        return ConnectionLostError(
            f"{self.lost}: the turn's outcome is unknown; the next call restores the session"
        )

    @property
    def was_open(self) -> bool:
        """Whether its event stream was ever open."""
        return self._feed.opened.is_set()

    def _mark_lost(self, error: SandboxAgentError) -> None:
        if self.lost is not None:
            return
        self.lost = error
        self._lost_event.set()
        self._delivery.closed = True
        self._feed.settle()
        for session in self.router.sessions:
            session.on_unbound(self.connection_id)
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
        running = [turn.session.journal for turn in self.turns() if turn.session is not None]
        self.abandon()
        if self._feed_task is not None and self._feed_task is not asyncio.current_task():
            self._feed_task.cancel()
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                if await self._is_kept():
                    await self._cancel(running)
        except (SandboxAgentError, UnknownOutcomeError, httpx2.TransportError, TimeoutError) as error:
            logger.info("connection %s was not closed: %s", self.server_id, describe(error))

    async def _is_kept(self) -> bool:
        """Delete the connection, unless another client has attached to it; return whether one has."""
        path, wait = f"{self._path}?if_unused=true", DELETE_TIMEOUT
        while True:
            with contextlib.suppress(httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.ReadTimeout):
                answer = await self._http.send("DELETE", path, headers=self._headers, read_timeout=wait)
                if answer.status_code < 429 or problem_error(answer) is not None:
                    return answer.status_code == CONFLICT
            await asyncio.sleep(RETRY_DELAY)  # the agent must not outlive its client because of a proxy

    async def _cancel(self, running: list[Journal]) -> None:
        """Cancel this client's turns: the agent keeps running for another client."""
        for journal in running:
            await journal.confirm()  # a session that the other client has taken is not cancelled
            params = {"sessionId": journal.record.agent_session_id}
            await self._delivery.notify(notification("session/cancel", params))
