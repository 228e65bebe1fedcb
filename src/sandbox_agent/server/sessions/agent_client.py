"""A running agent whose client is the server: its start, its handshake, its requests."""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.abc import TaskGroup

from sandbox_agent.agents.info import credential_variables, usable_auth_methods
from sandbox_agent.engine.handshake import (
    auth_method,
    credentials_hint,
    initialize_params,
    offered_methods,
)
from sandbox_agent.errors import AcpRpcError, ProblemError, StreamError
from sandbox_agent.persist.store import SessionStore
from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.agents.connection import AgentConnection
from sandbox_agent.server.client_names import SESSION
from sandbox_agent.server.files.baselines import Baselines
from sandbox_agent.server.recorder import RecordedSession, Recorder
from sandbox_agent.wire.jsonrpc import Head, InvalidEnvelopeError, dumps, loads, members, read_head
from sandbox_agent.wire.questions import read_question

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

METHOD_NOT_FOUND = -32601


@dataclass(slots=True)
class SessionContext:
    """What all sessions that the server drives work with.

    Attributes:
        tasks: where turns run.
        starts: limits how many agents are started again at once.
        cancel_grace: seconds that an agent has to end a turn that was cancelled.
        halted: the server is about to end: no turn is started.
        baselines: records the workspaces of new sessions; None without that.
    """

    recorder: Recorder
    store: SessionStore
    bridge: Bridge
    tasks: TaskGroup
    starts: anyio.CapacityLimiter
    cancel_grace: float
    halted: bool = False
    baselines: Baselines | None = None


