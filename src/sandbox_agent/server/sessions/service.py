"""The sessions of a server: create, message, cancel, terminate, delete, answer."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakValueDictionary

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from sandbox_agent.agents.catalogue import agent_modes
from sandbox_agent.errors import AcpRpcError, ConflictError, NotFoundError, SandboxAgentError, StreamError
from sandbox_agent.persist.store import SessionRow, SessionStore, TurnRow
from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.config import CANCEL_GRACE
from sandbox_agent.server.errors import session_exists
from sandbox_agent.server.files.baselines import Baselines, managed_name
from sandbox_agent.server.permissions.policies import stored_request
from sandbox_agent.server.recorder import RecordedSession, Recorder
from sandbox_agent.server.sessions.agent_client import AgentClient, SessionContext, answer, refused
from sandbox_agent.server.sessions.creations import Creations
from sandbox_agent.server.sessions.driven_session import DrivenSession
from sandbox_agent.server.sessions.installing import install_in_session
from sandbox_agent.server.sessions.requests import check_access, check_create, check_prompt, session_params
from sandbox_agent.server.sessions.settings import (
    MODE,
    MODEL,
    VARIANT,
    chosen_settings,
    creation_key,
    set_chosen,
    stored_settings,
)
from sandbox_agent.server.streams.usage import overdue
from sandbox_agent.wire.sessions import CreateSessionRequest, CreateSessionResponse

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# After a restart many sessions may have waiting messages: so many agents are started at once.
STARTS = 8
# How long a delete waits until the agent's end is stored.
DELETE_SECONDS = 10.0
# How long a failed creation waits for the store to erase the session.
ERASE_SECONDS = 10.0


class Sessions:
    """All sessions of a server. run() owns the turns of those that the server drives.

    The recorder and the bridge must be running, and the recorder must record the bridge's connections. The
    agent of a session that is idle for ``idle_timeout`` seconds is stopped; 0 stops none.
    """

    def __init__(
        self,
        recorder: Recorder,
        store: SessionStore,
        bridge: Bridge,
        *,
        cancel_grace: float = CANCEL_GRACE,
        idle_timeout: float = 0,
        baselines: Baselines | None = None,
    ) -> None:
        self._baselines = baselines
        self._recorder = recorder
        self._store = store
        self._bridge = bridge
        self._cancel_grace = cancel_grace
        self._idle_timeout = idle_timeout
        self._context: SessionContext | None = None
        self._driven_sessions: dict[int, DrivenSession] = {}
        self._creating: set[str] = set()
        self._creations = Creations(store)
        # A lock lives only while a session of that id is created.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Sessions]:
        """Serve while the context lasts.

        At the start, turns that were running become ``interrupted``, and accepted ones are run in their
        order. At the end, all agents of the bridge are ended; waiting turns stay accepted.

        Raises:
            PersistError: the store can't be read.
        """
        async with anyio.create_task_group() as tasks:
            limiter = anyio.CapacityLimiter(STARTS)
            self._context = SessionContext(
                self._recorder,
                self._store,
                self._bridge,
                tasks,
                limiter,
                self._cancel_grace,
                baselines=self._baselines,
            )
            await self._recover(self._context)
            tasks.start_soon(self._stop_idle, tasks)
            try:
                yield self
            finally:
                self.halt()
                with anyio.CancelScope(shield=True):  # bounded: each agent's end walks a timed ladder
                    await anyio.lowlevel.checkpoint()  # let the shutdown be recorded first
                    await self._bridge.close()
                tasks.cancel_scope.cancel()

    def halt(self) -> None:
        """Start no more turns: the server is about to end its agents."""
        if self._context is not None and not self._context.halted:
            self._context.halted = True
            for driven in self._driven_sessions.values():
                self._context.tasks.start_soon(driven.announce_shutdown, "server_stopped")

    async def _stop_idle(self, tasks: TaskGroup) -> None:
        async for driven in overdue(self._idle_timeout, self._idle_times):
            tasks.start_soon(driven.stop_if_idle, self._idle_timeout)

    def _idle_times(self) -> list[tuple[DrivenSession, float | None]]:
        return [(driven, driven.idle_seconds) for driven in self._driven_sessions.values()]

    async def _recover(self, context: SessionContext) -> None:
        waiting: dict[int, SessionRow] = {}
        running: dict[int, SessionRow] = {}
        for row, turn in await self._store.open_turns():
            (running if turn.state == "running" else waiting)[row.key] = row
        for row in running.values():
            try:
                await self._recorder.open(row.session_id)
            except SandboxAgentError as error:
                logger.warning("session %s can't be opened: %s", row.session_id, error)
        for row in waiting.values():
            context.tasks.start_soon(self._driven(row).resume)

    def _driven(self, row: SessionRow) -> DrivenSession:
        context = self._running()
        if not row.managed:
            raise ConflictError(
                f"conflict: session '{row.session_id}' is driven by the client that created it over "
                "/v1/acp: send it there"
            )
        if row.session_id in self._creating:
            raise ConflictError(
                f"conflict: session '{row.session_id}' is being created: wait for that response"
            )
        driven = self._driven_sessions.get(row.key)
        if driven is None:
            driven = self._driven_sessions[row.key] = DrivenSession(context, row.session_id)
        return driven

    def _running(self) -> SessionContext:
        if self._context is None or self._context.halted:
            raise StreamError("stream error: the server is shutting down")
        return self._context

    async def create(
        self, session_id: str, request: CreateSessionRequest, *, idempotency_key: str | None = None
    ) -> CreateSessionResponse:
        """Create a session: start its agent and make its settings.

        A failure leaves nothing behind. Only if the agent can't be installed, the session has ended with the
        reason; another creation under its name replaces it.

        Args:
            session_id: its name; the same request again returns the session of that name.
            request: what to create.
            idempotency_key: the same key and request return the session that they created in the last day,
                under whatever name.

        Raises:
            InvalidRequestError: the id, the directory, the model or the variant is invalid.
            ModeNotSupportedError: the agent has no such mode, or there is no such permission mode.
            UnsupportedAgentError: there is no such agent.
            AgentNotInstalledError: the agent isn't installed.
            InstallFailedError: the agent can't be installed.
            SessionAlreadyExistsError: a session of that name exists, and another request has created it or
                it was terminated.
            ConflictError: the key was used for another request.
            AgentProcessExitedError: the agent ended at its start.
            RequestTimeoutError: the agent did not respond in time.
            StreamError: the agent refuses, or can't be started.
            PersistError: the store failed.
        """
        directory = check_create(session_id, request)
        user = self._bridge.environment.user
        if user is not None:
            await check_access(user, [directory, *(request.additional_directories or ())])
        self._bridge.is_missing(request.agent)  # or raises
        self._recorder.require_store()
        if idempotency_key is None:
            return await self._create(session_id, request, directory)
        creations = self._creations
        async with creations.lock(idempotency_key):
            known = await creations.find(idempotency_key)
            if known is None:
                with creations.running(idempotency_key):
                    response = await self._create(session_id, request, directory, idempotency_key)
                await creations.add(idempotency_key, response.session_id or session_id)
                return response
        if stored_request(known) != request:
            raise ConflictError(
                f"conflict: the idempotency key '{idempotency_key}' was used for another session: choose a "
                "new key, or send that request again"
            )
        return _existing(known, request)

    async def _create(
        self, session_id: str, request: CreateSessionRequest, directory: str, key: str | None = None
    ) -> CreateSessionResponse:
        async with self._locks.setdefault(session_id, asyncio.Lock()):
            row = await self._store.session(session_id)
            if row is not None and row.managed and row.native_session_id is None:
                # Its creation failed, or its server was killed meanwhile.
                await self.delete(session_id)
            elif row is not None:
                return _existing(row, request)
            context = self._running()
            self._creating.add(session_id)
            try:
                driven, session = await _create_session(
                    context, _row(session_id, request, directory, key), request, key
                )
                self._driven_sessions[session.row.key] = driven
                return _response(session.row)
            finally:
                self._creating.discard(session_id)

    async def message(
        self, session_id: str, prompt: list[dict[str, Any]], *, idempotency_key: str | None = None
    ) -> TurnRow:
        """Accept a message: its turn is stored on return, and runs when those before it have ended.

        Args:
            session_id: the session.
            prompt: ACP content blocks.
            idempotency_key: the same key and prompt return the turn that they created before.

        Raises:
            InvalidRequestError: the prompt is invalid.
            ServerSessionNotFoundError: there is no such session.
            ConflictError: too many messages wait, the key was used for another message, the session was
                terminated, or the server does not drive it.
            PersistError: the store failed; the message was not accepted.
        """
        check_prompt(prompt)
        session = await self._recorder.open(session_id)
        return await self._driven(session.row).message(prompt, idempotency_key)

    async def cancel(self, session_id: str) -> None:
        """Stop the running turn, if there is one; waiting messages stay.

        An agent that ignores it continues: ``terminate`` ends it.

        Raises:
            ServerSessionNotFoundError: there is no such session.
            ConflictError: the server does not drive it.
            PersistError: the store failed.
        """
        session = await self._recorder.open(session_id)
        await self._driven(session.row).cancel()

    async def terminate(self, session_id: str) -> None:
        """End the session, unless it has ended, and its agent; its history stays.

        Raises:
            ServerSessionNotFoundError: there is no such session.
            ConflictError: the server does not drive it.
            PersistError: the store failed; call it again.
        """
        session = await self._recorder.open(session_id)
        await self._driven(session.row).terminate()
        self._driven_sessions.pop(session.row.key, None)

    async def withdraw(self, session_id: str, idempotency_key: str) -> None:
        """Cancel the creation with that key, or delete the session that it has created.

        Another session of that id stays.

        Raises:
            PersistError: as ``delete``.
        """
        self._creations.withdraw(idempotency_key)
        async with self._creations.lock(idempotency_key):
            row = await self._store.session(session_id)
            if row is not None and creation_key(row) == idempotency_key:
                await self.delete(session_id)

    async def delete(self, session_id: str) -> None:
        """Erase the session with its history, after ending its agent if the server drives it.

        The connection of a session that the server does not drive stays.

        Raises:
            ServerSessionNotFoundError: there is no such session.
            PersistError: the store failed; the session is still there.
        """
        session = await self._recorder.open(session_id)
        if session.row.managed:
            driven = self._driven(session.row)
            with anyio.move_on_after(DELETE_SECONDS):
                try:
                    await driven.terminate()
                except SandboxAgentError as error:
                    logger.info("session %s is deleted before its end is stored: %s", session_id, error)
        await self._recorder.delete(session)
        self._driven_sessions.pop(session.row.key, None)

    async def answer(self, session_id: str, permission_id: str, result: dict[str, Any], by: str) -> bool:
        """Answer a request of an agent, on the connection that it came from.

        Args:
            session_id: the session, driven by the server or not.
            permission_id: the id of a permission or a question.
            result: the JSON-RPC result.
            by: the name of the client that answers, for the log.

        Returns:
            Whether it was the first answer; if not, the other one stands.

        Raises:
            NotFoundError: the session has no such request.
            ServerSessionNotFoundError: there is no such session.
            ConflictError: the agent has ended.
            ProblemError: the agent does not read its input.
            PersistError: the store failed.
        """
        self._recorder.require_store()
        session = await self._recorder.open(session_id)
        row = await self._store.permission(session.row.key, permission_id)
        if row is None:
            raise NotFoundError(f"not found: session '{session_id}' has no request '{permission_id}'")
        if row.answered is not None:
            return False
        live = self._bridge.live()
        connection = next((each for each in live if each.feed.epoch == row.connection_id), None)
        if connection is not None:
            first = await answer(connection, by, row.request_id, result)
            await self._recorder.flush()
            return first
        await self._recorder.flush()
        row = await self._store.permission(session.row.key, permission_id)
        if row is not None and row.answered is not None:
            return False
        raise ConflictError(
            f"conflict: the agent that asked for '{permission_id}' has ended: no answer is awaited"
        )


def _existing(row: SessionRow, request: CreateSessionRequest) -> CreateSessionResponse:
    """Return the response to a request that is sent again.

    Raises:
        SessionAlreadyExistsError: another request has created the session, or it was terminated.
    """
    if stored_request(row) != request:
        raise session_exists(row.session_id, " and was created with another request")
    if row.ended:
        raise session_exists(row.session_id, " and was terminated")
    return _response(row)


def _response(row: SessionRow) -> CreateSessionResponse:
    return CreateSessionResponse(
        healthy=True, native_session_id=row.native_session_id, session_id=row.session_id
    )


async def _create_session(
    context: SessionContext, row: SessionRow, request: CreateSessionRequest, key: str | None
) -> tuple[DrivenSession, RecordedSession]:
    """Start the agent, create its session, store it and make the requested settings.

    Raises:
        InstallFailedError: the agent can't be installed; the session has ended with the reason.
        ProblemError: the agent can't be started, refuses, or lacks a setting; then the agent is ended and
            there is no session.
        PersistError: the store failed; the same.
    """
    session: RecordedSession | None = None
    client: AgentClient | None = None
    try:
        if context.bridge.is_missing(request.agent):
            session = await context.recorder.create(row)
            await install_in_session(context, session)
        client = await AgentClient.start(context, request.agent, request.env)
        session = session or await context.recorder.create(row)
        await _set_up(context, client, session, request, key)
    except BaseException as error:
        if session is not None and not session.row.ended:
            with anyio.CancelScope(shield=True), anyio.move_on_after(ERASE_SECONDS):
                await _erase(context, session)
        if client is not None:
            with anyio.CancelScope(shield=True):  # bounded: a timed ladder
                await client.stop()
        if isinstance(error, AcpRpcError):
            raise refused(request.agent, "session/new", error) from error
        raise
    return DrivenSession(context, row.session_id, client), session


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _row(session_id: str, request: CreateSessionRequest, directory: str, key: str | None) -> SessionRow:
    now = _now_ms()
    return SessionRow(
        key=0,  # set by the recorder
        session_id=session_id,
        agent=request.agent,
        created_at=now,
        updated_at=now,
        managed=True,
        directory=directory,
        title=request.title,
        permission_mode=request.permission_mode or "ask",
        settings=stored_settings(request, key),
    )


async def _set_up(
    context: SessionContext,
    client: AgentClient,
    session: RecordedSession,
    request: CreateSessionRequest,
    key: str | None,
) -> None:
    client.bind(session)
    directory = session.row.directory or ""
    recording = None if context.baselines is None else context.baselines.begin(directory)
    try:
        result = await client.new_session(session_params(request, directory))
        if recording is not None:
            await recording.made.wait()
            recording.name(managed_name(session.row.session_id))
            await recording.kept.wait()
    finally:
        if recording is not None:
            recording.name("")
    chosen = chosen_settings(session.row)
    settings = await set_chosen(client, session, context, result, chosen)
    await context.recorder.update(
        session,
        native_session_id=client.native_id,
        agent_mode=settings.current(MODE) or "",
        # An agent that lists no models may have taken the chosen one.
        model=settings.current(MODEL) or chosen.model,
        variant=settings.current(VARIANT),
        settings=stored_settings(
            request,
            key,
            mode=settings.mode_for(client.agent, chosen.permission_mode, agent_modes(client.agent)),
            config_ids=settings.config_ids,
        ),
    )


async def _erase(context: SessionContext, session: RecordedSession) -> None:
    try:
        await context.recorder.delete(session)
    except SandboxAgentError as error:
        logger.error(
            "session %s could not be erased after its creation failed: %s", session.row.session_id, error
        )
