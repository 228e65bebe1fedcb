"""One ACP connection over HTTP: requests out, the feed in, everything of a session into its journal."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, cast

import httpx2
import msgspec

from sandbox_agent.client.envelopes import Answer, Envelope, notification, request, response
from sandbox_agent.client.feed import Feed, gap_params
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

__all__ = ["Connection"]

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

CLIENT_HEADER = "Sandbox-Agent-Client"
# A response comes twice; the feed's copy has the right place. When the POST has answered and the feed says
# nothing for this long, its copy is lost (the peer's server drops events under load): take the POST's.
FEED_SILENCE = 1.0
# A server that names its feed's epoch loses none: its feed is only late.
COMPLETE_FEED_SILENCE = 15.0
# A prompt lasts as long as its turn; any other request whose POST was cut off is given up after this.
LOST_ANSWER_TIMEOUT = 130.0
# After the agent's exit was seen, its POSTs have this long to answer with the reason (stderr, exit code).
EXIT_GRACE = 0.5
CLOSE_TIMEOUT = 2.0


class Connection:
    """A live ACP connection; made by ``Connection.open``.

    Attributes:
        agent: which agent it runs.
        connection_id: what records and events call it.
        server_id: its name on the server.
        lost: why it can't be used any more, or None.
        closing: whether ``close`` was called.
        initialize_result: what the agent said about itself.
    """

    def __init__(
        self,
        http: Http,
        tasks: TaskOwner,
        agent: str,
        request_ids: itertools.count[int],
        on_lost: Callable[[Connection], None],
    ) -> None:
        self.agent = agent
        self.connection_id: str = str(uuid.uuid4())
        self.server_id: str = f"sdk-{agent}-{uuid.uuid4()}"
        self.lost: SandboxAgentError | None = None
        self.closing: bool = False
        self.initialize_result: dict[str, Any] = {}
        self._http = http
        self._tasks = tasks
        self._request_ids = request_ids
        self._on_lost = on_lost
        self._path = f"/v1/acp/{quote_segment(self.server_id)}"
        self._headers = {CLIENT_HEADER: f"sdk-{self.connection_id}"}
        self._pending: dict[int, PendingRequest] = {}
        self._router = Router(self.connection_id, self._take_one)
        self._exit_seen = asyncio.Event()
        self._feed = Feed(http, self._path, self._headers, self._on_events)
        self._feed_task: asyncio.Task[None] | None = None
        self._handlers: dict[str, Callable[[Any], Awaitable[object] | object]] = {}

    @classmethod
    async def open(
        cls,
        http: Http,
        tasks: TaskOwner,
        agent: str,
        request_ids: itertools.count[int],
        on_lost: Callable[[Connection], None],
        handlers: dict[str, Callable[[Any], Awaitable[object] | object]],
    ) -> Connection:
        """Start the agent, open the feed, shake hands and authenticate where that needs no user."""
        self = cls(http, tasks, agent, request_ids, on_lost)
        self._handlers = handlers
        params = initialize_params("sandbox-agent-sdk")
        try:
            # Who is cancelled here may have started the agent: closing ends it.
            line = await self._bootstrap(request(next(request_ids), "initialize", params))
            self.initialize_result = self._read_initialize(line)
            self._feed_task = tasks.spawn(self._run_feed(), name=f"feed {self.server_id}")
            await self._authenticate()
        except BaseException:
            await self.close()
            raise
        return self

    async def _bootstrap(self, body: bytes) -> bytes:
        try:
            status, answer = await self._post(body, {"agent": self.agent})
        except httpx2.TransportError as error:
            raise NotSentError(
                f"agent '{self.agent}' could not be started: no answer from {self._http.base_url} "
                f"({describe(error)})"
            ) from error
        raise_for_problem(status, answer)
        return answer

    def _read_initialize(self, line: bytes) -> dict[str, Any]:
        try:
            result: object = Answer.read(line).unwrap()
        except InvalidEnvelopeError as error:
            raise SandboxAgentError(
                f"the answer to initialize is no JSON-RPC envelope ({error}): "
                f"is {self._http.base_url} a sandbox-agent server?"
            ) from error
        return cast("dict[str, Any]", result) if isinstance(result, dict) else {}

    async def _authenticate(self) -> None:
        method_id = auth_method(self.initialize_result)
        if method_id is None:
            return
        try:
            await self.request("authenticate", {"methodId": method_id})
        except AcpRpcError as error:
            # The agent may have its credentials already; if not, its first prompt says so.
            logger.info("agent %s did not authenticate with %s: %s", self.agent, method_id, error)

    async def _post(self, body: bytes, params: dict[str, str] | None = None) -> tuple[int, bytes]:
        headers = {**self._headers, "Content-Type": "application/json", "Accept": "application/json"}
        return await self._http.send("POST", self._path, content=body, params=params, headers=headers)

    # sessions

    @property
    def router(self) -> Router:
        """Whose envelopes go where."""
        return self._router

    def turns_of(self, session: ClientSession) -> set[asyncio.Future[bytes]]:
        """Return the answers that are owed to the session's prompts."""
        return {
            pending.future
            for pending in self._pending.values()
            if pending.session is session and pending.method == "session/prompt"
        }

    def is_bound(self, agent_session_id: str, session: ClientSession) -> bool:
        """Whether the agent holds that session on this connection."""
        return self.lost is None and self._router.get(agent_session_id) is session

    async def let_go(self, session: ClientSession, refusal: SandboxAgentError) -> None:
        """Cancel what the agent does for a session that another process has; nothing more of it is kept.

        Args:
            session: which.
            refusal: what its requests that are pending fail with.

        Raises:
            SandboxAgentError: the agent could not be told.
        """
        for pending in [pending for pending in self._pending.values() if pending.session is session]:
            self._drop(pending, refusal)
        for agent_session in self._router.unbind_all(session):
            await self._post_accepted(
                notification("session/cancel", {"sessionId": agent_session}), None, "session/cancel"
            )

    # out

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
            params: as the agent gets them.
            session: into whose journal request and answer go.
            stored_params: as they are stored, where that differs.
            outgoing: an earlier try of the same request.
            opens: the agent session that it opens again; it is the session's once the agent has.
            on_result: called with the result before anything that the agent sends after it is handled.

        Raises:
            NotSentError: the agent did not get it.
            ConnectionLostError: the connection was lost under it.
            AgentProcessExitedError: the agent ended.
            AcpRpcError: the agent answered an error.
        """
        if self.lost is not None:
            raise NotSentError(f"{method} was not sent: {self.lost}") from self.lost
        sent = outgoing or Outgoing(next(self._request_ids))
        body = request(sent.id, method, params)
        pending = PendingRequest(sent, method, session, opens=opens, on_result=on_result)
        self._pending[sent.id] = pending
        if session is not None and method == "session/prompt":
            self._router.prompted(session)
        if session is not None and sent.event is None:
            stored = body if stored_params is None else request(sent.id, method, stored_params)
            sent.event = session.journal.put("client", [stored], self.connection_id)
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
        """Answer a request of the agent's; the answer is stored."""
        await self._post_accepted(response(raw_id, result=result, error=error), session, "the answer")

    async def _post_accepted(self, body: bytes, session: ClientSession | None, what: str) -> None:
        if self.lost is not None:
            raise NotSentError(f"{what} was not sent: {self.lost}") from self.lost
        if session is not None:
            session.journal.put("client", [body], self.connection_id)
        try:
            status, answer = await self._post(body)
        except httpx2.TransportError as error:
            raise ConnectionLostError(f"{what} may not have arrived ({describe(error)})") from error
        raise_for_problem(status, answer)

    async def _send(self, pending: PendingRequest, body: bytes) -> None:
        try:
            await self._send_and_wait(pending, body)
        finally:
            pending.post_open = False

    async def _send_and_wait(self, pending: PendingRequest, body: bytes) -> None:
        try:
            status, answer = await self._post(body)
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout) as error:
            self._drop(
                pending,
                NotSentError(
                    f"{pending.method} was not sent: no way to {self._http.base_url} ({describe(error)})"
                ),
            )
            return
        except httpx2.TransportError as error:
            # The answer's way is gone, the turn is not: its answer is in the feed, too.
            pending.post_open = False
            if self.lost is not None:
                self._drop(pending, self._why_lost())
            logger.info(
                "the POST of %s was cut off (%s): waiting for the feed", pending.method, describe(error)
            )
            if pending.method != "session/prompt":
                await asyncio.wait({pending.future}, timeout=LOST_ANSWER_TIMEOUT)
                self._drop(
                    pending, ConnectionLostError(f"{pending.method}: no answer came ({describe(error)})")
                )
            return
        if status >= 400:
            await self._refused(pending, status, answer)
        elif answer:
            await self._prefer_feed(pending, answer)

    async def _refused(self, pending: PendingRequest, status: int, answer: bytes) -> None:
        if status in {400, 404, 410} and not await self._known():
            gone = NotSentError(f"{pending.method} was not sent: the server no longer knows this connection")
            self._mark_lost(gone)
            self._drop(pending, gone)
            self._tasks.spawn(self._retire(gone), name=f"retire {self.server_id}")
            return
        try:
            raise_for_problem(status, answer)
        except AgentProcessExitedError as error:
            # Its last words are in the feed, before its exit.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_GRACE):
                    await self._exit_seen.wait()
            self._mark_lost(error)
            self._drop(pending, error)
            self._tasks.spawn(self._retire(error), name=f"exit of {self.agent}")
        except SandboxAgentError as error:
            self._drop(pending, error)

    async def _known(self) -> bool:
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
            logger.warning("the feed lost the answer to %s: taking the POST's", pending.method)
            self._router.take([answer.strip()])

    def _drop(self, pending: PendingRequest, error: SandboxAgentError) -> None:
        if self._pending.get(pending.outgoing.id) is pending:
            del self._pending[pending.outgoing.id]
        pending.fail(error)

    # in

    async def _run_feed(self) -> None:
        try:
            reason = await self._feed.run()
        except Exception as error:
            # A bug of ours must not leave requests waiting for ever.
            logger.exception("the feed of %s failed", self.server_id)
            reason = ConnectionLostError(f"the event stream could not be taken in: {describe(error)}")
        await self._retire(reason)

    async def _on_events(self, events: list[SseEvent]) -> None:
        journals = self._router.take([event.data for event in events if event.event == "message"])
        for event in events:
            if event.event == "gap":
                self._tell_gap(event.data)
        for journal in journals:
            if journal.crowded:
                await journal.room()

    def _take_one(self, line: bytes, head: Envelope, touched: set[Journal]) -> None:
        if head.is_response:
            self._take_response(line, head, touched)
        elif head.is_request:
            session = self._router.get(head.session_id)
            if session is None:
                self._answer_stranger(line, head)
                return
            event = session.journal.put("agent", [line], self.connection_id)
            touched.add(session.journal)
            if head.method == "session/request_permission":
                session.on_agent_request(self, head, event)
            else:
                self._handle(line, head, session)
        elif head.method == "_adapter/agent_exited":
            self._agent_exited(line)
        elif head.method is not None:
            logger.debug("notification %s of %s belongs to no session", head.method, self.server_id)

    def _take_response(self, line: bytes, head: Envelope, touched: set[Journal]) -> None:
        request_id = head.own_id()
        pending = self._pending.pop(request_id, None) if request_id is not None else None
        if pending is None:
            return  # the second copy, or the answer to initialize
        session = pending.session
        if pending.on_result is not None and (answer := Answer.read(line)).error is None:
            pending.on_result(answer.result)
        if session is not None:
            if pending.method == "session/new":
                self._bind_new(line, session, pending)
            elif pending.opens is not None:
                self._bind_opened(line, session, pending, pending.opens)
            pending.outgoing.answer_event = session.journal.put("agent", [line], self.connection_id)
            touched.add(session.journal)
        if not pending.future.done():
            pending.future.set_result(line)

    def _bind_new(self, line: bytes, session: ClientSession, pending: PendingRequest) -> None:
        result: object = Answer.read(line).result
        fields = cast("dict[str, Any]", result) if isinstance(result, dict) else {}
        agent_session: object = fields.get("sessionId")
        if isinstance(agent_session, str):
            if not pending.future.done():  # who gave up takes no answer
                session.on_bound(self, fields)
            self._router.bind(agent_session, session)

    def _bind_opened(
        self, line: bytes, session: ClientSession, pending: PendingRequest, agent_session: str
    ) -> None:
        answer = Answer.read(line)
        if answer.error is not None or pending.future.done():  # who gave up takes no answer
            self._router.forget(agent_session)
            return
        result: object = answer.result
        fields = cast("dict[str, Any]", result) if isinstance(result, dict) else {}
        session.on_bound(self, {**fields, "sessionId": agent_session})
        self._router.loaded(agent_session, session, fields)

    def _answer_stranger(self, line: bytes, head: Envelope) -> None:
        if head.method == "session/request_permission":
            answer = {"outcome": {"outcome": "cancelled"}}
            self._tasks.spawn(self.respond(head.id, None, result=answer), name="cancel a stranger's request")
        else:
            self._handle(line, head, None)

    def _handle(self, line: bytes, head: Envelope, session: ClientSession | None) -> None:
        self._tasks.spawn(self._handle_request(line, head, session), name=f"answer {head.method}")

    async def _handle_request(self, line: bytes, head: Envelope, session: ClientSession | None) -> None:
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

    def _tell_gap(self, data: bytes) -> None:
        params = gap_params(data)
        logger.warning("the server no longer has some events of %s: %s", self.server_id, params)
        for session in self._router.sessions:
            line = notification(
                "_sandbox_agent/events_lost", {**params, "reason": "the server no longer has them"}
            )
            session.journal.put("client", [line], self.connection_id)

    # the end

    def _agent_exited(self, line: bytes) -> None:
        params: dict[str, Any] = loads(line).get("params") or {}
        code = params.get("code")
        error = AgentProcessExitedError(
            f"agent '{self.agent}' exited (code {code}): the next call starts it and restores the session",
            agent=self.agent,
            exitCode=code,
        )
        for session in self._router.sessions:
            session.journal.put("agent", [line], self.connection_id)
        self._exit_seen.set()
        self._tasks.spawn(self._retire(error), name=f"exit of {self.agent}")

    async def _retire(self, error: SandboxAgentError) -> None:
        self._mark_lost(error)
        for pending in [pending for pending in self._pending.values() if not pending.post_open]:
            self._drop(pending, self._why_lost())
        await self._let_posts_answer()
        await self.close()

    async def _let_posts_answer(self) -> None:
        # An open POST knows more: the agent's last words, or that it was refused and may be sent again.
        futures = {pending.future for pending in self._pending.values() if pending.post_open}
        if futures:
            await asyncio.wait(futures, timeout=EXIT_GRACE)

    def _why_lost(self) -> SandboxAgentError:
        if isinstance(self.lost, AgentProcessExitedError):
            return self.lost
        return ConnectionLostError(
            f"{self.lost}: the turn's outcome is unknown; the next call restores the session"
        )

    def _mark_lost(self, error: SandboxAgentError) -> None:
        if self.lost is not None:
            return
        self.lost = error
        for session in self._router.sessions:
            session.on_unbound(self)
        self._router.close()
        self._on_lost(self)

    def _fail_pending(self, error: SandboxAgentError) -> None:
        pendings, self._pending = list(self._pending.values()), {}
        for pending in pendings:
            pending.fail(error)

    def abandon(self) -> None:
        """Use it no more; what is pending fails."""
        self._mark_lost(ConnectionLostError("the connection was closed"))
        self._fail_pending(self._why_lost())

    async def close(self) -> None:
        """End the agent, at most CLOSE_TIMEOUT; what is pending fails."""
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
