"""SandboxAgent: the client of one server, of its sandbox if there is one, and of its sessions."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self, Unpack, cast, overload

import httpx2

from sandbox_agent.client.contexts import AwaitableContext
from sandbox_agent.client.health import HealthCheck
from sandbox_agent.client.http import DEFAULT_BASE_URL, Http
from sandbox_agent.client.namespaces import Namespaces
from sandbox_agent.client.options import (
    CLIENT_DEFAULTS,
    RESUME_DEFAULTS,
    ClientOptions,
    ResumeOptions,
    ServerSessionOptions,
    SessionOptions,
    arguments_digest,
    check_client_options,
    check_env,
    open_persist,
)
from sandbox_agent.client.permissions import permission_mode
from sandbox_agent.client.restore import Limits
from sandbox_agent.client.server_api import build_inspector_url
from sandbox_agent.client.server_sessions.cursor import EventPage
from sandbox_agent.client.session import Session, session_handle
from sandbox_agent.client.session_core import Policies
from sandbox_agent.client.session_registry import SessionRegistry
from sandbox_agent.client.settings import created_with, init_with_arguments, required
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.engine.permissions import AgentModes, check_agreement
from sandbox_agent.engine.settings import ChosenSettings
from sandbox_agent.errors import SandboxAgentError, SessionAlreadyExistsError, SessionNotFoundError
from sandbox_agent.keywords import check_keywords, keywords
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.providers.base import SandboxProvider, join_sandbox_id, split_sandbox_id
from sandbox_agent.wire.api import AgentId
from sandbox_agent.wire.records import ListPage, SessionEvent
from sandbox_agent.wire.sessions import CreateSessionResponse


class SandboxAgent(Namespaces):
    """The SDK's entry point; made by ``connect`` or ``start``, closed by ``dispose`` or ``async with``.

    Attributes:
        persist: the driver that stores sessions and events.
    """

    @keywords(ClientOptions, None, **CLIENT_DEFAULTS)
    def __init__(self, *, base_url: str | None = None, **options: Unpack[ClientOptions]) -> None:
        """Prepare a client; call ``connect`` or ``start`` instead, which also begin to work."""
        check_client_options(options, "SandboxAgent")
        given = cast("dict[str, Any]", {**CLIENT_DEFAULTS, **options})
        url, transport = (base_url or "").strip(), options.get("transport")
        if not url and transport is None:
            raise ValueError("base_url is required unless a transport is given")
        persist = options.get("persist")
        self.persist: SessionPersistDriver = open_persist(persist)
        self._owns_persist = persist is None or isinstance(persist, str | os.PathLike)
        self._provider: SandboxProvider | None = None
        self._raw_sandbox_id: str | None = None
        self._disposing = False
        self._disposed = asyncio.Event()
        self._http = Http(
            base_url=url or DEFAULT_BASE_URL,
            token=options.get("token"),
            headers=options.get("headers"),
            transport=transport,
        )
        self._tasks = TaskOwner()
        self._health = HealthCheck(
            self._http,
            self._tasks,
            enabled=not given["skip_health_check"],
            timeout=given["health_timeout"],
        )
        limits = Limits(max(given["replay_max_events"], 1), max(given["replay_max_chars"], 1))
        self._registry = SessionRegistry(self._http, self._tasks, self._health, self.persist, limits)
        self._registry.cancel_grace = given["cancel_grace"]

    def __repr__(self) -> str:
        """Return the server's address, and the sandbox if there is one."""
        sandbox = f" sandbox={self.sandbox_id!r}" if self.sandbox_id is not None else ""
        return f"<SandboxAgent {self.base_url!r}{sandbox}>"

    @classmethod
    @keywords(ClientOptions, None, **CLIENT_DEFAULTS)
    def connect(cls, base_url: str | None = None, **options: Unpack[ClientOptions]) -> AwaitableContext[Self]:
        """Use a server that is running; await the result or enter it with ``async with``.

        Returns at once: the first request waits until the server is healthy.

        Args:
            base_url: the server's URL; required unless ``transport`` is given.
            **options: see ``ClientOptions``.

        Raises:
            ValueError: the URL is missing or invalid, or the token cannot be sent in a header.
        """
        check_client_options(options, "connect")

        async def open_client() -> Self:
            self = cls(base_url=base_url, **options)
            await self._begin()
            return self

        return AwaitableContext(open_client)

    @classmethod
    @keywords(ClientOptions, None, **CLIENT_DEFAULTS)
    def start(
        cls, *, sandbox: SandboxProvider, sandbox_id: str | None = None, **options: Unpack[ClientOptions]
    ) -> AwaitableContext[Self]:
        """Create a sandbox, or reconnect to one, and use its server; await the result or enter it.

        Leaving ``async with`` disposes the client and keeps the sandbox: ``destroy_sandbox`` removes it.

        Args:
            sandbox: the provider.
            sandbox_id: an earlier ``sdk.sandbox_id``; None creates a sandbox.
            **options: see ``ClientOptions``.

        Raises:
            SandboxDestroyedError: the sandbox of that id no longer exists.
            HealthTimeoutError: the server was not healthy in time; a new sandbox is destroyed.
        """
        check_client_options(options, "start")

        async def open_client() -> Self:
            raw_id = await _provision(sandbox, sandbox_id)
            try:
                url, token, transport = await _ask_address(sandbox, raw_id, options)
                self = cls(base_url=url, **{**options, "token": token, "transport": transport})
                self._attach(sandbox, raw_id, options)
                await self._begin()
                try:
                    await self._health.wait_ready()
                except BaseException:
                    await self.dispose()
                    raise
            except BaseException:
                if sandbox_id is None:
                    await sandbox.destroy(raw_id)
                raise
            return self

        return AwaitableContext(open_client)

    async def _begin(self) -> None:
        await self._tasks.start()
        self._health.start()

    def _attach(self, provider: SandboxProvider, raw_id: str, options: ClientOptions) -> None:
        async def ensure_server() -> None:
            await provider.ensure_server(raw_id)
            # A sandbox that was restarted may have another port or token, and a signed URL expires.
            url, token, transport = await _ask_address(provider, raw_id, options)
            await self._http.set_address(url or DEFAULT_BASE_URL, token=token, transport=transport)

        self._health.ensure_server = ensure_server
        self._provider = provider
        self._raw_sandbox_id = raw_id
        self._registry.sandbox_id = join_sandbox_id(provider, raw_id)
        self._registry.default_cwd = provider.default_cwd

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Dispose the client."""
        await self.dispose()

    # the sandbox

    @property
    def sandbox_id(self) -> str | None:
        """``<provider>/<id>``, or None for a client that was connected, not started."""
        return self._registry.sandbox_id

    @property
    def sandbox(self) -> SandboxProvider | None:
        """The provider."""
        return self._provider

    @property
    def base_url(self) -> str:
        """The server's URL. It changes if the provider restarts the sandbox elsewhere."""
        return self._http.base_url

    @property
    def inspector_url(self) -> str:
        """The URL of the server's web inspector, without the token."""
        return build_inspector_url(self.base_url)

    async def dispose(self) -> None:
        """Close the connections and store all events; the sandbox is kept. Safe to call twice.

        Async listeners have 5 s to receive the remaining events.

        Raises:
            PersistError: some events could not be stored.
            SandboxAgentError: the client belongs to another event loop, which is still running.
        """
        if self._tasks.loop is not None and self._tasks.loop.is_closed():
            return  # everything that the client had ended with its loop
        if self._tasks.is_forked:
            return  # the connections and the store belong to the parent process
        if self._disposing:
            # A listener must not wait here: dispose waits for the listeners.
            if not self._tasks.is_inside:
                await self._disposed.wait()
            return
        if self._tasks.running:
            self._tasks.check()
        self._disposing = True
        try:
            await self._registry.close()
            if self._server_sessions is not None:
                await self._server_sessions.close()
        finally:
            try:
                await self._tasks.stop()
            finally:
                await self._http.aclose()
                if self._owns_persist:
                    await self.persist.close()
                self._disposed.set()

    async def destroy_sandbox(self) -> None:
        """Dispose the client and destroy the sandbox."""
        await self._leave(lambda provider, raw_id: provider.destroy(raw_id))

    async def pause_sandbox(self) -> None:
        """Dispose the client and pause the sandbox, or destroy it if the provider cannot pause."""
        await self._leave(lambda provider, raw_id: provider.pause(raw_id))

    async def kill_sandbox(self) -> None:
        """Dispose the client and destroy the sandbox without a graceful shutdown."""
        await self._leave(lambda provider, raw_id: provider.kill(raw_id))

    async def _leave(self, action: Callable[[SandboxProvider, str], Awaitable[None]]) -> None:
        self._tasks.check_process()
        provider, raw_id = self._provider, self._raw_sandbox_id
        if provider is None or raw_id is None:
            raise SandboxAgentError("this SandboxAgent has no sandbox: it was connected, not started")
        try:
            await self.dispose()
        finally:
            await action(provider, raw_id)
            self._provider = self._raw_sandbox_id = self._registry.sandbox_id = None

    # sessions

    @overload
    async def create_session(
        self,
        /,
        *,
        agent: AgentId,
        id: str | None = None,
        **options: Unpack[SessionOptions],
    ) -> Session: ...

    @overload
    async def create_session(
        self, session_id: str, /, *, agent: AgentId, **options: Unpack[ServerSessionOptions]
    ) -> CreateSessionResponse: ...

    @keywords(SessionOptions, None)
    async def create_session(
        self,
        session_id: str | None = None,
        /,
        *,
        agent: AgentId,
        id: str | None = None,  # noqa: A002 - the contract's name
        **options: Any,
    ) -> Session | CreateSessionResponse:
        """Create a session; the same id and arguments again resume the session that exists.

        With the id as its first argument, this is ``sessions.create``: the server drives the session.

        Args:
            session_id: the id of a session of the server; options are then those of ServerSessionOptions.
            agent: the agent's id ("claude", "codex", …).
            id: the local id; None generates one.
            **options: see ``SessionOptions``.

        Raises:
            SessionAlreadyExistsError: the store has a session of that id, which was created with other
                arguments or destroyed.
            UnsupportedAgentError: the server does not know the agent.
            AgentNotInstalledError: the agent is not installed.
            AgentProcessExitedError: the agent exited at its start.
            HealthTimeoutError: the server was not healthy in time.
            TokenInvalidError: the server refuses the token.
            ValueError: the agent is empty, the permission mode or policy or an MCP server is invalid, or the
                mode contradicts the permission mode.
            UnsupportedSessionCategoryError: the agent lacks a setting; the session is destroyed.
            UnsupportedSessionValueError: the agent does not accept a value; the session is destroyed.
            SettingNotConfirmedError: the agent does not keep a value; the session is destroyed.
        """
        if session_id is not None:
            if id is not None:
                raise TypeError(
                    "create_session() got two ids: use id= alone for a session that this program drives"
                )
            return await self.sessions.create(session_id, agent=agent, **options)
        check_keywords(options, SessionOptions, "create_session")
        return await self._create_session(agent, id, cast("SessionOptions", options))

    async def _create_session(self, agent: str, id: str | None, options: SessionOptions) -> Session:  # noqa: A002
        name = _agent_name(agent)
        init, env = self._registry.session_init(options), check_env(options.get("env"))
        local_id = (id or "").strip() or None
        policies = Policies(options.get("permission_policy"), options.get("question_policy"))
        if permission_mode(options.get("permission_mode")) is not None:
            await self._registry.modes.load(name)
        chosen = _chosen(name, options, self._registry.modes.get(name))
        arguments = arguments_digest(name, options)
        if local_id is not None:
            init = init_with_arguments(init, arguments)
        try:
            return session_handle(await self._registry.create(name, local_id, init, policies, chosen, env))
        except SessionAlreadyExistsError:
            core = await self._registry.load(local_id or "")
            if core is None or core.record.destroyed_at or created_with(core.record) != arguments:
                raise
            return await self.resume_session(
                core.id,
                permission_policy=policies.permissions,
                question_policy=policies.questions,
                env=env,
            )

    @keywords(ResumeOptions, None, **RESUME_DEFAULTS)
    async def resume_session(
        self,
        id: str,  # noqa: A002 - the contract's name
        **options: Unpack[ResumeOptions],
    ) -> Session:
        """Resume a stored session, whatever has happened to the process that drove it.

        If the agent still runs, this client takes the lost one's place: what the agent did meanwhile is
        stored, its open permission requests are delivered, and ``session.turn`` is the turn that runs. If the
        agent is gone, the session is restored. A process that only lost its connection keeps its place for
        10 s; this call waits for that, unless the process ran on this machine and has ended.

        Args:
            id: the session's id.
            **options: see ``ResumeOptions``.

        Raises:
            SessionNotFoundError: the store has no session of that id.
            SessionBusyError: another process drives the session.
            SessionFencedError: another client claimed the session meanwhile.
            UnsupportedAgentError: the server does not know the agent (any more); other errors as in
                ``create_session``. The session keeps its previous agent.
        """
        check_keywords(options, ResumeOptions, "resume_session")
        if options.get("read_only"):
            return Session(await self._registry.require(id), read_only=True)
        agent = options.get("agent")
        name = None if agent is None else _agent_name(agent)
        core = await self._registry.claim(id)
        if env := options.get("env"):
            core.set_variables(check_env(env))
        core.set_policies(Policies(options.get("permission_policy"), options.get("question_policy")))
        await self._registry.bound_connection(core, name, take_over=options.get("take_over", False))
        if core.record.destroyed_at is not None:
            core.journal.change(destroyed_at=None)
            await core.journal.flush()
        return session_handle(core)

    @keywords(SessionOptions, None)
    async def resume_or_create_session(
        self,
        *,
        id: str,  # noqa: A002 - the contract's name
        agent: AgentId,
        take_over: bool = False,
        **options: Unpack[SessionOptions],
    ) -> Session:
        """Resume the session of that id, or create it; arguments as in ``create_session``.

        An existing session keeps its agent, whatever ``agent`` says: ``resume_session`` hands it over.
        """
        check_keywords(options, SessionOptions, "resume_or_create_session")
        if await self._registry.load(id) is None:
            with contextlib.suppress(SessionAlreadyExistsError):  # another task created it meanwhile
                return await self._create_session(agent, id, options)
        session = await self.resume_session(
            id,
            permission_policy=options.get("permission_policy"),
            question_policy=options.get("question_policy"),
            env=options.get("env"),
            take_over=take_over,
        )
        if permissions := options.get("permission_mode"):
            await session.set_permission_mode(permissions)
        if mode := options.get("mode"):
            await session.set_mode(mode)
        if model := options.get("model"):
            await session.set_model(model)
        if thought_level := options.get("thought_level"):
            await session.set_thought_level(thought_level)
        return session

    async def get_session(self, id: str) -> Session | None:  # noqa: A002 - the contract's name
        """Return a stored session, or None; sends nothing to the server."""
        core = await self._registry.load(id)
        return None if core is None else session_handle(core)

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[Session]:
        """Return a page of the stored sessions, oldest first."""
        self._tasks.check_caller()
        read_at = time.monotonic()
        page = await self.persist.list_sessions(limit=limit, cursor=cursor)
        sessions = [session_handle(self._registry.session(record, read_at)) for record in page.items]
        return ListPage(sessions, page.next_cursor)

    @overload
    async def get_events(
        self, /, *, session_id: str, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]: ...

    @overload
    async def get_events(
        self, id: str, /, *, offset: int | None = 0, limit: int | None = None, include_raw: bool = False
    ) -> EventPage: ...

    async def get_events(
        self,
        id: str | None = None,  # noqa: A002 - the contract's name
        /,
        *,
        session_id: str | None = None,
        limit: int | None = None,
        cursor: str | None = None,
        offset: int | None = 0,
        include_raw: bool = False,
    ) -> ListPage[SessionEvent] | EventPage:
        """Return a page of a session's stored events, oldest first.

        With the id as its first argument, this is ``sessions.get_events``: the events of a session of the
        server, with a sequence above ``offset``.

        Raises:
            SessionNotFoundError: the store has no session of that id.
            TypeError: there is no id, or both.
        """
        if id is not None and session_id is None and cursor is None:
            return await self.sessions.get_events(id, offset=offset, limit=limit, include_raw=include_raw)
        if session_id is None or id is not None or offset or include_raw:
            raise TypeError(
                "get_events() takes session_id=, limit= and cursor= for a session of the store, or the id as "
                "its first argument, offset=, limit= and include_raw= for a session of the server"
            )
        self._tasks.check_caller()
        page = await self.persist.list_events(session_id, limit=limit, cursor=cursor)
        if not page.items and await self.persist.get_session(session_id) is None:
            raise SessionNotFoundError(session_id)
        return page

    async def destroy_session(self, id: str) -> Session:  # noqa: A002 - the contract's name
        """Cancel the session's turn and mark it as destroyed; its history stays and it can be resumed.

        Raises:
            SessionNotFoundError: the store has no session of that id.
        """
        core = await self._registry.require(id)
        await self._registry.destroy(core)
        return session_handle(core)

    async def delete_session(self, id: str) -> None:  # noqa: A002 - the contract's name
        """Cancel the session's turn and erase the session with its history.

        Raises:
            NotImplementedError: the driver cannot delete.
        """
        await self._registry.delete(id)

    def on_request(self, method: str, handler: Callable[[Any], Awaitable[object] | object]) -> None:
        """Register a handler for an agent request method: its result of the params is the response.

        Requests without a handler are answered with "method not found", but for permission requests and
        questions, which go to their session. A handler of ``elicitation/create`` lets all agents that are
        started later ask questions, and answers them instead of the sessions.
        """
        self._registry.handlers[method] = handler


