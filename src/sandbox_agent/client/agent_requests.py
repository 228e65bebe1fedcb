"""Answers an agent's requests: by the client's handlers; permissions and questions by their session."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Set
from functools import partial
from typing import Any

from sandbox_agent.client.envelopes import Envelope, Line, response
from sandbox_agent.client.http import describe
from sandbox_agent.client.journal import Journal
from sandbox_agent.client.router import ClientSession, Router
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.engine.permissions import cancelled_outcome
from sandbox_agent.engine.questions import rejection_result
from sandbox_agent.wire.jsonrpc import loads, members
from sandbox_agent.wire.questions import ELICITATIONS, read_question
from sandbox_agent.wire.records import SessionEvent

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

RequestHandlers = dict[str, Callable[[Any], Awaitable[object] | object]]
# Sends an envelope for a session, which stores it; the text names the envelope in errors.
Send = Callable[[bytes, ClientSession | None, str], Coroutine[Any, Any, None]]

PERMISSION = "session/request_permission"
# How agents name the session of a sub-agent's parent in ``_meta``, or in an object of their own in it.
PARENT_MEMBERS = ("parentSessionId", "parent_session_id", "parentId", "parentID")


class AgentRequests:
    """The requests of one connection's agent.

    Args:
        router: knows the bound sessions.
        tasks: runs the answers.
        handlers: the client's handlers by method.
        connection_id: the connection's id in events.
        running: returns the sessions whose turn runs.
        send: sends an answer.
    """

    def __init__(
        self,
        router: Router,
        tasks: TaskOwner,
        handlers: RequestHandlers,
        connection_id: str,
        running: Callable[[], Set[ClientSession]],
        send: Send,
    ) -> None:
        self._router = router
        self._tasks = tasks
        self._handlers = handlers
        self._connection_id = connection_id
        self._running = running
        self._send = send
        # While it is unknown which requests are answered: what to do about the others, by JSON-RPC id.
        self._held: dict[bytes, Callable[[], None]] | None = None
        self._seen: set[bytes] = set()

    def receive(self, line: Line, head: Envelope, touched: set[Journal]) -> None:
        """Store a request, and answer it in the background or leave that to its session."""
        session, must_ask, event = self._router.get(head.session_id), False, None
        if session is None and (head.method == PERMISSION or head.method in ELICITATIONS):
            session, must_ask = self._parent_of(line.data)
        if session is not None:
            event = session.journal.append("agent", [line.data], self._connection_id, [line.event_id])
            touched.add(session.journal)
        elif self._router.is_shared:
            return  # another client has that session
        self.act(line.data, head, session, event, must_ask=must_ask)

    def act(
        self,
        line: bytes,
        head: Envelope,
        session: ClientSession | None,
        event: SessionEvent | None,
        *,
        must_ask: bool = False,
    ) -> None:
        """Answer a request in the background, or leave that to its session; later, if requests are held."""
        if self._router.is_shared:
            self._seen.add(bytes(head.id))
        if self._held is not None:
            self._held[bytes(head.id)] = partial(self._act, line, head, session, event, must_ask)
        else:
            self._act(line, head, session, event, must_ask)

    def _act(
        self,
        line: bytes,
        head: Envelope,
        session: ClientSession | None,
        event: SessionEvent | None,
        must_ask: bool,
    ) -> None:
        method, respond = head.method or "", partial(self._respond, head, session)
        if method == PERMISSION:
            if session is not None and event is not None:
                session.on_permission_request(event, respond, must_ask=must_ask)
                return
            work = respond(cancelled_outcome())
        elif method in self._handlers:
            work = self._call_handler(self._handlers[method], line, head, session)
        elif session is not None and event is not None and _is_question(session, method, line):
            session.on_question_request(event, respond, must_ask=must_ask)
            return
        elif method in ELICITATIONS:
            logger.warning("a question of the agent is declined: it was asked without a session to answer it")
            work = respond(rejection_result(method))
        else:
            message = f'"Method not found": {method}'
            work = respond(error={"code": -32601, "message": message})
        self._tasks.spawn(work, name=f"answer {head.method}")

    def hold(self) -> None:
        """Hold the requests: this client attaches, and reads later which of them are answered."""
        self._held = {}

    def is_answer(self, head: Envelope) -> bool:
        """Whether another client's response belongs to a request of this session."""
        return head.is_response and bytes(head.id) in self._seen

    def answered(self, head: Envelope) -> None:
        """Drop the request that the response belongs to."""
        if self._held is not None:
            self._held.pop(bytes(head.id), None)

    def release(self) -> None:
        """Act on the requests that are held, and from now on at once."""
        held, self._held = self._held or {}, None
        for act in held.values():
            act()

    def _parent_of(self, line: bytes) -> tuple[ClientSession | None, bool]:
        """Return the session that a sub-agent's request belongs to, and whether only a user may allow it.

        A sub-agent has a session that no client opened. Its parent is the session that the request's
        ``_meta`` names, else the only session whose turn runs; if several run, the parent is not certain.
        """
        meta = members(members(loads(line).get("params")).get("_meta"))
        for fields in (meta, *map(members, meta.values())):
            for name in PARENT_MEMBERS:
                named = self._router.get(str(fields.get(name)))
                if named is not None:
                    return named, False
        running = self._running()
        return next(iter(running), None), len(running) > 1

    async def _call_handler(
        self,
        handler: Callable[[Any], Awaitable[object] | object],
        line: bytes,
        head: Envelope,
        session: ClientSession | None,
    ) -> None:
        try:
            answer = handler(loads(line).get("params"))
            result: object = await answer if inspect.isawaitable(answer) else answer
        except Exception as error:
            logger.exception("the handler of %s failed", head.method)
            await self._respond(head, session, error={"code": -32603, "message": describe(error)})
            return
        await self._respond(head, session, result)

    async def _respond(
        self, head: Envelope, session: ClientSession | None, result: object = None, *, error: object = None
    ) -> None:
        await self._send(response(head.id, result=result, error=error), session, "the response")


def _is_question(session: ClientSession, method: str, line: bytes) -> bool:
    """Return whether the request is a question that the session can answer."""
    if not session.answers_questions:
        return False
    return read_question(method, members(loads(line).get("params"))) is not None
