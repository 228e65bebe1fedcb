"""Applications of FastAPI and Starlette that have the server in them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from sandbox_agent.server.app import Application

TOKEN = "a-token-that-is-long-enough"

Outer = Callable[[Application], ASGIApp]


def in_fastapi(agents: Application) -> ASGIApp:
    app = FastAPI(lifespan=agents.lifespan)
    app.mount("/agents", agents)
    return app


def in_starlette(agents: Application) -> ASGIApp:
    return Starlette(routes=[Mount("/agents", agents)], lifespan=agents.lifespan)


@asynccontextmanager
async def listening(app: ASGIApp) -> AsyncGenerator[str]:
    """Serve an application with uvicorn, as its users do."""
    config = uvicorn.Config(app, log_config=None, lifespan="on", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.ensure_future(server.serve([listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        await serving


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(params=[in_fastapi, in_starlette])
def outer(request: pytest.FixtureRequest) -> Outer:
    return request.param
