"""Fixtures: a server and databases for the snippets, where the pages say they are."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.servers import ServerProcess, our_server, put_launcher, serving


@pytest.fixture(scope="session")
def docs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server without a token; its ``codex`` is a mock."""
    folder = tmp_path_factory.mktemp("docs")
    put_launcher(folder / "data", "codex", [sys.executable, "-m", "sandbox_agent.agents.mock"])
    with our_server(folder) as server:
        yield server


@pytest.fixture(scope="session")
def docs_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a server without a port."""
    path = tmp_path_factory.mktemp("docs-socket") / "agent.sock"
    with serving(path):
        yield path


@pytest.fixture(scope="session", autouse=True)
def docs_database(postgres: PostgresServer) -> Iterator[None]:
    """A PostgreSQL database under the name that the pages use for it."""
    dsn = postgres.create_database()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("DATABASE_URL", dsn)
        yield
    postgres.drop_database(dsn)


@pytest.fixture(scope="session", autouse=True)
def docs_redis(redis_server: RedisServer) -> Iterator[None]:
    """A Valkey under the name that the pages use for it."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("REDIS_URL", redis_server.fresh_url())
        yield
