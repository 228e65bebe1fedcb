"""The ASGI application."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence, Sized
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox_agent.agents.launch import data_dir
from sandbox_agent.engine.feed import FeedMemory
from sandbox_agent.event_loop import name_library
from sandbox_agent.persist.store import Changes
from sandbox_agent.runtime.folder_lock import temporary_folder
from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.agents.installations import Installations
from sandbox_agent.server.agents.metering import Metering
from sandbox_agent.server.agents.registry import AgentRegistry
from sandbox_agent.server.agents.spill import Spiller
from sandbox_agent.server.children import Children
from sandbox_agent.server.config import CorsConfig, ServerConfig
from sandbox_agent.server.configuration.files import ConfigFiles
from sandbox_agent.server.configuration.folders import FolderConfiguration
from sandbox_agent.server.configuration.skill_sources import Repositories
from sandbox_agent.server.configuration.skills import Skills
from sandbox_agent.server.files.baselines import Baselines
from sandbox_agent.server.files.places import Places, Root
from sandbox_agent.server.files.tree import FileTree, home
from sandbox_agent.server.files.watchers import Watchers
from sandbox_agent.server.http.auth import BearerAuth
from sandbox_agent.server.http.dispatch import Dispatcher
from sandbox_agent.server.http.fast_path import FastPath
from sandbox_agent.server.http.identities import Authenticate, HookAuth
from sandbox_agent.server.http.local_only import AllowedHosts, LocalOnly
from sandbox_agent.server.http.operations import Operation
from sandbox_agent.server.http.problems import status_problem
from sandbox_agent.server.http.request_ids import RequestIds
from sandbox_agent.server.http.root_path import without_root_path
from sandbox_agent.server.http.turns import Turns
from sandbox_agent.server.log_context import REQUEST_ID_HEADER
from sandbox_agent.server.permissions.automatic import Watcher
from sandbox_agent.server.permissions.inbox import Inbox
from sandbox_agent.server.processes.child import Spawner
from sandbox_agent.server.processes.registry import Processes
from sandbox_agent.server.recorder.recorder import Recorder
from sandbox_agent.server.recorder.retention import retain
from sandbox_agent.server.routes import (
    acp,
    agents,
    configuration,
    diff,
    events,
    files,
    meta,
    metrics,
    permissions,
    processes,
    search,
    sessions,
    terminal,
    tickets,
    turns,
    ui,
    watch,
)
from sandbox_agent.server.sessions.service import Sessions
from sandbox_agent.server.state import ServerState
from sandbox_agent.server.store import MEMORY_STORE, open_store
from sandbox_agent.server.streams.viewers import EVENT_STREAM
from sandbox_agent.server.tickets import EVENTS, TERMINAL, Tickets

if TYPE_CHECKING:
    from sandbox_agent.server.agents.egress import Egress

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

OPERATIONS: tuple[Operation, ...] = tuple(
    operation
    for module in (
        *(meta, metrics, tickets, acp, agents, sessions, turns, events, ui, permissions, search),
        *(files, watch, diff, processes, terminal, configuration),
    )
    for operation in module.OPERATIONS
)


_NOT_RUNNING = (
    "this server does not run: it is shutting down, or its lifespan was not entered. FastAPI and Starlette "
    "do not run the lifespan of an application that is mounted: use FastAPI(lifespan=agents.lifespan), or "
    "enter 'async with agents.lifespan():' in the lifespan of the outer application"
)
# The folders of servers whose store is their memory.
_MEMORY_BASELINES = "sandbox-agent-workspaces-"


class Application:
    """The server as an ASGI application. Its lifespan opens the store and runs the agents.

    At the end of the lifespan no agent runs. FastAPI and Starlette do not run the lifespan of an application
    that is mounted: pass ``lifespan`` to the outer application, or enter it in a lifespan of your own.
    """

    def __init__(self, config: ServerConfig, authenticate: Authenticate | None = None) -> None:
        self.config = config
        self._authenticate = authenticate
        # The server's own set of them, which it replaces.
        self.connections: Sized = ()
        self._state: ServerState | None = None
        self._entry: ASGIApp | None = None
        self.fast_path: FastPath | None = None
        self.tickets: Tickets = Tickets(_streams())
        self.turns: Turns = Turns()
        self._runs = False
        self.guard: BearerAuth | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            from starlette.routing import Router  # not needed by our own command, which runs the context

            await Router(lifespan=self.lifespan).lifespan(scope, receive, send)
        elif self._entry is not None:
            name_library()
            await self._entry(without_root_path(scope), receive, send)
        else:
            await status_problem(HTTPStatus.SERVICE_UNAVAILABLE, _NOT_RUNNING, {})(scope, receive, send)

    @asynccontextmanager
    async def lifespan(self, app: object = None) -> AsyncGenerator[None]:
        """Run the server while the context lasts: ``FastAPI(lifespan=agents.lifespan)``.

        Args:
            app: The outer application, which is not used.

        Raises:
            PersistError: The store can't be opened, or another server uses it.
            RuntimeError: The server runs already.
        """
        if self._runs:
            raise RuntimeError(
                "this application runs already: enter its lifespan once, either as the lifespan of the outer "
                "application or in one of your own"
            )
        async with self.running():
            try:
                yield
            finally:
                await self.end_agents()

    async def end_agents(self) -> None:
        """End all agents and processes, then all streams once they have sent everything.

        No agent and no process is started afterwards.
        """
        if self._state is not None:
            logger.info("shutting down: ending agents")
            self._state.sessions.halt()
            self._state.installations.close()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._state.bridge.close)
                tasks.start_soon(self._state.processes.close)
            await self._state.recorder.end_viewers()
            self._state.watchers.end_viewers()

    @property
    def runs_turn(self) -> bool:
        """Whether an agent runs a turn, or waits for an answer in one."""
        return self._state is not None and any(
            connection.runs_turn for connection in self._state.bridge.live()
        )

    @property
    def loss(self) -> str:
        """What is lost if the process ends now, in words."""
        return "nothing is lost" if self._state is None else self._state.recorder.loss

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Open the store and serve while the context lasts; the lifespan of an ASGI server does the same.

        Raises:
            PersistError: the store can't be opened, or another server uses it.
        """
        config = self.config
        name_library()
        async with AsyncExitStack() as stack:
            self._runs = True
            stack.callback(self._stopped)
            store = await stack.enter_async_context(
                open_store(config.store, namespace=config.store_namespace, wait=config.store_wait)
            )
            spans = await _enter_spans(stack, config)  # before the recorder: what it stores last is sent, too
            recorder = await stack.enter_async_context(Recorder(store.sessions).run())
            recorder.observers.extend(spans)
            spiller = Spiller(FeedMemory(config.feed_memory_bytes), store.spill)
            installations = Installations(on_first_use=not config.require_preinstall)
            await stack.enter_async_context(installations.run())
            egress = await _enter_egress(stack, config)
            proxy = _proxy_of(egress)
            children = Children(data_dir() / "run", config.agent_limits)
            await stack.enter_async_context(children.run())
            tree = FileTree(Places([Root(root) for root in config.fs_roots], home()))
            folder = stack.enter_context(_baselines_folder(config))
            baselines = Baselines(tree, folder, store.sessions)
            await stack.enter_async_context(baselines.run())
            bridge = Bridge(
                spiller,
                children,
                request_timeout=config.request_timeout,
                recorder=recorder,
                idle_timeout=config.acp_idle_timeout,
                idle_timeout_all=config.acp_idle_timeout_all,
                installations=installations,
                environment=config.agent_environment,
                limits=config.agent_limits,
                egress=egress,
                configuration=FolderConfiguration(
                    # Sessions may be in folders that the file API does not reach.
                    ConfigFiles(FileTree(Places([], home()))),
                    config.agent_environment,
                    Skills(tree, Repositories(data_dir() / "skills", proxy)),
                ),
                baselines=baselines,
            )
            await stack.enter_async_context(bridge.run())
            processes = Processes(Spawner(children, config.agent_environment, proxy))
            await stack.enter_async_context(processes.run())
            driven = Sessions(
                recorder,
                store.sessions,
                bridge,
                cancel_grace=config.cancel_grace,
                idle_timeout=config.session_idle_timeout,
                baselines=baselines,
            )
            await stack.enter_async_context(driven.run())
            watcher = Watcher(store.sessions, driven)
            await stack.enter_async_context(watcher.run())
            recorder.listeners.append(watcher.on_stored)
            await stack.enter_async_context(
                retain(recorder, store.sessions, days=config.retain_days, max_bytes=config.retain_bytes)
            )
            watchers = Watchers(tree)
            await stack.enter_async_context(watchers.run())
            self._state = ServerState(
                config=config,
                bridge=bridge,
                agents=AgentRegistry(bridge),
                openapi=openapi_json,
                recorder=recorder,
                store=store.sessions,
                sessions=driven,
                inbox=Inbox(store.sessions, driven),
                automatic=watcher,
                installations=installations,
                tickets=self.tickets,
                processes=processes,
                files=tree,
                watchers=watchers,
                baselines=baselines,
                configuration=ConfigFiles(tree),
                metering=Metering(),
                connections=self.connections,
            )
            entry: ASGIApp = Dispatcher(OPERATIONS, self._state)
            if config.token is not None or self._authenticate is not None:
                inner, entry = entry, BearerAuth(entry, config.token, self.tickets)
                self.guard = entry
                if self._authenticate is not None:
                    entry = HookAuth(inner, entry, self._authenticate, config.cors)
            if config.cors.allow_origins:
                from starlette.middleware.cors import CORSMiddleware

                entry = CORSMiddleware(entry, **_cors(config.cors))
            is_local_only = config.is_local_only and self._authenticate is None
            hosts = AllowedHosts(config.allow_hosts) if is_local_only else None
            if hosts is not None:
                entry = LocalOnly(entry, hosts, config.cors.allow_origins)
            self._entry = RequestIds(entry)
            self.fast_path = FastPath(bridge, config.token, config.max_body_bytes, hosts)
            yield

    def _stopped(self) -> None:
        self._runs = False
        self._entry = None


