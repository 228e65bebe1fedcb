"""SandboxAgent: one server, its sandbox where there is one, and all sessions on it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Any, Self

import httpx2

from sandbox_agent.client.handshake import Opening
from sandbox_agent.client.health import HealthGate
from sandbox_agent.client.http import DEFAULT_BASE_URL, Http
from sandbox_agent.client.permissions import PermissionPolicy
from sandbox_agent.client.server_api import ServerApi, build_inspector_url
from sandbox_agent.client.server_sessions.api import ServerSessions
from sandbox_agent.client.session import Session
from sandbox_agent.client.session_registry import SessionBook
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.errors import SandboxAgentError, SessionAlreadyExistsError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.providers.base import SandboxProvider, join_sandbox_id, split_sandbox_id
from sandbox_agent.wire.records import ListPage, SessionEvent

__all__ = ["SandboxAgent"]

DEFAULT_REPLAY_MAX_EVENTS = 50
DEFAULT_REPLAY_MAX_CHARS = 12_000


class SandboxAgent(ServerApi):
    """The SDK's entry; made by ``connect`` or ``start``, ended by ``dispose`` or ``async with``.

    Attributes:
        base_url: the server's address.
        persist: the driver that keeps sessions and events.
    """

    def __init__(
        self,
        *,
        base_url: str | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        persist: SessionPersistDriver | None = None,
        replay_max_events: int = DEFAULT_REPLAY_MAX_EVENTS,
        replay_max_chars: int = DEFAULT_REPLAY_MAX_CHARS,
        skip_health_check: bool = False,
        health_timeout: float | None = None,
    ) -> None:
        """Prepare; use ``connect`` or ``start``, which also begin to work."""
        address = (base_url or "").strip()
        if not address and transport is None:
            raise ValueError("base_url is required unless a transport is given")
        if persist is None:
            from sandbox_agent.persist.memory import InMemorySessionPersistDriver

            persist = InMemorySessionPersistDriver()
        self.base_url: str = (address or DEFAULT_BASE_URL).rstrip("/")
        self.persist = persist
        self._provider: SandboxProvider | None = None
        self._raw_sandbox_id: str | None = None
        self._disposing = False
        self._disposed = asyncio.Event()
        self._server_sessions: ServerSessions | None = None
        self._http = Http(base_url=self.base_url, token=token, headers=headers, transport=transport)
        self._tasks = TaskOwner()
        self._gate = HealthGate(
            self._http,
            self._tasks,
            enabled=not skip_health_check,
            timeout=health_timeout,
            ensure_server=self._ensure_server,
        )
        self._book = SessionBook(
            self._http,
            self._tasks,
            self._gate,
            persist,
            replay_max_events=max(replay_max_events, 1),
            replay_max_chars=max(replay_max_chars, 1),
        )

    @classmethod
    def connect(
        cls,
        *,
        base_url: str | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        persist: SessionPersistDriver | None = None,
        replay_max_events: int = DEFAULT_REPLAY_MAX_EVENTS,
        replay_max_chars: int = DEFAULT_REPLAY_MAX_CHARS,
        skip_health_check: bool = False,
        health_timeout: float | None = None,
    ) -> Opening[Self]:
        """Use a server that runs somewhere; await it or enter it with ``async with``.

        It returns at once: the first request waits until the server is healthy.

        Args:
            base_url: the server's address; required unless ``transport`` is given.
            token: the server's bearer token.
            headers: sent with every request.
            transport: an httpx2 transport that takes the requests; closed with the client.
            persist: where sessions are kept (default: in memory); it is not closed with the client.
            replay_max_events: how much history a restored session is given, in events.
            replay_max_chars: the same in characters.
            skip_health_check: don't wait for the server.
            health_timeout: how long to wait for it, in seconds; None for ever.

        Raises:
            ValueError: the address is missing or is none, or no header can carry the token.
        """

        async def make() -> Self:
            self = cls(
                base_url=base_url,
                token=token,
                headers=headers,
                transport=transport,
                persist=persist,
                replay_max_events=replay_max_events,
                replay_max_chars=replay_max_chars,
                skip_health_check=skip_health_check,
                health_timeout=health_timeout,
            )
            await self._begin()
            return self

        return Opening(make)

    @classmethod
    def start(
        cls,
        *,
        sandbox: SandboxProvider,
        sandbox_id: str | None = None,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx2.AsyncBaseTransport | None = None,
        persist: SessionPersistDriver | None = None,
        replay_max_events: int = DEFAULT_REPLAY_MAX_EVENTS,
        replay_max_chars: int = DEFAULT_REPLAY_MAX_CHARS,
        skip_health_check: bool = False,
        health_timeout: float | None = None,
    ) -> Opening[Self]:
        """Make a sandbox, or go on with one, and use the server in it; await it or enter it.

        Leaving ``async with`` disposes the client and leaves the sandbox: ``destroy_sandbox`` ends it.

        Args:
            sandbox: the provider.
            sandbox_id: an earlier ``sdk.sandbox_id``; None makes a new sandbox.
            token: the server's token; None asks the provider.
            headers: as in ``connect``, like all that follow.
            transport: instead of the provider's.
            persist: where sessions are kept.
            replay_max_events: how much history a restored session is given, in events.
            replay_max_chars: the same in characters.
            skip_health_check: don't wait for the server.
            health_timeout: how long to wait for it.

        Raises:
            SandboxDestroyedError: the sandbox of that id is gone.
            HealthTimeoutError: it was not healthy in time; a new sandbox is destroyed again.
        """

        async def make() -> Self:
            raw_id = await _provision(sandbox, sandbox_id)
            try:
                self = cls(
                    base_url=await sandbox.get_url(raw_id),
                    token=token or await sandbox.get_token(raw_id),
                    headers=headers,
                    transport=transport or await sandbox.get_transport(raw_id),
                    persist=persist,
                    replay_max_events=replay_max_events,
                    replay_max_chars=replay_max_chars,
                    skip_health_check=skip_health_check,
                    health_timeout=health_timeout,
                )
                self._attach(sandbox, raw_id)
                await self._begin()
                try:
                    await self._gate.ready()
                except BaseException:
                    await self.dispose()
                    raise
            except BaseException:
                if sandbox_id is None:
                    await sandbox.destroy(raw_id)
                raise
            return self

        return Opening(make)

    async def _begin(self) -> None:
        await self._tasks.start()
        self._gate.check()

    def _attach(self, provider: SandboxProvider, raw_id: str) -> None:
        self._provider = provider
        self._raw_sandbox_id = raw_id
        self._book.sandbox_id = join_sandbox_id(provider, raw_id)
        self._book.default_cwd = provider.default_cwd

    async def _ensure_server(self) -> None:
        if self._provider is not None and self._raw_sandbox_id is not None:
            await self._provider.ensure_server(self._raw_sandbox_id)

    async def __aenter__(self) -> Self:
        """Return the client."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Dispose it."""
        await self.dispose()

    # the sandbox

    @property
    def sandbox_id(self) -> str | None:
        """``<provider>/<id>``, or None for a server that was not started from here."""
        return self._book.sandbox_id

    @property
    def sandbox(self) -> SandboxProvider | None:
        """The provider."""
        return self._provider

    @property
    def inspector_url(self) -> str:
        """The address of the server's web inspector, without the token."""
        return build_inspector_url(self.base_url)

    async def dispose(self) -> None:
        """End the connections and store what is left; the sandbox stays. Safe to call twice.

        Coroutine listeners get 5 s for the events that they have not seen.

        Raises:
            PersistError: something could not be stored.
            SandboxAgentError: it was made in another event loop, which still lives.
        """
        if self._tasks.loop is not None and self._tasks.loop.is_closed():
            return  # and all that it had with it
        if self._disposing:
            # A listener that waited here would be waited for.
            if not self._tasks.is_inside:
                await self._disposed.wait()
            return
        if self._tasks.running:
            self._tasks.check()
        self._disposing = True
        try:
            await self._book.close()
        finally:
            try:
                await self._tasks.stop()
            finally:
                await self._http.aclose()
                self._disposed.set()

    async def destroy_sandbox(self) -> None:
        """Dispose the client and end the sandbox."""
        await self._leave(lambda provider, raw_id: provider.destroy(raw_id))

    async def pause_sandbox(self) -> None:
        """Dispose the client and put the sandbox to sleep, or end it where that is impossible."""
        await self._leave(lambda provider, raw_id: provider.pause(raw_id))

    async def kill_sandbox(self) -> None:
        """Dispose the client and end the sandbox without grace."""
        await self._leave(lambda provider, raw_id: provider.kill(raw_id))

    async def _leave(self, action: Callable[[SandboxProvider, str], Awaitable[None]]) -> None:
        provider, raw_id = self._provider, self._raw_sandbox_id
        if provider is None or raw_id is None:
            raise SandboxAgentError("this SandboxAgent has no sandbox: it was connected, not started")
        try:
            await self.dispose()
        finally:
            await action(provider, raw_id)
            self._provider = self._raw_sandbox_id = self._book.sandbox_id = None

    # sessions

    @property
    def sessions(self) -> ServerSessions:
        """The sessions that the server itself keeps and drives."""
        if self._server_sessions is None:
            self._server_sessions = ServerSessions(self._http, self._gate)
        return self._server_sessions

    async def create_session(
        self,
        *,
        agent: str,
        id: str | None = None,  # noqa: A002 - the contract's name
        cwd: str | None = None,
        model: str | None = None,
        mode: str | None = None,
        thought_level: str | None = None,
        mcp_servers: list[Any] | None = None,
        session_init: Mapping[str, Any] | None = None,
        permission_policy: PermissionPolicy | None = None,
    ) -> Session:
        """Make a session.

        Args:
            agent: which agent ("claude", "codex", …).
            id: the local id; None makes one.
            cwd: where the agent works; default: the provider's, else the current folder.
            model: as ``Session.set_model``.
            mode: as ``Session.set_mode``.
            thought_level: as ``Session.set_thought_level``.
            mcp_servers: as ACP has them.
            session_init: the params of session/new; they win over ``cwd`` and ``mcp_servers``.
            permission_policy: how permission requests are answered when there is no listener: "ask",
                "allow_once", "allow_always", "reject", or a function of the request.

        Raises:
            SessionAlreadyExistsError: the store has a session of that id.
            UnsupportedAgentError: the server knows no such agent.
            AgentNotInstalledError: the agent is not there yet.
            AgentProcessExitedError: it ended at its start.
            HealthTimeoutError: the server was not healthy in time.
            TokenInvalidError: the server refuses the token.
            ValueError: the agent or the permission policy is none.
            UnsupportedSessionCategoryError: a setting that the agent lacks; the session is destroyed.
            UnsupportedSessionValueError: a value that it does not take; the session is destroyed.
        """
        name = agent.strip()
        if not name:
            raise ValueError("agent is empty")
        init = self._book.session_init(session_init, cwd, mcp_servers)
        session = await self._book.create(name, (id or "").strip() or None, init, permission_policy)
        try:
            await self._configure(session, mode, model, thought_level)
        except BaseException:
            await self._book.destroy(session)
            raise
        return session

    async def _configure(
        self, session: Session, mode: str | None, model: str | None, thought_level: str | None
    ) -> None:
        if mode:
            await session.set_mode(mode)
        if model:
            await session.set_model(model)
        if thought_level:
            await session.set_thought_level(thought_level)

    async def resume_session(
        self,
        id: str,  # noqa: A002 - the contract's name
        *,
        agent: str | None = None,
        permission_policy: PermissionPolicy | None = None,
    ) -> Session:
        """Go on with a stored session, restored unless its agent session still lives here.

        A client that another one took the session from takes it back.

        Args:
            id: which.
            agent: the agent that goes on with it; another one than it had is told the history, and what
                the former one does for it is cancelled. None: the one that it has.
            permission_policy: as in ``create_session``; None leaves what the handle has.

        Raises:
            SessionNotFoundError: the store has none of that id.
            SessionFencedError: another client took it meanwhile.
            UnsupportedAgentError: the server does not know the agent (any more); others as in
                ``create_session``. The session stays with the agent that it had.
        """
        name = agent.strip() if agent is not None else None
        if name == "":
            raise ValueError("agent is empty")
        session = await self._book.take_back(id)
        if permission_policy is not None:
            session.permission_policy = permission_policy
        await self._book.bound_connection(session, name)
        if session.destroyed_at is not None:
            session.journal.change(destroyed_at=None)
            await session.journal.flush()
        return session

    async def resume_or_create_session(
        self,
        *,
        id: str,  # noqa: A002 - the contract's name
        agent: str,
        cwd: str | None = None,
        model: str | None = None,
        mode: str | None = None,
        thought_level: str | None = None,
        mcp_servers: list[Any] | None = None,
        session_init: Mapping[str, Any] | None = None,
        permission_policy: PermissionPolicy | None = None,
    ) -> Session:
        """Go on with the session of that id, or make it; arguments as ``create_session``.

        A session that is there stays with the agent that it has, whatever ``agent`` says:
        ``resume_session`` hands it over.
        """
        if await self._book.load(id) is None:
            with contextlib.suppress(SessionAlreadyExistsError):  # another task was quicker
                return await self.create_session(
                    agent=agent,
                    id=id,
                    cwd=cwd,
                    model=model,
                    mode=mode,
                    thought_level=thought_level,
                    mcp_servers=mcp_servers,
                    session_init=session_init,
                    permission_policy=permission_policy,
                )
        session = await self.resume_session(id, permission_policy=permission_policy)
        await self._configure(session, mode, model, thought_level)
        return session

    async def get_session(self, id: str) -> Session | None:  # noqa: A002 - the contract's name
        """Return a stored session, or None; nothing is sent to the server."""
        return await self._book.load(id)

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[Session]:
        """Return a page of the stored sessions, oldest first."""
        asked_at = time.monotonic()
        page = await self.persist.list_sessions(limit=limit, cursor=cursor)
        sessions = [self._book.handle(record, asked_at) for record in page.items]
        return ListPage(sessions, page.next_cursor)

    async def get_events(
        self, *, session_id: str, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        """Return a page of a session's stored events, oldest first."""
        return await self.persist.list_events(session_id, limit=limit, cursor=cursor)

    async def destroy_session(self, id: str) -> Session:  # noqa: A002 - the contract's name
        """Cancel what it does and mark it destroyed; its history stays, and it can be resumed.

        Raises:
            SessionNotFoundError: the store has none of that id.
        """
        return await self._book.destroy(await self._book.require(id))

    async def delete_session(self, id: str) -> None:  # noqa: A002 - the contract's name
        """Cancel what it does and erase it with its history.

        Raises:
            NotImplementedError: the driver can't delete.
        """
        await self._book.delete(id)

    def on_request(self, method: str, handler: Callable[[Any], Awaitable[object] | object]) -> None:
        """Answer the agents' requests of a method with what the handler makes of their params.

        Without a handler they are answered "method not found".
        """
        self._book.handlers[method] = handler


async def _provision(provider: SandboxProvider, sandbox_id: str | None) -> str:
    if sandbox_id is None:
        return await provider.create()
    raw_id = split_sandbox_id(sandbox_id, provider)
    await provider.reconnect(raw_id)
    await provider.ensure_server(raw_id)
    return raw_id
