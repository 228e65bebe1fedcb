"""The pytest plugin: a server per test process, clients of it, and a scripted agent per test.

pytest imports this module in each run, so it imports nothing but pytest. Fixtures import what they need.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncGenerator, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sandbox_agent import SandboxAgent
    from sandbox_agent.sync import SandboxAgent as SyncSandboxAgent
    from sandbox_agent.testing.scripted_agent import ScriptedAgent

__all__ = ["SandboxAgentServer"]

# The end of the server's log that the report of a failed test shows.
_LOG_BYTES = 20_000


@dataclass(frozen=True)
class SandboxAgentServer:
    """The server of the fixture ``sandbox_agent_server``.

    Attributes:
        url: Its base URL.
        token: Its token.
        log: The file that its output goes to.
        agent_socket: The socket on which the test's ScriptedAgent has to listen.
        agent_ids: The ids of the scripted agent.
    """

    url: str
    token: str
    log: Path
    agent_socket: str
    agent_ids: tuple[str, ...]


_SERVER = pytest.StashKey[SandboxAgentServer]()
_LOG_START = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """Add the fixture for tests that pytest-asyncio runs."""
    if config.pluginmanager.has_plugin("asyncio"):
        config.pluginmanager.import_plugin("sandbox_agent.testing.plugin_asyncio")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Note where the log of the test begins."""
    server = item.config.stash.get(_SERVER, None)
    item.stash[_LOG_START] = 0 if server is None else server.log.stat().st_size


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show in the report of a failed test what the server has logged during the test."""
    report = yield
    server = item.config.stash.get(_SERVER, None)
    if report.failed and server is not None and "sandbox_agent_server" in getattr(item, "fixturenames", ()):
        with contextlib.suppress(OSError):
            log = server.log.read_bytes()[item.stash.get(_LOG_START, 0) :][-_LOG_BYTES:]
            report.sections.append(
                (f"Sandbox Agent server log ({report.when})", log.decode(errors="replace"))
            )
    return report


@pytest.fixture(scope="session")
def sandbox_agent_ids() -> Sequence[str]:
    """The ids of the scripted agent. Override it to replace known agents, such as ``["claude"]``."""
    return ["scripted"]


@pytest.fixture(scope="session")
def sandbox_agent_server(
    sandbox_agent_ids: Sequence[str], tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Generator[SandboxAgentServer]:
    """A Sandbox Agent server on a free port of this machine, one for each test process."""
    from sandbox_agent import local
    from sandbox_agent.testing.scripted_agent import relay_command

    log = tmp_path_factory.mktemp("sandbox-agent") / "server.log"
    # Not in pytest's folder: the path of a socket may not be long.
    folder = tempfile.mkdtemp(prefix="sandbox-agent-")
    socket = f"{folder}/agent.sock"
    provider = local(agent_commands=dict.fromkeys(sandbox_agent_ids, relay_command(socket)), log=str(log))
    try:
        raw_id = _run(provider.create())
        try:
            url, token = _run(provider.get_url(raw_id)), _run(provider.get_token(raw_id))
            server = SandboxAgentServer(url, token or "", log, socket, tuple(sandbox_agent_ids))
            pytestconfig.stash[_SERVER] = server
            yield server
        finally:
            _run(provider.destroy(raw_id))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def scripted_agent(sandbox_agent_server: SandboxAgentServer) -> Generator[ScriptedAgent]:
    """The agent ``scripted`` of the server, during this test. It says "Done." until it has other scripts.

    An exception in a script is raised when the test has ended.
    """
    from sandbox_agent.testing.scripted_agent import ScriptedAgent

    agent_id, *_ = sandbox_agent_server.agent_ids
    with ScriptedAgent(id=agent_id, socket_path=sandbox_agent_server.agent_socket) as agent:
        yield agent
    agent.check()


@pytest.fixture
def sandbox_agent_client(
    sandbox_agent_server: SandboxAgentServer, request: pytest.FixtureRequest
) -> SandboxAgent:
    """A client of the server, for async tests: with anyio's plugin, or with pytest-asyncio.

    The sessions that a test leaves on the server are deleted.
    """
    if "anyio_backend" in request.fixturenames:
        client: SandboxAgent = request.getfixturevalue("_sandbox_agent_client_anyio")
    elif request.node.get_closest_marker("asyncio") is not None:
        client = request.getfixturevalue("_sandbox_agent_client_asyncio")
    else:
        pytest.fail(
            "sandbox_agent_client is for async tests: mark the test with pytest.mark.anyio or "
            "pytest.mark.asyncio, or use sandbox_agent_client_sync in a test without async",
            pytrace=False,
        )
    return client


@pytest.fixture
def sandbox_agent_client_sync(sandbox_agent_server: SandboxAgentServer) -> Generator[SyncSandboxAgent]:
    """A client of the server, for tests without async; see ``sandbox_agent.sync``."""
    from sandbox_agent.sync import SandboxAgent

    url, token = sandbox_agent_server.url, sandbox_agent_server.token
    # The sessions are deleted by another client, when that of the test has left them.
    with SandboxAgent.connect(base_url=url, token=token) as cleaner:
        before = {session.session_id for session in cleaner.sessions.iterate()}
        with SandboxAgent.connect(base_url=url, token=token) as client:
            yield client
        for session in list(cleaner.sessions.iterate()):
            if session.session_id not in before:
                cleaner.sessions.delete(session.session_id)


@pytest.fixture
async def _sandbox_agent_client_anyio(  # pyright: ignore[reportUnusedFunction] - the fixture above requests it
    sandbox_agent_server: SandboxAgentServer, anyio_backend: object
) -> AsyncGenerator[SandboxAgent]:
    async with connected_client(sandbox_agent_server) as client:
        yield client


@contextlib.asynccontextmanager
async def connected_client(server: SandboxAgentServer) -> AsyncGenerator[SandboxAgent]:
    """A client of the server. The sessions on the server that were made meanwhile are deleted at the end."""
    from sandbox_agent import SandboxAgent

    url, token = server.url, server.token
    async with SandboxAgent.connect(base_url=url, token=token) as cleaner:
        before = {session.session_id async for session in cleaner.sessions.iterate()}
        async with SandboxAgent.connect(base_url=url, token=token) as client:
            yield client
        for session in [session async for session in cleaner.sessions.iterate()]:
            if session.session_id not in before:
                await cleaner.sessions.delete(session.session_id)


def _run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine in a thread: the loops of this one belong to the plugins for async tests."""
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(asyncio.run, work).result()
