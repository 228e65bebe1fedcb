"""Applications of FastAPI and Starlette that have the server in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
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


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


@pytest.fixture(params=[in_fastapi, in_starlette])
def outer(request: pytest.FixtureRequest) -> Outer:
    return request.param