class AgentClient:
    """An agent under a server id of its own; created by ``start``.

    Attributes:
        connection: its connection.
        initialized: the agent's result of initialize.
        native_id: the agent's id of its session, once there is one.
    """

    def __init__(self, context: SessionContext, connection: AgentConnection, env: Mapping[str, str]) -> None:
        self.initialized: dict[str, Any] = {}
        self.native_id: str = ""
        self.connection = connection
        self._bridge = context.bridge
        self._env = env
        self._tasks = context.tasks
        self._numbers = itertools.count(1)
        connection.on_request = self._on_request
        connection.managed = True

    @classmethod
    async def start(
        cls, context: SessionContext, agent: str, env: Mapping[str, str] | None = None
    ) -> AgentClient:
        """Start an agent, initialize it, and authenticate if that needs no user.

        Args:
            context: what sessions work with.
            agent: the agent's id.
            env: variables of the session, besides those that agents inherit.

        Raises:
            ProblemError: it can't be started, or did not respond well in time; then it has been ended.
        """
        # A random name: no client can have chosen it for a connection of its own.
        server_id = f"session-{uuid.uuid4()}"
        try:
            client = cls(context, await context.bridge.open(server_id, agent, env), env or {})
            await client._initialize()
        except BaseException as error:
            with anyio.CancelScope(shield=True):  # bounded: a timed ladder
                await context.bridge.delete(server_id)
            if isinstance(error, AcpRpcError):
                raise refused(agent, "initialize", error) from error
            raise
        return client

    async def _initialize(self) -> None:
        params = initialize_params("sandbox-agent", answers_questions=True)
        self.initialized = await self.call("initialize", params)
        variables = {**self._bridge.environment.variables(self.agent), **self._env}
        usable = usable_auth_methods(self.agent, variables)
        method_id = auth_method(offered_methods(self.initialized), usable)
        if method_id is not None:
            try:
                await self.call("authenticate", {"methodId": method_id})
            except AcpRpcError as error:
                # It may have its credentials already; if not, its first prompt fails.
                logger.info("agent %s did not authenticate with %s: %s", self.agent, method_id, error)

    @property
    def agent(self) -> str:
        """The agent's id."""
        return self.connection.agent

    @property
    def connection_id(self) -> str:
        """The connection, as stored envelopes name it."""
        return self.connection.feed.epoch

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self.connection.alive

    def bind(self, session: RecordedSession) -> None:
        """Record the sessions that the agent creates from now on as that one."""
        if self.connection.tap is not None:
            self.connection.tap.bind(session)

    async def new_session(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Create a session and return the agent's result (see call)."""
        result = await self.call("session/new", params)
        self.native_id = native_id_of(self.agent, result)
        return result

    async def call(self, method: str, params: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request and return its result (see submit and read_result).

        Raises:
            ProblemError: the agent has ended, or did not respond in time.
        """
        return self.read_result(method, await (await self.submit(method, params)))

    async def submit(
        self,
        method: str,
        params: Mapping[str, Any],
        *,
        request_id: str | None = None,
        stored_first: bool = False,
    ) -> asyncio.Future[bytes]:
        """Send a request; return its future response when it is recorded and written (see read_result).

        Args:
            method: an ACP method.
            params: its params.
            request_id: its JSON-RPC id; a new one by default.
            stored_first: write it only once the store has it, however long that takes.

        Raises:
            ProblemError: the agent has ended, or does not read its input. So does the response.
        """
        name = request_id or f"srv_{next(self._numbers)}"
        line = dumps({"jsonrpc": "2.0", "id": name, "method": method, "params": params})
        response = await self.connection.submit(SESSION, read_head(line), line, stored_first=stored_first)
        assert response is not None  # it is a request
        return response

    def read_result(self, method: str, response: bytes) -> dict[str, Any]:
        """Return the result in the response to a request.

        Raises:
            AcpRpcError: the agent responded with an error.
            StreamError: the response can't be read.
        """
        try:
            document = members(loads(response))
        except InvalidEnvelopeError as error:
            raise StreamError(
                f"stream error: the answer of {self.agent} to {method} can't be read: {error}"
            ) from error
        failure: Any = document.get("error")
        if failure is not None:
            fields = members(failure)
            code, message = fields.get("code"), fields.get("message")
            raise AcpRpcError(
                code if isinstance(code, int) else 0, str(message or failure), fields.get("data")
            )
        return members(document.get("result"))

    async def notify(self, method: str, params: Mapping[str, Any]) -> None:
        """Send a notification (see submit)."""
        line = dumps({"jsonrpc": "2.0", "method": method, "params": params})
        await self.connection.send(SESSION, read_head(line), line)

    def _on_request(self, head: Head, line: bytes) -> None:
        answer = _refusal(head, line)
        if answer is not None:
            self._tasks.start_soon(self._refuse, answer)

    async def _refuse(self, answer: bytes) -> None:
        try:
            await self.connection.send(SESSION, read_head(answer), answer)
        except ProblemError as error:
            logger.info("agent %s did not read a refusal: %s", self.agent, error)

    async def stop(self) -> None:
        """End the agent with all its processes, and remove its connection."""
        await self._bridge.end(self.connection)


async def answer(
    connection: AgentConnection, client: str, request_id: bytes, result: Mapping[str, Any]
) -> bool:
    """Answer an agent's request; return False if another answer was first.

    Args:
        connection: the agent's.
        client: the name of the client that answers.
        request_id: JSON of the request's id.
        result: the answer.

    Raises:
        ProblemError: the agent has ended, or does not read its input.
    """
    # Nothing is awaited between this check and the moment that the connection counts the answer.
    if not connection.awaits(request_id):
        return False
    line = b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (request_id, dumps(result))
    await connection.send(client, read_head(line), line)
    return True


def native_id_of(agent: str, result: Mapping[str, Any]) -> str:
    """Return the id of the session that the agent has created, from its result of session/new.

    Raises:
        StreamError: the agent breaks the protocol.
    """
    native_id: Any = result.get("sessionId")
    if not isinstance(native_id, str) or not native_id:
        raise StreamError(
            f"stream error: {agent} answered session/new without a sessionId, against ACP", agent=agent
        )
    return native_id


def refused(agent: str, method: str, error: AcpRpcError) -> StreamError:
    """Return the problem that stands for an error response of the agent."""
    hint = credentials_hint(credential_variables(agent)) if error.code == AcpRpcError.AUTH_REQUIRED else ""
    return StreamError(
        f"stream error: {agent} refused {method}: {error}" + (f": {hint}" if hint else ""),
        agent=agent,
        code=error.code,
        data=error.data,
    )


def _refusal(head: Head, line: bytes) -> bytes | None:
    """Return the refusal of an agent's request that nothing here serves; None if it is for the user."""
    method = head.method or ""
    if method == "session/request_permission":
        return None
    try:
        params = members(members(loads(line)).get("params"))
    except InvalidEnvelopeError:
        params = {}
    if read_question(method, params) is not None:
        return None
    error = {"code": METHOD_NOT_FOUND, "message": f'"Method not found": {method}'}
    return b'{"jsonrpc":"2.0","id":%b,"error":%b}' % (bytes(head.id), dumps(error))