async def _provision(provider: SandboxProvider, sandbox_id: str | None) -> str:
    if sandbox_id is None:
        return await provider.create()
    raw_id = split_sandbox_id(sandbox_id, provider)
    await provider.reconnect(raw_id)
    await provider.ensure_server(raw_id)
    return raw_id


async def _ask_address(
    provider: SandboxProvider, raw_id: str, options: ClientOptions
) -> tuple[str | None, str | None, httpx2.AsyncBaseTransport | None]:
    """Return the URL, token and transport of a sandbox; the caller's token and transport take precedence."""
    token = options.get("token") or await provider.get_token(raw_id)
    transport = options.get("transport") or await provider.get_transport(raw_id)
    return await provider.get_url(raw_id), token, transport


def _chosen(agent: str, options: SessionOptions, modes: AgentModes | None) -> ChosenSettings:
    mode, model, level = options.get("mode"), options.get("model"), options.get("thought_level")
    permissions = permission_mode(options.get("permission_mode"))
    check_agreement(agent, mode, permissions, modes)
    return ChosenSettings(
        mode=required(mode, "mode") if mode else None,
        model=required(model, "model") if model else None,
        thought_level=required(level, "thought_level") if level else None,
        permission_mode=permissions,
    )


def _agent_name(agent: str) -> str:
    name = agent.strip()
    if not name:
        raise ValueError("agent is empty: use an agent's id such as 'claude'")
    return name


# The name of the TypeScript SDK's type.
SandboxAgentClient = SandboxAgent
