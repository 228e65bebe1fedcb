"""The registry of a client's sessions and connections: creates, finds, binds and restores them."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import time
import uuid
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sandbox_agent.client.agent_info import KnownModes, add_credentials_hint
from sandbox_agent.client.agent_requests import RequestHandlers
from sandbox_agent.client.attached import AttachedConnection, attach
from sandbox_agent.client.catch_up import catch_up
from sandbox_agent.client.connection import Connection
from sandbox_agent.client.health import HealthCheck
from sandbox_agent.client.http import Http, quote_segment
from sandbox_agent.client.identity import connection_of, describe_process
from sandbox_agent.client.journal import EventIds, Journal
from sandbox_agent.client.opened import OpenedConnection
from sandbox_agent.client.options import CANCEL_GRACE, SessionOptions, session_params
from sandbox_agent.client.outgoing import NotSentError
from sandbox_agent.client.permissions import PermissionBroker
from sandbox_agent.client.restore import Limits, Restorer, check_new_session
from sandbox_agent.client.server_sessions.calls import SessionCalls, is_of_network
from sandbox_agent.client.session_core import Policies, SessionCore
from sandbox_agent.client.settings import init_for_agent, init_with_chosen
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.client.unfinished import end_unfinished_restore
from sandbox_agent.engine import config_options as config
from sandbox_agent.engine.settings import ChosenSettings
from sandbox_agent.errors import (
    AcpRpcError,
    AgentProcessExitedError,
    SandboxAgentError,
    SessionAlreadyExistsError,
    SessionNotFoundError,
)
from sandbox_agent.persist.base import Capability, SessionPersistDriver
from sandbox_agent.wire.jsonrpc import loads, members
from sandbox_agent.wire.questions import ELICITATIONS
from sandbox_agent.wire.records import SessionRecord

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# How long it may take to say whether another process has a session.
CONFIRM_TIMEOUT = 5.0
# How long an agent may take to end its turn when the session is handed over to another agent.
HAND_OVER_TIMEOUT = 5.0


class SessionRegistry:
    """Owns the connections, and the sessions, one per id for as long as it is in use.

    Sessions of one agent share a connection. Those whose agent may ask questions have another one, because an
    agent learns that when it is initialized.

    Attributes:
        tasks: runs the client's background tasks.
        sandbox_id: the id of the client's sandbox, or None.
        default_cwd: the sandbox's default working directory, or None.
        handlers: the user's handlers of agent requests, by method.
        modes: what the modes of the server's agents mean.
    """

    def __init__(
        self,
        http: Http,
        tasks: TaskOwner,
        health: HealthCheck,
        driver: SessionPersistDriver,
        limits: Limits,
    ) -> None:
        self.sandbox_id: str | None = None
        self.default_cwd: str | None = None
        self.cancel_grace: float = CANCEL_GRACE
        self.handlers: RequestHandlers = {}
        self._http = http
        self.tasks: TaskOwner = tasks
        self._health = health
        self._driver = driver
        self._restorer = Restorer(driver, limits)
        self._event_ids = EventIds()
        # Unique over the clients that attach to one connection.
        self._request_ids = itertools.count(secrets.randbits(26))
        self.modes: KnownModes = KnownModes(http, health)
        self._connections: dict[tuple[str, bool], Connection] = {}
        # Connections that take no new sessions: they end with the turns that still run.
        self._retiring: set[Connection] = set()
        # Of lost clients, each for one session.
        self._attached: set[Connection] = set()
        self._holder = describe_process()
        # A lock lives only while a task opens that connection, or creates a session of that id.
        self._locks: weakref.WeakValueDictionary[object, asyncio.Lock] = weakref.WeakValueDictionary()
        self._kept: set[SessionCore] = set()
        self._sessions: weakref.WeakValueDictionary[str, SessionCore] = weakref.WeakValueDictionary()

    # what a session needs of its client

    @property
    def is_fenced(self) -> bool:
        """Whether the store refuses a writer that another process has replaced."""
        return Capability.FENCE in self._driver.capabilities

    def next_request_id(self) -> int:
        """Return a JSON-RPC id that no request of this client has used."""
        return next(self._request_ids)

    async def agent_options(self, agent: str) -> list[dict[str, Any]]:
        """Fetch the agent's config options from the server."""
        calls, path = SessionCalls(self._http, self._health), f"/v1/agents/{quote_segment(agent)}"
        answer = await calls.send("GET", path, params={"config": "true"}, repeats=is_of_network)
        return config.valid_options(members(loads(answer.content)).get("configOptions")) or []

    def keep(self, session: SessionCore) -> None:
        """Keep a session in memory until the client is disposed: it has events that are not stored."""
        self._kept.add(session)

    # connections

    async def connection(self, agent: str, session: SessionCore) -> Connection:
        """Return a live connection for a session; open one if there is none.

        It is shared by the agent's sessions, except those with variables of their own.

        Raises:
            InvalidRequestError: the session has variables whose values this client does not know.
        """
        env = session.variables()
        answers = session.answers_questions or not ELICITATIONS.isdisjoint(self.handlers)
        key = (f"{agent} {session.id}" if env else agent, answers)
        async with self._locks.setdefault(key, asyncio.Lock()):
            try:
                return await self._existing_or_opened(agent, key, env)
            except NotSentError:
                # The server was lost: this waits until it is healthy, or was started again.
                return await self._existing_or_opened(agent, key, env)

    async def _existing_or_opened(
        self, agent: str, key: tuple[str, bool], env: Mapping[str, str]
    ) -> Connection:
        await self._health.wait_ready()
        existing = self._connections.get(key)
        if existing is not None:
            return existing
        opened = OpenedConnection(
            self._http,
            self.tasks,
            agent,
            self._request_ids,
            self._on_lost,
            self.handlers,
            self._health.recover,
            self._holder,
            answers_questions=key[1],
        )
        opened.key = key
        try:
            await opened.open(env)
        except NotSentError:
            self._health.mark_suspect()
            raise
        if opened.lost is not None:
            raise opened.lost
        self._connections[key] = opened
        return opened

    def _withdraw_connection(self, connection: Connection) -> bool:
        """Take no new sessions on a connection; return whether it took any."""
        if self._connections.get(connection.key) is not connection:
            return False
        del self._connections[connection.key]
        return True

    def _on_lost(self, connection: Connection) -> None:
        self._retiring.discard(connection)
        self._attached.discard(connection)
        self._withdraw_connection(connection)
        if connection.closing or not self.tasks.running:
            return
        # A stream that never opened says nothing about the server: most likely it has no such connection.
        if connection.was_open and not isinstance(connection.lost, AgentProcessExitedError):
            self._health.mark_suspect()

    def _all_connections(self) -> list[Connection]:
        return [*self._connections.values(), *self._retiring, *self._attached]

    def live_connection(self, session: SessionCore) -> Connection | None:
        """Return the connection whose agent holds the session, or None."""
        # Another process may use the same agent session elsewhere: the record names its connection.
        for connection in self._all_connections():
            if session.record.last_connection_id == connection.connection_id:
                return connection if connection.is_bound(session.agent_session_id, session) else None
        return None

    async def end_turn(self, session: SessionCore, connection: Connection) -> None:
        """End the session's turns on a connection whose agent ignores their cancellation.

        The agent is stopped at once, or once the turns of its other sessions have ended. The session's next
        call restores it in another process.
        """
        connection.end_turns(session)
        if self._withdraw_connection(connection):
            self._retiring.add(connection)
        await connection.wait_turns_ended()
        await connection.close()

    async def bound_connection(
        self, session: SessionCore, agent: str | None = None, *, take_over: bool = False
    ) -> Connection:
        """Return the session's connection; attach to its last one, or restore the session, if it has none.

        Args:
            session: the session.
            agent: the agent to hand the session over to; None keeps its agent.
            take_over: take the session even if another process drives it.

        Raises:
            SessionNotFoundError: the session was deleted.
            SessionBusyError: another process drives the session.
        """
        if session.journal.discarded:
            raise SessionNotFoundError(session.id)
        async with session.binding:
            name = agent or session.agent
            await self._health.wait_ready()
            if name != session.agent:
                await self._check_agent(session, name)
            former, former_id = self.live_connection(session), session.agent_session_id
            if former is None:
                former = await self._attach(session, take_over=take_over)
            if name == session.agent and former is not None:
                return former
            connection = await self.connection(name, session)
            if former is not None and former.turns_of(session) and await self._cancel_on(former, session):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HAND_OVER_TIMEOUT):
                        await former.wait_turns_ended(session)
            try:
                await self._restore(session, connection)
            except NotSentError:
                connection = await self.connection(name, session)
                await self._restore(session, connection)
            if former is not None:
                former.router.unbind(former_id)
                if not former.is_shared:
                    await self._close(former)
                await self._close_attached()
            return connection

    async def _close_attached(self) -> None:
        """Close the attached connections whose session has left."""
        for connection in list(self._attached):
            if not connection.router.sessions:
                await connection.close()

    async def _attach(self, session: SessionCore, *, take_over: bool) -> Connection | None:
        """Attach to the connection that the session used last; see ``attach``."""
        former_id = session.record.last_connection_id
        own = self._all_connections()
        if not former_id or any(connection.connection_id == former_id for connection in own):
            return None  # it is this client's own, whose agent has lost the session
        for connection in own:
            connection.router.unbind_all(session)

        def new_connection() -> AttachedConnection:
            connection = AttachedConnection(
                self._http,
                self.tasks,
                session.agent,
                self._request_ids,
                self._on_lost,
                self.handlers,
                self._health.recover,
                self._holder,
                session=session,
                driver=self._driver,
            )
            self._attached.add(connection)
            return connection

        connection = await attach(new_connection, session, take_over=take_over)
        if connection is None:
            calls, ids = SessionCalls(self._http, self._health), [each.connection_id for each in own]
            await catch_up(calls, self._driver, session)
            await end_unfinished_restore(calls, self._driver, session, ids, take_over=take_over)
        return connection

    async def _check_agent(self, session: SessionCore, agent: str) -> None:
        if session.permissions.mode is not None:
            await self.modes.load(agent)
        session.settings.check_agent(agent)

    async def _restore(self, session: SessionCore, connection: Connection) -> None:
        if session.permissions.mode is not None:
            await self.modes.load(connection.agent)
        await self._restorer.restore(session, connection, self._init_of(session))

    async def _cancel_on(self, connection: Connection | None, session: SessionCore) -> bool:
        if connection is None:
            return False
        try:
            await session.cancel_on(connection)
        except SandboxAgentError as error:
            logger.info("session %s could not be cancelled: %s", session.id, error)
            return False
        return True

    # sessions

    def session(self, record: SessionRecord, read_at: float) -> SessionCore:
        """Return the session of a stored record; the record counts unless it was changed here since.

        Args:
            record: the record that the store returned.
            read_at: when the store was asked, on the monotonic clock.
        """
        session = self._sessions.get(record.id)
        if session is None:
            journal = Journal(record, self._driver, self.tasks, self._event_ids)
            session = SessionCore(self, journal, PermissionBroker(record.id, self.tasks))
            self._sessions[record.id] = session
        elif not session.journal.dirty and session.journal.changed_at < read_at:
            session.journal.record = record
            session.read_permissions()
        return session

    async def load(self, session_id: str) -> SessionCore | None:
        """Return a stored session, or None."""
        self.tasks.check_caller()
        read_at = time.monotonic()
        record = await self._driver.get_session(session_id)
        return None if record is None else self.session(record, read_at)

    async def require(self, session_id: str) -> SessionCore:
        """Return a stored session.

        Raises:
            SessionNotFoundError: the store has no session of that id.
        """
        session = await self.load(session_id)
        if session is None:
            raise SessionNotFoundError(session_id)
        return session

    async def claim(self, session_id: str) -> SessionCore:
        """Return a stored session, which this client writes from now on.

        Raises:
            SessionNotFoundError: the store has no session of that id.
        """
        session = await self.require(session_id)
        fenced = await session.journal.fencing_error()
        if fenced is not None:
            # Another process continued the session: its record counts, not the changes made here.
            record = await self._driver.get_session(session_id)
            if record is not None:
                session.journal.record = record
                session.read_permissions()
            await self._release(session, fenced)
        await session.journal.reclaim()
        return session

    async def _release(self, session: SessionCore, fenced: SandboxAgentError) -> None:
        """Cancel what this client's agents still do for a session that another process continued."""
        for connection in self._all_connections():
            try:
                await connection.release(session, fenced)
            except SandboxAgentError as error:
                logger.info("session %s could not be cancelled: %s", session.id, error)
        other = connection_of(session.record.last_connection_id)
        if any(connection_of(connection.connection_id) == other for connection in self._all_connections()):
            session.forget_requests()  # it has attached to the agent, and answers
        else:
            await session.cancel_requests()
        await self._close_attached()

    async def create(
        self,
        agent: str,
        session_id: str | None,
        init: dict[str, Any],
        policies: Policies,
        chosen: ChosenSettings,
        env: Mapping[str, str],
    ) -> SessionCore:
        """Create a session at the agent and in the store, with the chosen settings.

        Raises:
            SessionAlreadyExistsError: the store has a session of that id.
        """
        local_id = session_id or str(uuid.uuid4())
        async with self._locks.setdefault(local_id, asyncio.Lock()):
            self.tasks.check_caller()
            if session_id is not None and await self._driver.get_session(local_id) is not None:
                raise SessionAlreadyExistsError(
                    f"session '{local_id}' exists and was created with other arguments, or was destroyed: "
                    "resume it, or use resume_or_create_session",
                    sessionId=local_id,
                )
            session = await self._create(agent, local_id, init_with_chosen(init, chosen), policies, env)
            try:
                await session.settings.create(session.call)
                await session.journal.flush()
            except BaseException:
                await self.withdraw(session)
                raise
            return session

    async def _create(
        self,
        agent: str,
        local_id: str,
        init: dict[str, Any],
        policies: Policies,
        env: Mapping[str, str],
    ) -> SessionCore:
        record = SessionRecord(
            id=local_id,
            agent=agent,
            agent_session_id="",
            last_connection_id="",
            created_at=time.time_ns() // 1_000_000,
            sandbox_id=self.sandbox_id,
            session_init=init,
        )
        session = self.session(record, time.monotonic())
        session.journal.hold()
        session.set_variables(env)
        session.set_policies(policies)
        session.store_policies()
        # The settings are stored before they are set: they stay chosen if this program dies meanwhile.
        session.settings.expect_confirmation()
        connection: Connection | None = None
        try:
            connection = await self.connection(agent, session)
            try:
                await self._open_new(session, connection)
            except NotSentError:
                connection = await self.connection(agent, session)
                await self._open_new(session, connection)
        except BaseException as error:
            session.journal.discard()
            self._sessions.pop(local_id, None)
            if isinstance(error, asyncio.CancelledError) and connection is not None:
                await self._close_unused(connection)
            raise
        session.journal.release()
        try:
            await session.journal.flush()
        except asyncio.CancelledError:
            await self.withdraw(session)
            raise
        return session

    async def explain(self, agent: str, error: AcpRpcError) -> None:
        """Add to an error of the agent what the server knows to do about it."""
        await add_credentials_hint(self._http, agent, error)

    async def _open_new(self, session: SessionCore, connection: Connection) -> None:
        try:
            result = await connection.request("session/new", self._init_of(session), session=session)
        except AcpRpcError as error:
            await self.explain(connection.agent, error)
            raise
        check_new_session(connection.agent, result)

    async def destroy(self, session: SessionCore) -> None:
        """Cancel the session's turn, if its agent is alive, and mark the session as destroyed."""
        connection = self.live_connection(session)
        await self._cancel_on(connection, session)
        session.journal.change(destroyed_at=time.time_ns() // 1_000_000)
        await session.journal.flush()
        if connection is not None and not connection.is_shared:
            await self._close(connection)  # no other session can use it

    async def withdraw(self, session: SessionCore) -> None:
        """Destroy a session that its caller will not get; its agent ends, unless it has other sessions."""
        connection = self.live_connection(session)
        await self.destroy(session)
        if connection is not None:
            connection.router.unbind(session.agent_session_id)
            await self._close_unused(connection)

    async def _close_unused(self, connection: Connection) -> None:
        if not connection.is_used:
            await self._close(connection)

    async def _close(self, connection: Connection) -> None:
        self._withdraw_connection(connection)
        await connection.close()

    async def delete(self, session_id: str) -> None:
        """Erase a session; envelopes that its agent sends later are not stored."""
        self.tasks.check_caller()
        session = self._sessions.get(session_id)
        if session is not None:
            connection = self.live_connection(session)
            await self._cancel_on(connection, session)
            if connection is not None:
                connection.router.unbind(session.agent_session_id)
                if not connection.is_shared:
                    await self._close(connection)
            session.journal.discard()
            await session.journal.wait_idle()
            self._sessions.pop(session_id, None)
        await self._driver.delete_session(session_id)

    def session_init(self, options: SessionOptions) -> dict[str, Any]:
        """Return the params of session/new.

        Raises:
            ValueError: an MCP server is invalid.
        """
        # This client's folder means nothing on another machine; ACP requires an absolute path.
        default = self.default_cwd or (Path.cwd() if self._http.is_on_this_machine else "/")
        return session_params(options, os.fspath(default))

    def _init_of(self, session: SessionCore) -> dict[str, Any]:
        return init_for_agent(session.record.session_init or self.session_init({}))

    # dispose

    async def _cancel_requests(self, session: SessionCore) -> None:
        """Cancel the agent's open requests, unless another process has the session."""
        if not session.has_open_requests:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONFIRM_TIMEOUT):
                if await session.journal.fencing_error() is not None:
                    return
        await session.cancel_requests()

    async def close(self) -> None:
        """Cancel open requests, close the connections, store all events.

        Raises:
            PersistError: some events could not be stored.
        """
        sessions = list(self._sessions.values())
        connections, self._connections = self._all_connections(), {}
        try:
            await asyncio.gather(*(self._cancel_requests(session) for session in sessions))
            await asyncio.gather(*(connection.close() for connection in connections))
        finally:
            # Also if the caller is cancelled: pending requests must fail, they cannot complete any more.
            for connection in connections:
                connection.abandon()
        caller = asyncio.current_task()
        errors = await asyncio.gather(*(session.journal.finish(caller) for session in sessions))
        for error in errors:
            if error is not None:
                raise error
