"""Server ids and the agents that run under them."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import anyio
import anyio.abc

from sandbox_agent.agents.environment import AgentEnvironment
from sandbox_agent.agents.launch import resolve
from sandbox_agent.agents.quirks import adapt
from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.errors import (
    ConflictError,
    InvalidRequestError,
    ServerSessionNotFoundError,
    StreamError,
)
from sandbox_agent.runtime.limits import LimitedGroup, Limits
from sandbox_agent.runtime.process import Process, SpawnError
from sandbox_agent.server import metrics
from sandbox_agent.server.agents.connection import AgentConnection
from sandbox_agent.server.agents.installations import Installations, Listener
from sandbox_agent.server.agents.limits import enforce
from sandbox_agent.server.agents.openings import Configuration
from sandbox_agent.server.agents.spill import Spiller
from sandbox_agent.server.children import Children
from sandbox_agent.server.files.baselines import Baselines
from sandbox_agent.server.log_context import add_fields
from sandbox_agent.server.streams.usage import overdue
from sandbox_agent.server.streams.viewers import KEEPALIVE_SECONDS
from sandbox_agent.server.trace_context import add_trace

if TYPE_CHECKING:
    from sandbox_agent.server.agents.egress import Egress
    from sandbox_agent.server.recorder.recorder import Recorder

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# Connections whose agent has ended stay readable; beyond this many the oldest are removed.
MAX_ENDED = 256


class Bridge:
    """All agent connections of a server; run() owns their tasks.

    Connections with a server id are recorded.

    Args:
        spiller: keeps the feeds within their memory.
        children: starts the agents.
        request_timeout: seconds for requests other than session/prompt.
        recorder: records the connections.
        idle_timeout: seconds after which an idle connection is ended; 0 ends none.
        idle_timeout_all: end also connections that clients without a name have used.
        installations: install agents that are not installed; without them, agents are only looked for.
        environment: what agents inherit, and their user.
        limits: what the processes of each agent may use.
        egress: the proxy that agents use; None without one.
        configuration: what sessions get by their folder; None without.
        baselines: records the workspaces of the sessions that clients create; None without.
    """

    def __init__(
        self,
        spiller: Spiller,
        children: Children,
        *,
        request_timeout: float,
        recorder: Recorder | None = None,
        idle_timeout: float = 0,
        idle_timeout_all: bool = False,
        installations: Installations | None = None,
        environment: AgentEnvironment | None = None,
        limits: Limits = Limits(),  # noqa: B008 - immutable
        egress: Egress | None = None,
        configuration: Configuration | None = None,
        baselines: Baselines | None = None,
    ) -> None:
        self._configuration = configuration
        self._baselines = baselines
        self._egress = egress
        self._installations = installations
        self.spiller = spiller
        self._recorder = recorder
        self._timeout = request_timeout
        self._idle_timeout = idle_timeout
        self._idle_timeout_all = idle_timeout_all
        self.environment: AgentEnvironment = environment or AgentEnvironment()
        self._limits = limits
        self._children = children
        self._running: dict[AgentConnection, LimitedGroup | None] = {}
        self._connections: dict[str, AgentConnection] = {}
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._tasks: anyio.abc.TaskGroup | None = None
        self._closing = False

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Bridge]:
        """Serve while the context lasts; at its end no agent runs."""
        async with anyio.create_task_group() as self._tasks:
            self._tasks.start_soon(self._keep_alive)
            self._tasks.start_soon(self._end_idle, self._tasks)
            self._tasks.start_soon(enforce, self._limits, lambda: dict(self._running))
            try:
                yield self
            finally:
                with anyio.CancelScope(shield=True):  # bounded: each stop() walks a timed ladder
                    await self.close()
                self._tasks.cancel_scope.cancel()
        self._tasks = None

    def live(self) -> list[AgentConnection]:
        """Return the connections whose agent runs, oldest first."""
        return [connection for connection in self._connections.values() if connection.alive]

    def running(self) -> list[AgentConnection]:
        """Return the connections of all agents that run, those of the server's own requests included."""
        return [connection for connection in self._running if connection.alive]

    def get(self, server_id: str) -> AgentConnection:
        """Return the connection of that id; its agent runs or has ended by itself.

        Raises:
            ServerSessionNotFoundError: there is no such connection.
        """
        connection = self._connections.get(server_id)
        if connection is None or connection.stopping:
            raise ServerSessionNotFoundError(f"session not found: {server_id}", sessionId=server_id)
        return connection

    def peek(self, server_id: str) -> AgentConnection | None:
        """Return the connection of that id if its agent runs."""
        connection = self._connections.get(server_id)
        usable = connection is not None and connection.alive and not connection.stopping
        return connection if usable else None

    async def open(
        self, server_id: str, agent: str | None, env: Mapping[str, str] | None = None
    ) -> AgentConnection:
        """Return the connection of that id; start the agent if the id is new or its agent has ended.

        If the connection is being ended, this waits until it is gone; the id is then new.

        Args:
            server_id: the connection's id.
            agent: its agent.
            env: variables for an agent that is started, besides those that it inherits.

        Raises:
            InvalidRequestError: the id is new and the request names no agent.
            ConflictError: the id belongs to another agent.
            UnsupportedAgentError: there is no such agent.
            AgentNotInstalledError: the agent isn't installed.
            InstallFailedError: the agent can't be installed.
            StreamError: the agent can't be started.
        """
        connection = self._connections.get(server_id)
        if connection is None or connection.stopping or (agent is not None and not connection.alive):
            if agent is not None:
                await self.prepare(agent)  # not under the lock: it may take minutes, and DELETE must not
            async with self._lock(server_id):
                connection = self._connections.get(server_id)
                if connection is None or (agent is not None and not connection.alive):
                    connection = await self._start(server_id, agent, env or {})
        if agent is not None and agent != connection.agent:
            raise ConflictError(
                f"conflict: server '{server_id}' already exists for agent '{connection.agent}'; "
                f"requested '{agent}'"
            )
        return connection

    def is_missing(self, agent: str) -> bool:
        """Return whether the agent is installed first; see Installations.is_missing()."""
        if self._installations is not None:
            return self._installations.is_missing(agent)
        resolve(agent)
        return False

    async def prepare(self, agent: str, listener: Listener | None = None) -> None:
        """Return when the agent is installed; see Installations.prepare()."""
        if self._installations is None:
            resolve(agent)
        else:
            await self._installations.prepare(agent, listener)

    async def delete(self, server_id: str) -> None:
        """End the connection of that id, its agent and its viewers, if there is one."""
        async with self._lock(server_id):
            connection = self._connections.get(server_id)
            if connection is not None:
                await self._close(connection)

    async def end(self, connection: AgentConnection) -> None:
        """End a connection, its agent and its viewers; another one may have its id by now."""
        async with self._lock(connection.server_id):
            await self._close(connection)

    async def _end_idle(self, tasks: anyio.abc.TaskGroup) -> None:
        async for connection in overdue(self._idle_timeout, self._idle_times):
            tasks.start_soon(self._end_if_idle, connection)

    def _idle_times(self) -> list[tuple[AgentConnection, float | None]]:
        return [
            (connection, connection.idle_seconds)
            for connection in self.live()
            if not connection.managed and (self._idle_timeout_all or UNNAMED not in connection.usage.streams)
        ]

    async def _end_if_idle(self, connection: AgentConnection) -> None:
        async with self._lock(connection.server_id):
            idle = connection.idle_seconds
            known = self._connections.get(connection.server_id) is connection and connection.alive
            # Nothing is awaited between this check and the moment that the connection counts as stopping.
            if known and idle is not None and idle >= self._idle_timeout:
                logger.info(
                    "agent %s for %s is ended: it was idle for %.0f s",
                    connection.agent,
                    connection.server_id,
                    idle,
                )
                await self._close(connection)

    async def _close(self, connection: AgentConnection) -> None:
        """Close a connection; the caller holds the lock of its id."""
        await connection.close()
        if self._connections.get(connection.server_id) is connection:
            del self._connections[connection.server_id]

    @asynccontextmanager
    async def private(self, agent: str) -> AsyncGenerator[AgentConnection]:
        """Start an agent under no server id, for a request of the server itself, and end it."""
        connection = await self._spawn(f"private-{uuid.uuid4().hex}", agent, None, {})
        try:
            yield connection
        finally:
            with anyio.CancelScope(shield=True):  # bounded: close() walks a timed ladder
                await connection.close()

    async def close(self) -> None:
        """End all connections."""
        self._closing = True
        async with anyio.create_task_group() as tasks:
            for server_id in list(self._connections):
                tasks.start_soon(self.delete, server_id)

    def _lock(self, server_id: str) -> asyncio.Lock:
        return self._locks.setdefault(server_id, asyncio.Lock())

    async def _start(self, server_id: str, agent: str | None, env: Mapping[str, str]) -> AgentConnection:
        if agent is None:
            raise InvalidRequestError(
                "invalid request: missing required 'agent' query parameter for first POST to "
                f"/v1/acp/{server_id}"
            )
        connection = await self._spawn(server_id, agent, self._recorder, env)
        former = self._connections.pop(server_id, None)
        self._connections[server_id] = connection
        if former is not None:
            await former.close()
        await self._remove_oldest_ended()
        return connection

    async def _spawn(
        self, server_id: str, agent: str, recorder: Recorder | None, env: Mapping[str, str]
    ) -> AgentConnection:
        if self._tasks is None or self._closing:
            raise StreamError("stream error: the server is shutting down")
        launch = resolve(agent)
        user = "" if self._egress is None else self._egress.new_user()
        proxy = {} if self._egress is None else self._egress.variables(user)
        try:
            process = await self._children.spawn(
                launch.argv,
                env={**self.environment.variables(agent), **launch.env, **proxy, **env},
                user=self.environment.user,
                cwd=launch.cwd,
                limited=True,
            )
        except SpawnError as error:
            metrics.AGENT_START_FAILURES.add(agent)
            raise StreamError(f"stream error: {error}", agent=agent) from error
        metrics.AGENT_STARTS.add(agent)
        connection = AgentConnection(
            server_id,
            agent,
            process,
            self.spiller,
            request_timeout=self._timeout,
            adapt=lambda method, envelope: adapt(agent, method, add_trace(method, envelope)),
            recorder=recorder,
            env=env,
            configuration=self._configuration,
            baselines=None if recorder is None else self._baselines,
        )
        if self._egress is not None:
            self._egress.add(user, connection)
        self._tasks.start_soon(self._run, connection, process)
        return connection

    async def _run(self, connection: AgentConnection, process: Process) -> None:
        add_fields(server_id=connection.server_id, connection_id=connection.feed.epoch)
        logger.info("agent %s started for %s, pid %d", connection.agent, connection.server_id, process.pid)
        add_fields(request_id=None)  # the agent outlives the request that has started it
        self._running[connection] = process.group
        try:
            await connection.run()
        finally:
            del self._running[connection]
            await self._children.release(process)
        await self.spiller.spill_excess()  # reading was cut off, maybe while the store failed
        logger.info("agent %s ended for %s", connection.agent, connection.server_id)

    async def _remove_oldest_ended(self) -> None:
        ended = [connection for connection in self._connections.values() if not connection.alive]
        for connection in ended[: max(0, len(ended) - MAX_ENDED)]:
            # Closing takes time: the id may have a new connection by now.
            if self._connections.get(connection.server_id) is connection:
                del self._connections[connection.server_id]
                await connection.close()

    async def _keep_alive(self) -> None:
        while True:
            await anyio.sleep(KEEPALIVE_SECONDS)
            for connection in list(self._connections.values()):
                connection.signal.tick()
