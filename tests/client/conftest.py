"""Fixtures: one server for the tests that leave it alone, one of its own for those that don't."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from sandbox_agent import SandboxAgent, SQLiteSessionPersistDriver
from tests.support.servers import ServerProcess, our_server, put_launcher

ODD_AGENT = Path(__file__).parent / "odd_agent.py"
GARBLING_AGENT = Path(__file__).parents[1] / "support/garbling_agent.py"


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that nobody stops; its ``claude`` is the odd agent, its ``garbling`` the garbling one."""
    folder = tmp_path_factory.mktemp("server")
    put_launcher(folder / "data", "claude", [sys.executable, str(ODD_AGENT)])
    put_launcher(folder / "data", "garbling", [sys.executable, str(GARBLING_AGENT)])
    with our_server(folder) as server:
        yield server


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that the test may kill."""
    with our_server(tmp_path) as server:
        yield server


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[SQLiteSessionPersistDriver]:
    """A SQLite store of the test's own."""
    driver = SQLiteSessionPersistDriver(tmp_path / "client.db")
    yield driver
    await driver.close()


@pytest.fixture
async def sdk(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> AsyncIterator[SandboxAgent]:
    """A client of the shared server."""
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as client:
        yield client
