"""The conformance suite of providers, over those of this package that run on this machine."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sandbox_agent import (
    DockerProvider,
    JailProvider,
    LocalProvider,
    Mount,
    PodmanProvider,
    SandboxProvider,
    jail,
    local,
)
from sandbox_agent.testing.providers import (
    ENV,
    CancelSuite,
    FilesSuite,
    PauseSuite,
    ReconnectSuite,
    RestartSuite,
    SandboxProviderSuite,
)
from tests.support import shell_agent
from tests.support.engines import Engine

pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]

SHELL_AGENT = str(Path(shell_agent.__file__))


@pytest.fixture
def workspace() -> Iterator[Path]:
    """A folder of the user of containers, where each user finds it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "workspace")
        folder.mkdir()
        if os.geteuid() == 0:
            Path(temporary).chmod(0o755)
            os.chown(folder, 1000, 1000)
        yield folder


class TestLocal(RestartSuite, SandboxProviderSuite):
    @pytest.fixture
    def provider(self) -> LocalProvider:
        return local(log="silent")

    @pytest.fixture
    def kill_server(self, provider: LocalProvider) -> Callable[[str], Awaitable[object]]:
        return _killer(provider)


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="JAIL NOT TESTED: bwrap is not on PATH")
class TestJail(FilesSuite, RestartSuite, SandboxProviderSuite):
    @pytest.fixture(params=[True, False], ids=["network", "no network"])
    def provider(self, request: pytest.FixtureRequest, workspace: Path) -> JailProvider:
        if os.geteuid() == 0:
            os.chown(workspace, 0, 0)
        return jail(
            workspace=workspace,
            network=request.param,
            log="silent",
            env=ENV,
            mounts=[Mount(SHELL_AGENT, "/agent.py")],
            agent_commands={"shell": [sys.executable, "/agent.py"]},
        )

    @pytest.fixture
    def kill_server(self, provider: JailProvider) -> Callable[[str], Awaitable[object]]:
        return _killer(provider)


def _killer(provider: LocalProvider) -> Callable[[str], Awaitable[object]]:
    async def kill(raw_id: str) -> None:
        pid = provider.pid(raw_id)
        assert pid is not None
        os.killpg(pid, signal.SIGKILL)

    return kill


class EngineSuite(CancelSuite, FilesSuite, PauseSuite, ReconnectSuite, RestartSuite, SandboxProviderSuite):
    """Docker and Podman, with the options of a class."""

    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture
    def provider(self, engine: Engine, workspace: Path) -> DockerProvider | PodmanProvider:
        return engine.provider(
            workspace=workspace,
            env=ENV,
            mounts=[Mount(SHELL_AGENT, "/agent.py")],
            agent_commands={"shell": ["python3", "/agent.py"]},
            **self.options,
        )

    @pytest.fixture
    def second_provider(self, engine: Engine) -> SandboxProvider:
        return engine.provider()

    @pytest.fixture
    def kill_server(self, engine: Engine) -> Callable[[str], Awaitable[object]]:
        async def kill(raw_id: str) -> None:
            # The server is the first child of the container's init process.
            found = await engine.api.inspect(raw_id)
            assert found is not None
            init = found["State"]["Pid"]
            with open(f"/proc/{init}/task/{init}/children") as children:  # noqa: ASYNC230, PTH123
                os.kill(int(children.read().split()[0]), signal.SIGKILL)
            # A prompt that the server still receives has an unknown outcome, and is not sent again.
            await engine.api.wait_exited(raw_id)

        return kill

    @pytest.fixture
    def list_sandboxes(self, engine: Engine) -> Callable[[], Awaitable[list[str]]]:
        return engine.containers


class TestEngines(EngineSuite):
    pass


class TestEnginesWithoutNetwork(EngineSuite):
    options: ClassVar[dict[str, Any]] = {"network": "none", "read_only": True, "pause": "stop"}
