"""The ASGI application."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from sandbox_agent.agents.launch import data_dir
from sandbox_agent.engine.feed import FeedMemory
from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.agents.egress import Egress, new_user
from sandbox_agent.server.agents.installations import Installations
from sandbox_agent.server.agents.registry import AgentRegistry
from sandbox_agent.server.agents.spill import Spiller
from sandbox_agent.server.config import CorsConfig, ServerConfig
from sandbox_agent.server.configuration.files import ConfigFiles
from sandbox_agent.server.configuration.folders import FolderConfiguration
from sandbox_agent.server.configuration.skill_sources import Repositories
from sandbox_agent.server.configuration.skills import Skills
from sandbox_agent.server.files.places import Places, Root
from sandbox_agent.server.files.tree import FileTree, home
from sandbox_agent.server.http.auth import BearerAuth
from sandbox_agent.server.http.dispatch import Dispatcher
from sandbox_agent.server.http.fast_path import FastPath
from sandbox_agent.server.http.local_only import AllowedHosts, LocalOnly
from sandbox_agent.server.http.openapi import build_document
from sandbox_agent.server.http.operations import Operation
from sandbox_agent.server.http.turns import Turns
from sandbox_agent.server.permissions.automatic import Watcher
from sandbox_agent.server.permissions.inbox import Inbox
from sandbox_agent.server.recorder.recorder import Recorder
from sandbox_agent.server.recorder.retention import retain
from sandbox_agent.server.routes import (
    acp,
    agents,
    configuration,
    events,
    files,
    meta,
    permissions,
    search,
    sessions,
    tickets,
    turns,
)
from sandbox_agent.server.sessions.service import Sessions
from sandbox_agent.server.state import ServerState
from sandbox_agent.server.store import open_store
from sandbox_agent.server.streams.viewers import EVENT_STREAM
from sandbox_agent.server.tickets import EVENTS, TERMINAL, Tickets

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

OPERATIONS: tuple[Operation, ...] = tuple(
    operation
    for module in (
        meta,
        tickets,
        acp,
        agents,
        sessions,
        turns,
        events,
        permissions,
        search,
        files,
        configuration,
    )
    for operation in module.OPERATIONS
)


class Application:
    """The server as an ASGI application. Its lifespan opens the store and runs the agents.

    At the end of the lifespan no agent runs.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._state: ServerState | None = None
        self._entry: ASGIApp | None = None
        self.fast_path: FastPath | None = None
        self.tickets: Tickets = Tickets(_streams())
        self.turns: Turns = Turns()
        self.guard: BearerAuth | None = None
        self._lifespan = Router(lifespan=lambda _: self.running()).lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif self._entry is not None:
            await self._entry(scope, receive, send)

    async def end_agents(self) -> None:
        """End all agents, then all streams once they have sent everything; no agent is started afterwards."""
        if self._state is not None:
            logger.info("shutting down: ending agents")
            self._state.sessions.halt()
            self._state.installations.close()
            await self._state.bridge.close()
            await self._state.recorder.end_viewers()

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
        tree = FileTree(Places([Root(root) for root in config.fs_roots], home()))
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(
                open_store(config.store, namespace=config.store_namespace, wait=config.store_wait)
            )
            recorder = await stack.enter_async_context(Recorder(store.sessions).run())
            spiller = Spiller(FeedMemory(config.feed_memory_bytes), store.spill)
            installations = Installations(on_first_use=not config.require_preinstall)
            await stack.enter_async_context(installations.run())
            egress = None if config.egress_proxy is None else Egress(config.egress_proxy)
            if egress is not None:
                await stack.enter_async_context(egress.run())
            proxy = dict[str, str] if egress is None else partial(egress.variables, new_user())
            bridge = Bridge(
                spiller,
                request_timeout=config.request_timeout,
                recorder=recorder,
                idle_timeout=config.acp_idle_timeout,
                idle_timeout_all=config.acp_idle_timeout_all,
                installations=installations,
                environment=config.agent_environment,
                limits=config.agent_limits,
                run_folder=data_dir() / "run",
                egress=egress,
                configuration=FolderConfiguration(
                    # Sessions may be in folders that the file API does not reach.
                    ConfigFiles(FileTree(Places([], home()))),
                    config.agent_environment,
                    Skills(tree, Repositories(data_dir() / "skills", proxy)),
                ),
            )
            await stack.enter_async_context(bridge.run())
            driven = Sessions(
                recorder,
                store.sessions,
                bridge,
                cancel_grace=config.cancel_grace,
                idle_timeout=config.session_idle_timeout,
            )
            await stack.enter_async_context(driven.run())
            watcher = Watcher(store.sessions, driven)
            await stack.enter_async_context(watcher.run())
            recorder.listeners.append(watcher.on_stored)
            await stack.enter_async_context(
                retain(recorder, store.sessions, days=config.retain_days, max_bytes=config.retain_bytes)
            )
            self._state = ServerState(
                config=config,
                bridge=bridge,
                agents=AgentRegistry(bridge),
                openapi=openapi_json(),
                recorder=recorder,
                store=store.sessions,
                sessions=driven,
                inbox=Inbox(store.sessions, driven),
                installations=installations,
                tickets=self.tickets,
                files=tree,
                configuration=ConfigFiles(tree),
            )
            entry: ASGIApp = Dispatcher(OPERATIONS, self._state)
            if config.token is not None:
                entry = self.guard = BearerAuth(entry, config.token, self.tickets)
            if config.cors.allow_origins:
                entry = CORSMiddleware(entry, **_cors(config.cors))
            hosts = AllowedHosts(config.allow_hosts) if config.is_local_only else None
            if hosts is not None:
                entry = LocalOnly(entry, hosts, config.cors.allow_origins)
            self._entry = entry
            self.fast_path = FastPath(bridge, config.token, config.max_body_bytes, hosts)
            gc.freeze()  # these objects live as long as the server: the collector can skip them
            yield


def openapi_json() -> bytes:
    """Return the OpenAPI document as it is served and checked in."""
    return json.dumps(build_document(OPERATIONS), indent=2, ensure_ascii=False).encode() + b"\n"


def _streams() -> Mapping[str, Sequence[str]]:
    """Return the paths for which there are tickets: those of GET operations that stream."""
    found: dict[str, list[str]] = {EVENTS: [], TERMINAL: []}
    for operation in OPERATIONS:
        if operation.method == "GET":
            if any(answer.media_type == EVENT_STREAM for answer in operation.answers.values()):
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
        "expose_headers": (acp.EPOCH_HEADER, turns.TURN_HEADER),
    }