async def _enter_egress(stack: AsyncExitStack, config: ServerConfig) -> Egress | None:
    """Return the proxy of the sandbox, or None without one."""
    if config.egress_proxy is None:
        return None
    from sandbox_agent.server.agents.egress import Egress

    egress = Egress(config.egress_proxy)
    await stack.enter_async_context(egress.run())
    return egress


async def _enter_spans(stack: AsyncExitStack, config: ServerConfig) -> Sequence[Callable[[Changes], None]]:
    """Return what makes spans of what is stored; nothing without --otel, whose extra may not be installed."""
    if not config.otel:
        return ()
    from sandbox_agent.server.recorder.spans import exporting_spans

    spans = await stack.enter_async_context(exporting_spans(content=config.otel_content))
    return (spans.observe,)


@cache
def openapi_json() -> bytes:
    """Return the OpenAPI document as it is served and checked in. The first call takes some time."""
    from sandbox_agent.server.http.openapi import build_document

    return json.dumps(build_document(OPERATIONS), indent=2, ensure_ascii=False).encode() + b"\n"


def _proxy_of(egress: Egress | None) -> Callable[[], Mapping[str, str]]:
    """Return a function that returns the variables for the sandbox's proxy, with a new name each time."""
    return dict if egress is None else lambda: egress.variables(egress.new_user())


