"""A session that the server drives: its queue of turns, and the agent that runs them.

A message with an Idempotency-Key that was used before returns the turn of that message.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

import anyio

from sandbox_agent.engine.cancellation import cancel_grace_of
from sandbox_agent.engine.handshake import is_lost_session
from sandbox_agent.engine.project import Projector
from sandbox_agent.errors import (
    AcpRpcError,
    AgentProcessExitedError,
    ConflictError,
    PersistError,
    ProblemError,
    SandboxAgentError,
    StreamError,
)
from sandbox_agent.persist.store import Changes, TurnRow
from sandbox_agent.server.client_names import CANCELLATION
from sandbox_agent.server.errors import without_path
from sandbox_agent.server.log_context import add_fields, current_request_id
from sandbox_agent.server.permissions.policies import stored_request
from sandbox_agent.server.recorder import RecordedSession
from sandbox_agent.server.sessions.agent_client import AgentClient, SessionContext, answer
from sandbox_agent.server.sessions.deaths import Deaths
from sandbox_agent.server.sessions.requests import digest_of
from sandbox_agent.server.sessions.restore import NativeRestoreLostError, restore
from sandbox_agent.server.trace_context import TraceContext, current_trace, trace_context
from sandbox_agent.wire.jsonrpc import dumps, loads
from sandbox_agent.wire.universal import UniversalEvent

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# Answers an open request of a cancelled turn: as a permission's outcome, and as an elicitation's action;
# each kind of request reads its own.
_CANCELLED = {"outcome": {"outcome": "cancelled"}, "action": "cancel"}
# How many messages may wait for the turns before them.
MAX_QUEUED_MESSAGES = 32
# A store that hangs must not keep an agent alive that is to be ended.
ANNOUNCE_SECONDS = 1.0
# How soon a store that fails is tried again.
RETRY_SECONDS = 0.5


class DrivenSession:
    """Runs one turn after the other. What it must not lose is in the store.

    Its methods raise as those of ``Sessions`` do.
    """

    def __init__(self, context: SessionContext, session_id: str, client: AgentClient | None = None) -> None:
        self.session_id = session_id
        self._context = context
        self._client = client
        self._replay: str | None = None
        self._lock = anyio.Lock()
        self._agent_lock = anyio.Lock()
        self._waiting: deque[TurnRow] | None = None
        self._number = 0
        self._turn: TurnRow | None = None
        self._sent = False
        self._unopenable = False
        self._deaths = Deaths()
        # The request and the trace that a turn belongs to, by its id.
        self._origins: dict[str, tuple[str | None, TraceContext | None]] = {}
        self._cancelled = False
        self._cancelled_next: TurnRow | None = None
        self._response: asyncio.Future[bytes] | None = None
        self._scope: anyio.CancelScope | None = None
        self._idle = anyio.Event()
        self._turn_over = anyio.Event()
        self._ended = False
        self._ending: asyncio.Future[None] | None = None

    async def _session(self) -> RecordedSession:
        return await self._context.recorder.open(self.session_id)

    # messages

    async def message(self, prompt: list[dict[str, Any]], idempotency_key: str | None) -> TurnRow:
        """Accept a message: its turn is stored on return, and runs when those before it have ended."""
        self._context.recorder.require_store()  # a commit would wait as long as the store's retries do
        session = await self._session()
        digest = digest_of(prompt)
        async with self._lock:
            if idempotency_key:
                known = await self._context.store.turn(session.row.key, idempotency_key=idempotency_key)
                if known is not None:
                    if known.digest != digest:
                        raise ConflictError(
                            f"conflict: the idempotency key '{idempotency_key}' was used for another "
                            "message: choose a new key, or send that message again"
                        )
                    return known
            if self._ended or session.row.ended:
                raise ConflictError(
                    f"conflict: session '{self.session_id}' was terminated: create another one"
                )
            if self._context.halted:
                raise StreamError("stream error: the server is shutting down")
            waiting = await self._queue(session)
            if len(waiting) >= MAX_QUEUED_MESSAGES:
                raise ConflictError(
                    f"conflict: {MAX_QUEUED_MESSAGES} messages wait already: wait until one of them is done"
                )
            turn = TurnRow(
                key=session.row.key,
                number=self._number + 1,
                turn_id=f"turn_{uuid.uuid4().hex}",
                state="accepted",
                created_at=time.time_ns() // 1_000_000,
                prompt=dumps(prompt),
                digest=digest,
                idempotency_key=idempotency_key or None,
            )
            with anyio.CancelScope(shield=True):  # bounded by the store: a stored turn must also run
                await self._context.recorder.commit(Changes(turns=[turn]))
            self._number += 1
            self._origins[turn.turn_id] = current_request_id(), current_trace()
            waiting.append(turn)
            self._run_queue()
        return turn

    async def resume(self) -> None:
        """Run the messages that were accepted before the server started."""
        try:
            session = await self._session()
            async with self._lock:
                await self._queue(session)
                if session.row.ended:
                    await self._drop_waiting(session)
                self._run_queue()
        except Exception:  # the boundary: one session must not end the others
            logger.exception("the messages of session %s wait until the next one arrives", self.session_id)

    async def _queue(self, session: RecordedSession) -> deque[TurnRow]:
        """Return the waiting turns, read from the store the first time."""
        if self._waiting is None:
            newest = await self._context.store.turns(session.row.key, limit=MAX_QUEUED_MESSAGES + 2)
            self._number = newest[-1].number if newest else 0
            self._waiting = deque(turn for turn in newest if turn.state == "accepted")
        return self._waiting

    def _run_queue(self) -> None:
        if self._scope is None and self._start_next() is not None:
            self._scope, self._idle = anyio.CancelScope(), anyio.Event()
            self._context.tasks.start_soon(self._work, self._scope, self._idle)

    def _start_next(self) -> TurnRow | None:
        self._turn, self._sent, self._cancelled, self._response = None, False, False, None
        self._turn_over.set()
        self._turn_over = anyio.Event()
        if self._waiting and not (self._ended or self._context.halted):
            self._turn = self._waiting.popleft()
            self._cancelled = self._turn is self._cancelled_next
        return self._turn

    # turns

    async def _work(self, scope: anyio.CancelScope, idle: anyio.Event) -> None:
        """Run turns until none waits. Nothing is awaited between finding none and ending."""
        try:
            with scope:
                while (turn := self._turn) is not None:
                    request_id, trace = self._origins.pop(turn.turn_id, (None, None))
                    add_fields(request_id=request_id, session_id=self.session_id)
                    try:
                        with trace_context(trace):
                            await self._run(turn)
                    except SandboxAgentError as error:
                        logger.warning("turn %s of %s: %s", turn.turn_id, self.session_id, error)
                    except Exception:  # the boundary: a bug in one turn must not end the others
                        logger.exception("turn %s of %s", turn.turn_id, self.session_id)
                    self._start_next()
        finally:
            self._turn = self._scope = None
            self._turn_over.set()
            idle.set()

    async def _run(self, turn: TurnRow) -> None:
        session = await self._session()
        error = await self._send(session, turn)
        if isinstance(error, AcpRpcError) and not (self._cancelled or self._context.halted):
            # The agent has lost the session: the prompt is sent again, unless it has begun to act.
            await self._context.recorder.flush()
            if session.projection.projector.is_refused(turn.turn_id):
                error = await self._send(session, turn)
            # If the agent opened its session and lost it again, the next restore creates another one.
            self._unopenable = isinstance(error, AcpRpcError)
        await self._context.recorder.wait_flushed()
        if self._cancelled and not self._sent:
            await _drop_turn(self._context, session, turn, None)
        elif isinstance(error, AcpRpcError) and self._context.halted:
            pass  # the next start of the server ends the turn as interrupted
        elif error is not None:
            await _drop_turn(self._context, session, turn, error)

    async def _send(self, session: RecordedSession, turn: TurnRow) -> Exception | None:
        """Start the agent if it does not run, and send the prompt (see _prompt).

        The turn stays accepted if it was cancelled, or if the server is about to end.
        """
        if self._cancelled:
            return None
        try:
            client = await self._agent(session)
        except Exception as error:
            if self._context.halted:
                raise
            if not isinstance(error, SandboxAgentError):
                logger.exception("the agent of session %s can't be started", self.session_id)
            return error
        if self._cancelled or self._context.halted:
            return None
        return await self._prompt(session, client, turn)

    async def _prompt(self, session: RecordedSession, client: AgentClient, turn: TurnRow) -> Exception | None:
        """Send the prompt and wait for its answer.

        Returns:
            None if the turn has ended; the agent's answer if it has lost the session, and the error if there
            is no answer. Then the turn has not ended.

        The prompt is stored before it is sent: a server that dies then has interrupted the turn, and never
        sends it again.
        """
        blocks: list[dict[str, Any]] = loads(turn.prompt)
        replay = self._replay
        if replay is not None:
            blocks = [{"type": "text", "text": replay}, *blocks]
        params = {"sessionId": client.native_id, "prompt": blocks}

        try:
            sent = await client.submit("session/prompt", params, request_id=turn.turn_id, stored_first=True)
            self._sent, self._response = True, sent
            if self._cancelled:  # meanwhile
                self._context.tasks.start_soon(self._cancel_late, turn, client)
            client.read_result("session/prompt", await sent)
        except AcpRpcError as error:
            # Recorded like any answer; the agent may not have read the replay.
            if is_lost_session(error.rpc_message, error.data):
                logger.warning(
                    "session %s: its agent has lost it: it is restored (%s)", self.session_id, error
                )
                self._sent = False
                await self.announce_shutdown("session_lost")
                await client.stop()
                return error
            return None
        except ProblemError as error:
            if isinstance(error, AgentProcessExitedError) and not client.connection.stopping:
                self._deaths.add()
            await client.stop()
            return error
        self._replay = None
        return None

    # the agent

    async def _agent(self, session: RecordedSession) -> AgentClient:
        """Return the agent. If it has ended, start it again and restore the session in it."""
        async with self._agent_lock:
            former = self._client
            if former is not None and former.alive:
                return former
            if former is not None and not former.connection.stopping:
                self._deaths.add()
            self._deaths.check(session.row.agent)
            try:
                return await self._start_again(session, former)
            except AgentProcessExitedError:
                self._deaths.add()
                raise

    async def _start_again(self, session: RecordedSession, former: AgentClient | None) -> AgentClient:
        async with self._context.starts:
            self._client = None
            if former is not None:
                await former.stop()  # it has ended: this frees its server id
            try:
                self._client, self._replay = await self._restored(session, native=not self._unopenable)
            except NativeRestoreLostError as error:
                logger.warning("session %s: %s", self.session_id, error)
                self._client, self._replay = await self._restored(session, native=False)
            self._unopenable = False
            return self._client

    async def _restored(self, session: RecordedSession, *, native: bool) -> tuple[AgentClient, str | None]:
        request = stored_request(session.row)
        env = None if request is None else request.env
        client = await AgentClient.start(self._context, session.row.agent, env)
        try:
            client.bind(session)
            replay = await restore(client, session, self._context, native=native)
        except BaseException:
            with anyio.CancelScope(shield=True):  # bounded: a timed ladder
                await client.stop()
            raise
        return client, replay

    @property
    def idle_seconds(self) -> float | None:
        """How long no client has watched the session and no turn was active; None while that is so.

        A turn that waits for an answer is active only until its agent's last output. A session without a
        running agent is not idle.
        """
        client = self._client
        if client is None or not client.alive or self._waiting or (self._turn is not None and not self._sent):
            return None
        idle = client.connection.idle_seconds
        session = self._context.recorder.registry.get(self.session_id)
        watched = idle if session is None else session.usage.idle_seconds
        return None if idle is None or watched is None else min(idle, watched)

    async def stop_if_idle(self, timeout: float) -> None:
        """Stop the agent if the session is idle for so long; the next message restores the session.

        A turn that waits for an answer ends as interrupted, as in a restart of the server.
        """
        async with self._agent_lock:  # a message that arrives meanwhile starts the agent again afterwards
            idle, client = self.idle_seconds, self._client
            if client is None or idle is None or idle < timeout or self._context.halted:
                return
            logger.info(
                "agent %s of session %s is stopped: it was idle for %.0f s",
                client.agent,
                self.session_id,
                idle,
            )
            await self.announce_shutdown("idle")
            await client.stop()

    async def cancel(self) -> None:
        """Stop the running turn, if there is one; waiting turns stay.

        An agent that ignores it is stopped after the grace period; the next message restores the session.
        Requests that the agent still makes in that turn are answered "cancelled".

        Raises:
            PersistError: the store failed; the agent was notified all the same.
        """
        turn = self._turn
        if turn is not None and self._is_answered and await self._is_over(turn):
            # Clients see its end before the next turn begins: they mean the next one.
            if self._turn is turn:
                self._cancelled_next = self._waiting[0] if self._waiting else None
                return
            is_next = self._turn is not None and self._turn.number == turn.number + 1
            turn = self._turn if is_next else None
        if turn is None or self._turn is not turn:
            return
        again, self._cancelled = self._cancelled, True
        if not again:
            self._context.tasks.start_soon(self._stop_if_ignored, turn, self._turn_over)
        if self._sent and self._client is not None and not self._is_answered:
            await self._cancel(turn, self._client, again=again)

    @property
    def _is_answered(self) -> bool:
        """Whether the agent has answered the running turn, which ends once that is stored."""
        return self._response is not None and self._response.done()

    async def _is_over(self, turn: TurnRow) -> bool:
        try:
            stored = await self._context.store.turn(turn.key, turn_id=turn.turn_id)
        except PersistError:
            return False  # then its end is not stored either
        return stored is None or stored.state not in ("accepted", "running")

    async def _cancel_late(self, turn: TurnRow, client: AgentClient) -> None:
        if self._turn is not turn:
            return
        try:
            await self._cancel(turn, client, again=False)
        except SandboxAgentError as error:
            logger.warning("requests of the agent of session %s stay open: %s", self.session_id, error)

    async def _cancel(self, turn: TurnRow, client: AgentClient, *, again: bool) -> None:
        try:
            await client.notify("session/cancel", {"sessionId": client.native_id})
        except ProblemError as error:
            logger.info("session %s could not be cancelled: %s", self.session_id, error)
            return  # the turn ends with its agent
        session = await self._session()
        await self._cancel_requests(session, client, turn)
        if not again:
            self._context.tasks.start_soon(self._cancel_late_requests, session, client, turn)

    async def _cancel_requests(self, session: RecordedSession, client: AgentClient, turn: TurnRow) -> None:
        """Answer all open requests of the agent with "cancelled", which ACP demands."""
        for request_id in await self._context.recorder.open_requests(session):
            if self._turn is not turn:
                return  # meanwhile; they may be requests of the next turn
            await answer(client.connection, CANCELLATION, request_id.encode(), _CANCELLED)

    async def _cancel_late_requests(
        self, session: RecordedSession, client: AgentClient, turn: TurnRow
    ) -> None:
        """Answer what the agent requests before it has read the cancellation, until the turn has ended."""
        try:
            while self._turn is turn and client.alive and not session.finished:
                sequence = session.row.last_sequence
                await self._cancel_requests(session, client, turn)
                if self._turn is turn:
                    await session.wait_beyond(sequence)
        except SandboxAgentError as error:
            logger.info("session %s: %s", self.session_id, error)

    async def _stop_if_ignored(self, turn: TurnRow, turn_over: anyio.Event) -> None:
        agent = "" if self._client is None else self._client.agent
        grace = cancel_grace_of(agent, self._context.cancel_grace)
        with anyio.move_on_after(grace):
            await turn_over.wait()
        async with self._agent_lock:  # a turn that begins meanwhile starts the agent again
            client = self._client
            if self._turn is not turn or client is None or not self._sent or self._is_answered:
                return
            logger.warning(
                "agent %s of session %s did not end its turn within %g s of session/cancel: it is stopped",
                client.agent,
                self.session_id,
                grace,
            )
            await self.announce_shutdown("cancelled")
            await client.stop()

    # termination

    async def announce_shutdown(self, reason: str) -> None:
        """Record that the agent is about to be ended on purpose, so that its exit is not an error."""
        if self._client is None or not self._client.alive:
            return
        try:
            session = await self._session()
            with anyio.move_on_after(ANNOUNCE_SECONDS):
                await self._context.recorder.add_events(
                    session,
                    lambda p, t: [*p.turn_interrupted(t, reason=reason), *p.agent_exited(t, exit_code=0)],
                )
        except SandboxAgentError as error:
            logger.info("session %s does not show why its agent ends: %s", self.session_id, error)

    async def terminate(self) -> None:
        """End the session and its agent; afterwards it can only be read. Safe to call twice."""
        ending = self._ending
        if ending is None or (ending.done() and ending.exception() is not None):
            ending = self._ending = asyncio.get_running_loop().create_future()
            self._context.tasks.start_soon(self._terminate, ending)
        # The termination is completed even if the caller is cancelled.
        await asyncio.shield(ending)

    async def _terminate(self, done: asyncio.Future[None]) -> None:
        try:
            await self._end()
        except Exception as error:  # raised by the callers that wait
            if not isinstance(error, SandboxAgentError):
                logger.exception("session %s could not be terminated", self.session_id)
            done.set_exception(error)
        else:
            done.set_result(None)
        finally:
            if not done.done():
                done.set_exception(StreamError("stream error: the server is shutting down"))
            done.exception()  # there may be no caller left

    async def _end(self) -> None:
        self._ended = True
        if self._scope is not None:
            self._scope.cancel()
            await self._idle.wait()
        await self.announce_shutdown("terminated")
        client, self._client = self._client, None
        if client is not None:
            await client.stop()
        session = await self._session()
        async with self._lock:
            if session.row.ended:
                return
            await self._context.recorder.flush()
            self._waiting = None
            await self._queue(session)
            await self._drop_waiting(session)
            await self._context.recorder.add_events(
                session, lambda p, t: p.session_ended(t, reason="terminated", terminated_by="daemon")
            )

    async def _drop_waiting(self, session: RecordedSession) -> None:
        while self._waiting:
            turn_id = self._waiting[0].turn_id
            await self._context.recorder.add_events(
                session, lambda p, t, i=turn_id: p.turn_dropped(t, turn_id=i)
            )
            self._waiting.popleft()


async def _drop_turn(
    context: SessionContext, session: RecordedSession, turn: TurnRow, error: Exception | None
) -> None:
    """End a turn that was not answered, unless it has ended; return when that is stored.

    The error is the reason; None if the turn was cancelled.
    """
    message = code = None
    if isinstance(error, AcpRpcError):
        message, code = error.rpc_message, str(error.code)
    elif error is not None:
        known = isinstance(error, SandboxAgentError)
        message = (
            without_path(str(error)) if known else "an unexpected error; the server's log has the details"
        )
        code = error.name if isinstance(error, ProblemError) else None

    def end(projector: Projector, now: int) -> Sequence[UniversalEvent]:
        if is_sent and not projector.is_refused(turn.turn_id):
            return projector.turn_interrupted(now, reason="agent_exited")
        return projector.turn_dropped(now, turn_id=turn.turn_id, message=message, code=code)

    while True:
        # An earlier attempt may have been stored after it failed.
        await context.recorder.wait_flushed()
        try:
            stored = await context.store.turn(turn.key, turn_id=turn.turn_id)
            if stored is None or stored.state not in ("accepted", "running"):
                return
            is_sent = stored.state == "running"
            await context.recorder.add_events(session, end)
            return
        except PersistError:
            await anyio.sleep(RETRY_SECONDS)
