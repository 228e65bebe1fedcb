"""One session that the server drives: its queue of turns, and the agent that they run in."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio

from sandbox_agent.errors import (
    AcpRpcError,
    ConflictError,
    PersistError,
    ProblemError,
    SandboxAgentError,
    StreamError,
)
from sandbox_agent.persist.store import Changes, TurnRow
from sandbox_agent.server.sessions.agent_client import AgentLink
from sandbox_agent.server.sessions.context import Parts
from sandbox_agent.server.sessions.open_requests import cancel_late_requests, cancel_requests
from sandbox_agent.server.sessions.requests import digest_of
from sandbox_agent.server.sessions.restore import NativeRestoreLostError, restore
from sandbox_agent.wire.jsonrpc import dumps, loads

if TYPE_CHECKING:
    from sandbox_agent.server.recorder.registry import RecordedSession

__all__ = ["MAX_WAITING", "ManagedSession"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# Messages that wait for the turns before them; more is a client that does not look.
MAX_WAITING = 32
# A store that hangs must not keep an agent alive that is to be ended.
FAREWELL_SECONDS = 1.0
# How soon a store that fails is tried again.
RETRY_SECONDS = 0.5


class ManagedSession:
    """Runs one turn after the other; what it must not forget is in the store.

    Args:
        parts: what it works with.
        session_id: its name.
        link: its agent, where it has just been made.
    """

    def __init__(self, parts: Parts, session_id: str, link: AgentLink | None = None) -> None:
        self.session_id = session_id
        self._parts = parts
        self._link = link
        self._replay: str | None = None
        self._lock = anyio.Lock()
        self._waiting: deque[TurnRow] | None = None
        self._number = 0
        self._turn: TurnRow | None = None
        self._sent = False
        self._cancelled = False
        self._scope: anyio.CancelScope | None = None
        self._idle = anyio.Event()
        self._ended = False
        self._ending: asyncio.Future[None] | None = None

    async def _live(self) -> RecordedSession:
        return await self._parts.recorder.open(self.session_id)

    # messages

    async def message(self, prompt: list[dict[str, Any]], idempotency_key: str | None) -> TurnRow:
        """Take a message; its turn is stored on return, and runs when those before it are over.

        Raises:
            ConflictError: the queue is full, the key was used for another message, or the session has
                been terminated.
            PersistError: the store refuses; the message was not taken.
        """
        live = await self._live()
        digest = digest_of(prompt)
        async with self._lock:
            if idempotency_key:
                known = await self._parts.store.turn(live.row.key, idempotency_key=idempotency_key)
                if known is not None:
                    if known.digest != digest:
                        raise ConflictError(
                            f"conflict: the idempotency key '{idempotency_key}' was used for another "
                            "message: choose a new key, or send that message again"
                        )
                    return known
            if self._ended or live.row.ended:
                raise ConflictError(
                    f"conflict: session '{self.session_id}' was terminated: create another one"
                )
            if self._parts.halted:
                raise StreamError("stream error: the server is shutting down")
            refusal = self._parts.recorder.degraded
            if refusal is not None:  # it tries again by itself; each writer would wait for as long as it does
                raise PersistError(refusal)
            waiting = await self._queue(live)
            if len(waiting) >= MAX_WAITING:
                raise ConflictError(
                    f"conflict: {MAX_WAITING} messages wait already: wait until one of them is done"
                )
            turn = TurnRow(
                key=live.row.key,
                number=self._number + 1,
                turn_id=f"turn_{uuid.uuid4().hex}",
                state="accepted",
                created_at=time.time_ns() // 1_000_000,
                prompt=dumps(prompt),
                digest=digest,
                idempotency_key=idempotency_key or None,
            )
            with anyio.CancelScope(shield=True):  # bounded by the store: what is stored must also run
                await self._parts.recorder.commit(Changes(turns=[turn]))
            self._number += 1
            waiting.append(turn)
            self._run_queue()
        return turn

    async def resume(self) -> None:
        """Go on with the messages that were accepted before the server was started."""
        try:
            live = await self._live()
            async with self._lock:
                await self._queue(live)
                if live.row.ended:
                    await self._drop_waiting(live)
                self._run_queue()
        except Exception:  # the boundary: one session must not end the others
            logger.exception("the messages of session %s wait until the next one comes", self.session_id)

    async def _queue(self, live: RecordedSession) -> deque[TurnRow]:
        """Return the turns that wait, from the store the first time."""
        if self._waiting is None:
            newest = await self._parts.store.turns(live.row.key, limit=MAX_WAITING + 2)
            self._number = newest[-1].number if newest else 0
            self._waiting = deque(turn for turn in newest if turn.state == "accepted")
        return self._waiting

    def _run_queue(self) -> None:
        if self._scope is None and self._take_next() is not None:
            self._scope, self._idle = anyio.CancelScope(), anyio.Event()
            self._parts.tasks.start_soon(self._work, self._scope, self._idle)

    def _take_next(self) -> TurnRow | None:
        self._turn, self._sent, self._cancelled = None, False, False
        if self._waiting and not (self._ended or self._parts.halted):
            self._turn = self._waiting.popleft()
        return self._turn

    # turns

    async def _work(self, scope: anyio.CancelScope, idle: anyio.Event) -> None:
        """Run the turns until none waits; nothing is awaited between that and saying so."""
        try:
            with scope:
                while (turn := self._turn) is not None:
                    try:
                        await self._run(turn)
                    except SandboxAgentError as error:
                        logger.warning("turn %s of %s: %s", turn.turn_id, self.session_id, error)
                    except Exception:  # the boundary: a bug in one turn must not end the others
                        logger.exception("turn %s of %s", turn.turn_id, self.session_id)
                    self._take_next()
        finally:
            self._turn = self._scope = None
            idle.set()

    async def _run(self, turn: TurnRow) -> None:
        live = await self._live()
        try:
            link = await self._agent(live)
        except Exception as error:
            if self._parts.halted:
                raise  # it stays accepted
            if not isinstance(error, SandboxAgentError):
                logger.exception("the agent of session %s can't be started", self.session_id)
            await _drop_turn(self._parts, live, turn, error)
            return
        if self._cancelled:
            await _drop_turn(self._parts, live, turn, None)
            return
        if self._parts.halted:
            return
        lost = await self._prompt(live, link, turn)
        await self._parts.recorder.wait_flushed()
        if lost is not None:
            await _drop_turn(self._parts, live, turn, lost)

    async def _prompt(self, live: RecordedSession, link: AgentLink, turn: TurnRow) -> ProblemError | None:
        """Send the prompt and wait for its answer; return why there is none.

        The prompt is stored before it is sent: a server that dies then has interrupted the turn, and never
        sends it again.
        """
        blocks: list[dict[str, Any]] = loads(turn.prompt)
        replay = self._replay
        if replay is not None:
            blocks = [{"type": "text", "text": replay}, *blocks]
        params = {"sessionId": link.native_id, "prompt": blocks}

        try:
            sent = await link.submit("session/prompt", params, request_id=turn.turn_id, stored_first=True)
            self._sent = True
            if self._cancelled:  # meanwhile
                self._parts.tasks.start_soon(self._cancel_late, turn, link)
            await sent.answer
        except AcpRpcError:
            return None  # the recorder has it; the agent may not have taken the replay
        except ProblemError as error:
            await link.stop()
            return error
        self._replay = None
        return None

    # the agent

    async def _agent(self, live: RecordedSession) -> AgentLink:
        """Return the agent; where it is gone, it is started again and the session restored in it."""
        former = self._link
        if former is not None and former.alive:
            return former
        async with self._parts.starts:
            self._link = None
            if former is not None:
                await former.stop()  # it has ended: only its name goes
            try:
                self._link, self._replay = await self._restored(live, native=True)
            except NativeRestoreLostError as error:
                logger.warning("session %s: %s", self.session_id, error)
                self._link, self._replay = await self._restored(live, native=False)
            return self._link

    async def _restored(self, live: RecordedSession, *, native: bool) -> tuple[AgentLink, str | None]:
        link = await AgentLink.start(self._parts.bridge, live.row.agent, self._parts.tasks)
        try:
            link.bind(live)
            replay = await restore(link, live, self._parts, native=native)
        except BaseException:
            with anyio.CancelScope(shield=True):  # bounded: a timed ladder
                await link.stop()
            raise
        return link, replay

    async def cancel(self) -> None:
        """Stop the turn that runs; those that wait stay. Nothing happens where none runs.

        An agent that ignores it goes on: ``terminate`` ends it. What the agent still asks in that turn
        is answered "cancelled".

        Raises:
            PersistError: the store refuses; the agent was told all the same.
        """
        turn, link = self._turn, self._link
        if turn is None:
            return
        again, self._cancelled = self._cancelled, True
        if self._sent and link is not None:
            await self._cancel(turn, link, again=again)

    async def _cancel_late(self, turn: TurnRow, link: AgentLink) -> None:
        try:
            await self._cancel(turn, link, again=False)
        except SandboxAgentError as error:
            logger.warning("what the agent of session %s asks stays open: %s", self.session_id, error)

    async def _cancel(self, turn: TurnRow, link: AgentLink, *, again: bool) -> None:
        try:
            await link.notify("session/cancel", {"sessionId": link.native_id})
        except ProblemError as error:
            logger.info("session %s could not be cancelled: %s", self.session_id, error)
            return  # the turn ends with its agent
        live = await self._live()
        await cancel_requests(self._parts.recorder, live, link)
        if not again:
            self._parts.tasks.start_soon(
                cancel_late_requests, self._parts.recorder, live, link, lambda: self._turn is turn
            )

    # the end

    async def announce_shutdown(self, reason: str) -> None:
        """Tell that the agent is about to be ended on purpose, so that its exit is no error.

        Args:
            reason: why, in a word; a turn that runs is interrupted by it.
        """
        if self._link is None or not self._link.alive:
            return
        try:
            live = await self._live()
            with anyio.move_on_after(FAREWELL_SECONDS):
                await self._parts.recorder.add_events(
                    live,
                    lambda p, t: [*p.turn_interrupted(t, reason=reason), *p.agent_exited(t, exit_code=0)],
                )
        except SandboxAgentError as error:
            logger.info("session %s is not told why its agent ends: %s", self.session_id, error)

    async def terminate(self) -> None:
        """End the session and its agent; it can only be read from here on. Safe to call twice.

        Raises:
            PersistError: the store refuses: the agent is gone, call it again.
        """
        ending = self._ending
        if ending is None or (ending.done() and ending.exception() is not None):
            ending = self._ending = asyncio.get_running_loop().create_future()
            self._parts.tasks.start_soon(self._terminate, ending)
        # Who asked may go away: it is done all the same.
        await asyncio.shield(ending)

    async def _terminate(self, done: asyncio.Future[None]) -> None:
        try:
            await self._end()
        except Exception as error:  # whoever waits raises it
            if not isinstance(error, SandboxAgentError):
                logger.exception("session %s could not be terminated", self.session_id)
            done.set_exception(error)
        else:
            done.set_result(None)
        finally:
            if not done.done():
                done.set_exception(StreamError("stream error: the server is shutting down"))
            done.exception()  # maybe nobody waits any more

    async def _end(self) -> None:
        self._ended = True
        if self._scope is not None:
            self._scope.cancel()
            await self._idle.wait()
        await self.announce_shutdown("terminated")
        link, self._link = self._link, None
        if link is not None:
            await link.stop()
        live = await self._live()
        async with self._lock:
            if live.row.ended:
                return
            await self._parts.recorder.flush()
            self._waiting = None
            await self._queue(live)
            await self._drop_waiting(live)
            await self._parts.recorder.add_events(
                live, lambda p, t: p.session_ended(t, reason="terminated", terminated_by="daemon")
            )

    async def _drop_waiting(self, live: RecordedSession) -> None:
        while self._waiting:
            turn_id = self._waiting[0].turn_id
            await self._parts.recorder.add_events(live, lambda p, t, i=turn_id: p.turn_dropped(t, turn_id=i))
            self._waiting.popleft()


async def _drop_turn(parts: Parts, live: RecordedSession, turn: TurnRow, error: Exception | None) -> None:
    """End a turn that was not sent, unless it is over; returns when that is stored.

    Args:
        parts: the recorder and the store.
        live: its session.
        turn: the turn.
        error: why it failed; None: it was cancelled.

    Raises:
        ServerSessionNotFoundError: the session was deleted.
    """
    message = code = None
    if error is not None:
        known = isinstance(error, SandboxAgentError)
        message = str(error) if known else "an unexpected error; the server's log has the details"
        code = error.name if isinstance(error, ProblemError) else None
    while True:
        # An earlier try may have been stored after it failed.
        await parts.recorder.wait_flushed()
        try:
            stored = await parts.store.turn(turn.key, turn_id=turn.turn_id)
            if stored is None or stored.state not in ("accepted", "running"):
                return
            if stored.state == "running":
                await parts.recorder.add_events(
                    live, lambda p, t: p.turn_interrupted(t, reason="agent_exited")
                )
            else:
                await parts.recorder.add_events(
                    live, lambda p, t: p.turn_dropped(t, turn_id=turn.turn_id, message=message, code=code)
                )
            return
        except PersistError:
            await anyio.sleep(RETRY_SECONDS)
