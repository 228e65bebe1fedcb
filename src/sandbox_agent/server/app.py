"""The ASGI application."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sandbox_agent.engine.feed import FeedMemory
from sandbox_agent.server.auth import BearerAuth
from sandbox_agent.server.bridge import Bridge
from sandbox_agent.server.config import CorsConfig, ServerConfig
from sandbox_agent.server.directory import Directory
from sandbox_agent.server.openapi import build_document
from sandbox_agent.server.operations import Endpoint, Operation
from sandbox_agent.server.problems import EXCEPTION_HANDLERS
from sandbox_agent.server.routes import acp, agents, meta
from sandbox_agent.server.spill import Spiller
from sandbox_agent.server.state import ServerState
from sandbox_agent.server.store import open_store

__all__ = ["OPERATIONS", "create_app", "openapi_json"]

OPERATIONS: tuple[Operation, ...] = (*meta.OPERATIONS, *acp.OPERATIONS, *agents.OPERATIONS)


def create_app(config: ServerConfig) -> Starlette:
    """Return the application for these settings.

    Its lifespan opens the store and runs the connections; at its end no agent is left.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            store = await stack.enter_async_context(open_store(config.store))
            spiller = Spiller(FeedMemory(config.feed_memory_bytes), store)
            bridge = await stack.enter_async_context(
                Bridge(spiller, request_timeout=config.request_timeout).run()
            )
            app.state.server = ServerState(config, bridge, Directory(bridge), openapi_json())
            yield

    middleware: list[Middleware] = []
    if config.cors.allow_origins:
        middleware.append(Middleware(CORSMiddleware, **_cors(config.cors)))
    if config.token is not None:
        middleware.append(Middleware(BearerAuth, token=config.token))
    app = Starlette(
        routes=_routes(),
        middleware=middleware,
        exception_handlers=EXCEPTION_HANDLERS,
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False  # a path is there or it isn't
    return app


def openapi_json() -> bytes:
    """Return the OpenAPI document, as it is served and checked in."""
    return json.dumps(build_document(OPERATIONS), indent=2, ensure_ascii=False).encode() + b"\n"


def _routes() -> list[Route]:
    paths: dict[str, dict[str, Operation]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method] = operation
    return [Route(path, _by_method(methods), methods=list(methods)) for path, methods in paths.items()]


def _by_method(operations: Mapping[str, Operation]) -> Endpoint:
    """Return one endpoint for a path: a method that it doesn't have is then told of all that it has."""

    async def endpoint(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        return await operations[method].endpoint(request)

    return endpoint


def _cors(cors: CorsConfig) -> Mapping[str, Any]:
    return {
        "allow_origins": cors.allow_origins,
        "allow_methods": cors.allow_methods or ("*",),
        "allow_headers": cors.allow_headers or ("*",),
        "allow_credentials": cors.allow_credentials,
        "expose_headers": (acp.EPOCH_HEADER,),
    }
