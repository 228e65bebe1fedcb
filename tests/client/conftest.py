"""Fixtures: one server for the tests that leave it alone, one of its own for those that don't.

In ``make test-soak``, tests that use ``front`` run once more with a faulty gateway in front of the server.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import anyio
import anyio.from_thread
import pytest

from sandbox_agent import SandboxAgent, SQLiteSessionPersistDriver
from sandbox_agent.client.session_registry import SessionRegistry
from tests.client.checks import find_repeated_events
from tests.client.faults import LONGEST_FAULT, scheduled_faults
from tests.client.gateway import Gateway
from tests.support.servers import ServerProcess, our_server, put_launcher

ODD_AGENT = Path(__file__).parent / "odd_agent.py"
GARBLING_AGENT = Path(__file__).parents[1] / "support/garbling_agent.py"

Front = Callable[[ServerProcess], ServerProcess]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "front" not in metafunc.fixturenames:
        return
    runs = [pytest.param(False, id=pytest.HIDDEN_PARAM)]
    if metafunc.definition.get_closest_marker("no_gateway") is None:
        runs.append(pytest.param(True, id="gateway", marks=[pytest.mark.soak, pytest.mark.timeout(240)]))
    metafunc.parametrize("front", runs, indirect=True)


@pytest.fixture
def front(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """A function that puts a faulty gateway in front of a server, in the runs that have one."""
    if not request.param:
        yield lambda server: server
        return
    repeated: list[str] = []
    close, fail_after = SessionRegistry.close, anyio.fail_after

    async def close_and_check(registry: SessionRegistry) -> None:
        await close(registry)
        repeated.extend(await find_repeated_events(vars(registry)["_driver"]))

    def fail_later(delay: float | None, shield: bool = False) -> AbstractContextManager[anyio.CancelScope]:
        return fail_after(None if delay is None else delay + LONGEST_FAULT, shield)

    monkeypatch.setattr(SessionRegistry, "close", close_and_check)
    monkeypatch.setattr(anyio, "fail_after", fail_later)
    with ExitStack() as stack:
        portal = stack.enter_context(anyio.from_thread.start_blocking_portal())

        def put_gateway(server: ServerProcess) -> ServerProcess:
            gateway = Gateway(server.port, scheduled_faults(request.node.nodeid))
            stack.enter_context(portal.wrap_async_context_manager(gateway))
            server.url = gateway.url
            return server

        yield put_gateway
    assert repeated == []


@pytest.fixture(scope="session")
def worker_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server of ``shared_server``."""
    folder = tmp_path_factory.mktemp("server")
    put_launcher(folder / "data", "claude", [sys.executable, str(ODD_AGENT)])
    put_launcher(folder / "data", "garbling", [sys.executable, str(GARBLING_AGENT)])
    with our_server(folder, "--allow-host", "0.0.0.0", env={"ANTHROPIC_API_KEY": "a-key"}) as server:
        yield server


@pytest.fixture
def shared_server(worker_server: ServerProcess, front: Front) -> ServerProcess:
    """A server that nobody stops; its ``claude`` is the odd agent, its ``garbling`` the garbling one."""
    return front(copy.copy(worker_server))


@pytest.fixture
def own_server(tmp_path: Path, front: Front) -> Iterator[ServerProcess]:
    """A server that the test may kill."""
    with our_server(tmp_path) as server:
        yield front(server)


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