@contextmanager
def _baselines_folder(config: ServerConfig) -> Generator[Path]:
    """Yield where states of workspaces are kept: as long as the sessions of the store."""
    if config.store == MEMORY_STORE:
        with temporary_folder(_MEMORY_BASELINES) as folder:
            yield folder
    else:
        store = hashlib.sha256(f"{config.store}\0{config.store_namespace}".encode()).hexdigest()[:16]
        yield data_dir() / "baselines" / store


def _streams() -> Mapping[str, Sequence[str]]:
    """Return the paths for which there are tickets: those of GET operations that stream."""
    found: dict[str, list[str]] = {EVENTS: [], TERMINAL: []}
    for operation in OPERATIONS:
        if operation.method == "GET":
            if any(EVENT_STREAM in answer.media_type for answer in operation.answers.values()):
                found[EVENTS].append(operation.path)
            if HTTPStatus.SWITCHING_PROTOCOLS in operation.answers:
                found[TERMINAL].append(operation.path)
    return found


def _cors(cors: CorsConfig) -> Mapping[str, Any]:
    return {
        "allow_origins": cors.allow_origins,
        "allow_methods": cors.allow_methods or ("*",),
        "allow_headers": cors.allow_headers or ("*",),
        "allow_credentials": cors.allow_credentials,
        "expose_headers": (acp.EPOCH_HEADER, turns.TURN_HEADER, REQUEST_ID_HEADER),
    }
