"""A client's sessions and connections: made, found, bound, restored."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
import uuid
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar, cast

from sandbox_agent.client.connection import Connection
from sandbox_agent.client.health import HealthGate
from sandbox_agent.client.http import Http, quote_segment
from sandbox_agent.client.journal import EventIds, Journal
from sandbox_agent.client.outgoing import NotSentError
from sandbox_agent.client.permissions import PermissionDesk, PermissionPolicy
from sandbox_agent.client.restore import Limits, Restorer
from sandbox_agent.client.session import Session
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.engine import config_options as config
from sandbox_agent.errors import (
    AgentProcessExitedError,
    PersistError,
    SandboxAgentError,
    SessionAlreadyExistsError,
    SessionNotFoundError,
)
from sandbox_agent.persist.base import Capability, SessionPersistDriver
from sandbox_agent.wire.records import SessionRecord

__all__ = ["SessionBook"]

T = TypeVar("T")
logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# What the store gets to take the last events when the client is disposed.
FLUSH_TIMEOUT = 30.0
# What an agent gets to end its turn when the session is handed over to another one.
HAND_OVER_TIMEOUT = 5.0


class SessionBook:
    """Owns the connections, one per agent, and the handles, one per session while anyone holds it."""

    def __init__(
        self,
        http: Http,
        tasks: TaskOwner,
        gate: HealthGate,
        driver: SessionPersistDriver,
        *,
        replay_max_events: int,
        replay_max_chars: int,
    ) -> None:
        self.sandbox_id: str | None = None
        self.default_cwd: str | None = None
        self.handlers: dict[str, Callable[[Any], Awaitable[object] | object]] = {}
        self._http = http
        self._tasks = tasks
        self._gate = gate
        self._driver = driver
        self._restorer = Restorer(driver, Limits(replay_max_events, replay_max_chars))
        self._event_ids = EventIds()
        self._request_ids = itertools.count(1)
        self._connections: dict[str, Connection] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._making_locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._kept: set[Session] = set()
        self._handles: weakref.WeakValueDictionary[str, Session] = weakref.WeakValueDictionary()

    # what sessions ask for

    @property
    def is_reachable(self) -> bool:
        """Whether new requests are possible at all."""
        return self._tasks.running

    @property
    def is_fenced(self) -> bool:
        """Whether the store refuses a writer that another one has replaced."""
        return Capability.FENCE in self._driver.capabilities

    def next_request_id(self) -> int:
        """Return a JSON-RPC id that no request of this client has had."""
        return next(self._request_ids)

    def spawn(self, work: Coroutine[Any, Any, Any], *, name: str) -> None:
        """Run it in the background; it ends with the client."""
        self._tasks.spawn(work, name=name)

    def run(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Future[T]:
        """Run it in the background and return its outcome as a future."""
        return self._tasks.run(work, name=name)

    async def agent_options(self, agent: str) -> list[dict[str, Any]]:
        """Ask the server for the agent's config options."""
        await self._gate.ready()
        path = f"/v1/agents/{quote_segment(agent)}"
        info: dict[str, Any] | None = await self._http.json("GET", path, params={"config": "true"})
        return config.valid_options((info or {}).get("configOptions")) or []

    # connections

    async def connection(self, agent: str) -> Connection:
        """Return the agent's live connection, made where there is none."""
        async with self._opening.setdefault(agent, asyncio.Lock()):
            await self._gate.ready()
            existing = self._connections.get(agent)
            if existing is not None:
                return existing
            try:
                made = await Connection.open(
                    self._http, self._tasks, agent, self._request_ids, self._on_lost, self.handlers
                )
            except NotSentError:
                self._gate.suspect()
                raise
            self._connections[agent] = made
            if made.lost is not None:
                del self._connections[agent]
                raise made.lost
            return made

    def _on_lost(self, connection: Connection) -> None:
        if self._connections.get(connection.agent) is connection:
            del self._connections[connection.agent]
        if connection.closing or not self._tasks.running:
            return
        if not isinstance(connection.lost, AgentProcessExitedError):
            self._gate.suspect()

    def live_connection(self, session: Session) -> Connection | None:
        """Return the connection whose agent holds the session now, or None."""
        connection = self._connections.get(session.agent)
        return connection if connection is not None and _holds(connection, session) else None

    async def bound_connection(self, session: Session, agent: str | None = None) -> Connection:
        """Return the session's connection; where it lost the session, the session is restored first.

        Args:
            session: which.
            agent: the agent that it is handed over to, where it has another one.

        Raises:
            SessionNotFoundError: the session was deleted.
        """
        if session.journal.discarded:
            raise SessionNotFoundError(session.id)
        async with session.binding:
            name = agent or session.agent
            connection = await self.connection(name)
            former, former_id = self.live_connection(session), session.agent_session_id
            if name == session.agent and former is not None:
                return connection
            if former is not None and (turns := former.turns_of(session)):
                await self._stop(turns, session, former)
            try:
                await self._restore(session, connection)
            except NotSentError:
                connection = await self.connection(name)
                await self._restore(session, connection)
            if former is not None:
                former.router.unbind(former_id)
            return connection

    async def _stop(
        self, turns: set[asyncio.Future[bytes]], session: Session, connection: Connection
    ) -> None:
        try:
            await session.cancel_on(connection)
            await asyncio.wait(turns, timeout=HAND_OVER_TIMEOUT)
        except SandboxAgentError as error:
            logger.info("session %s could not be cancelled: %s", session.id, error)

    async def _restore(self, session: Session, connection: Connection) -> None:
        init = session.record.session_init or self.session_init(None, None)
        await self._restorer.restore(session, connection, init)

    # sessions

    def handle(self, record: SessionRecord, asked_at: float) -> Session:
        """Return the session's handle with what the store said, unless it was changed here since.

        Args:
            record: what the store said.
            asked_at: when it was asked, on the monotonic clock.
        """
        session = self._handles.get(record.id)
        if session is None:
            journal = Journal(record, self._driver, self._tasks, self._event_ids)
            session = Session(self, journal, PermissionDesk(record.id, self._tasks))
            self._handles[record.id] = session
        elif not session.journal.dirty and session.journal.changed_at < asked_at:
            session.journal.record = record
        return session

    def keep(self, session: Session) -> None:
        """Hold a session until the end: it has events that are not stored, and maybe no one else does."""
        self._kept.add(session)

    def handles(self) -> list[Session]:
        """Return all handles that are held."""
        return list(self._handles.values())

    async def load(self, session_id: str) -> Session | None:
        """Return the handle of a stored session, or None."""
        asked_at = time.monotonic()
        record = await self._driver.get_session(session_id)
        return None if record is None else self.handle(record, asked_at)

    async def require(self, session_id: str) -> Session:
        """Return the handle of a stored session.

        Raises:
            SessionNotFoundError: the store has none.
        """
        session = await self.load(session_id)
        if session is None:
            raise SessionNotFoundError(session_id)
        return session

    async def take_back(self, session_id: str) -> Session:
        """Return the handle of a stored session, which this client writes from now on.

        Raises:
            SessionNotFoundError: the store has none.
        """
        session = await self.require(session_id)
        refusal = await session.journal.refusal()
        if refusal is not None:
            await self._let_go(session, refusal)
            # Another process went on with it: its record counts, not what was to be saved here.
            record = await self._driver.get_session(session_id)
            if record is not None:
                session.journal.record = record
        await session.journal.reclaim()
        return session

    async def _let_go(self, session: Session, refusal: SandboxAgentError) -> None:
        """End what agents of this client still do for a session that another process has gone on with."""
        for connection in list(self._connections.values()):
            try:
                await connection.let_go(session, refusal)
            except SandboxAgentError as error:
                logger.info("session %s could not be cancelled: %s", session.id, error)
        await session.desk.cancel_all()

    async def create(
        self,
        agent: str,
        session_id: str | None,
        init: dict[str, Any],
        policy: PermissionPolicy | None,
    ) -> Session:
        """Make a session at the agent and in the store.

        Raises:
            SessionAlreadyExistsError: the store has a session of that id.
        """
        local_id = session_id or str(uuid.uuid4())
        async with self._making(local_id):
            if session_id is not None and await self._driver.get_session(local_id) is not None:
                raise SessionAlreadyExistsError(
                    f"session '{local_id}' exists: resume it, or use resume_or_create_session",
                    sessionId=local_id,
                )
            return await self._create(agent, local_id, init, policy)

    def _making(self, session_id: str) -> asyncio.Lock:
        # Gone when nobody makes that session any more.
        lock = self._making_locks.get(session_id)
        if lock is None:
            lock = self._making_locks[session_id] = asyncio.Lock()
        return lock

    async def _create(
        self, agent: str, local_id: str, init: dict[str, Any], policy: PermissionPolicy | None
    ) -> Session:
        record = SessionRecord(
            id=local_id,
            agent=agent,
            agent_session_id="",
            last_connection_id="",
            created_at=time.time_ns() // 1_000_000,
            sandbox_id=self.sandbox_id,
            session_init=init,
        )
        session = self.handle(record, time.monotonic())
        session.journal.hold()
        session.permission_policy = policy
        try:
            connection = await self.connection(agent)
            try:
                await self._new(session, connection)
            except NotSentError:
                await self._new(session, await self.connection(agent))
        except BaseException:
            session.journal.discard()
            self._handles.pop(local_id, None)
            raise
        session.journal.release()
        await session.journal.flush()
        return session

    async def _new(self, session: Session, connection: Connection) -> None:
        init = session.record.session_init or self.session_init(None, None)
        result = await connection.request("session/new", init, session=session)
        fields = cast("dict[str, Any]", result) if isinstance(result, dict) else {}
        if not isinstance(fields.get("sessionId"), str):
            raise SandboxAgentError(
                f"agent '{connection.agent}' answered session/new without a sessionId: it breaks the protocol"
            )

    async def destroy(self, session: Session) -> Session:
        """Cancel what the session does and mark it destroyed; an agent that is gone needs no telling."""
        await self._cancel_if_bound(session)
        session.journal.change(destroyed_at=time.time_ns() // 1_000_000)
        await session.journal.flush()
        return session

    async def _cancel_if_bound(self, session: Session) -> None:
        connection = self.live_connection(session)
        if connection is None:
            return
        try:
            await session.cancel_on(connection)
        except SandboxAgentError as error:
            logger.info("session %s could not be cancelled: %s", session.id, error)

    async def delete(self, session_id: str) -> None:
        """Erase the session; its agent's later envelopes are not kept."""
        session = self._handles.get(session_id)
        if session is not None:
            await self._cancel_if_bound(session)
            connection = self._connections.get(session.agent)
            if connection is not None:
                connection.router.unbind(session.agent_session_id)
            session.journal.discard()
            await session.journal.idle()
            self._handles.pop(session_id, None)
        await self._driver.delete_session(session_id)

    def session_init(
        self, session_init: Mapping[str, Any] | None, cwd: str | None, mcp_servers: list[Any] | None = None
    ) -> dict[str, Any]:
        """Return the params of session/new."""
        given = dict(session_init or {})
        return {
            **given,
            "cwd": given.get("cwd") or cwd or self.default_cwd or os.getcwd(),  # noqa: PTH109 - a string goes out
            "mcpServers": given.get("mcpServers") or mcp_servers or [],
        }

    # the end

    async def close(self) -> None:
        """Cancel what waits for the user, end the connections, store what is left.

        Raises:
            PersistError: something could not be stored.
        """
        sessions = self.handles()
        connections, self._connections = list(self._connections.values()), {}
        try:
            await asyncio.gather(*(session.desk.cancel_all() for session in sessions))
            await asyncio.gather(*(connection.close() for connection in connections))
        finally:
            # Also where the caller has no time for that: nobody may wait for what never comes.
            for connection in connections:
                connection.abandon()
        caller = asyncio.current_task()
        errors = await asyncio.gather(*(_finish(session.journal, caller) for session in sessions))
        for error in errors:
            if error is not None:
                raise error


def _holds(connection: Connection, session: Session) -> bool:
    # Another process may have gone on with the same agent session elsewhere: the record says where.
    mine = session.last_connection_id == connection.connection_id
    return mine and connection.is_bound(session.agent_session_id, session)


async def _finish(journal: Journal, caller: asyncio.Task[Any] | None) -> PersistError | None:
    failed: PersistError | None = None
    try:
        async with asyncio.timeout(FLUSH_TIMEOUT):
            await journal.flush()
    except PersistError as error:
        failed = error
    except TimeoutError:
        message = f"session '{journal.record.id}': the store took more than {FLUSH_TIMEOUT:g} s at the end"
        failed = PersistError(message, session_id=journal.record.id)
    journal.close()
    await journal.listened(caller)
    return failed
