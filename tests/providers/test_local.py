"""Sandboxes of the local provider, and the life of a sandbox in general."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import anyio
import httpx2
import pytest

from sandbox_agent import (
    HealthTimeoutError,
    SandboxAgent,
    SandboxAgentError,
    SandboxDestroyedError,
    SandboxProvider,
    TokenInvalidError,
    local,
)
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip, rust_server
from tests.support.servers import free_port

pytestmark = pytest.mark.anyio


def alive(pid: int) -> bool:
    """Whether the process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def raw(sandbox_id: str | None) -> str:
    """Return the provider's own id."""
    assert sandbox_id is not None
    return sandbox_id.removeprefix("local/")


async def test_a_started_sandbox_runs_a_session_and_ends_when_it_is_destroyed() -> None:
    provider = local(log="silent")
    async with SandboxAgent.start(sandbox=provider) as sdk:
        raw_id = raw(sdk.sandbox_id)
        assert sdk.sandbox_id == f"local/{raw_id}"
        assert sdk.sandbox is provider
        assert sdk.inspector_url == f"http://{raw_id}/ui/"
        pid = provider.pid(raw_id)
        assert pid is not None
        session = await sdk.create_session(agent="mock")
        assert session.record.sandbox_id == f"local/{raw_id}"
        assert (await session.prompt("hello")).stop_reason == "end_turn"
        await sdk.destroy_sandbox()
        assert sdk.sandbox_id is None
    assert not alive(pid)


async def test_the_server_wants_its_token() -> None:
    provider = local(log="silent")
    async with SandboxAgent.start(sandbox=provider) as sdk:
        async with SandboxAgent.connect(base_url=sdk.base_url, skip_health_check=True) as stranger:
            with pytest.raises(TokenInvalidError):
                await stranger.list_agents()
        await sdk.destroy_sandbox()


async def test_dispose_leaves_the_sandbox_and_another_start_finds_it() -> None:
    provider = local(log="silent")
    async with SandboxAgent.start(sandbox=provider) as sdk:
        sandbox_id = sdk.sandbox_id
    pid = provider.pid(raw(sandbox_id))
    assert pid is not None
    assert alive(pid)
    async with SandboxAgent.start(sandbox=provider, sandbox_id=sandbox_id) as sdk:
        assert sdk.sandbox_id == sandbox_id
        assert provider.pid(raw(sandbox_id)) == pid
        await sdk.kill_sandbox()
    assert not alive(pid)


async def test_another_provider_finds_a_server_that_runs_when_it_has_the_token() -> None:
    first = local(log="silent", token="a-secret-token")
    async with SandboxAgent.start(sandbox=first) as sdk:
        async with SandboxAgent.start(
            sandbox=local(token="a-secret-token"), sandbox_id=sdk.sandbox_id
        ) as other:
            assert (await other.get_health()).status == "ok"
        await sdk.destroy_sandbox()


@pytest.mark.parametrize("port", ["", "x", "99999999", "²"])
async def test_a_sandbox_that_is_gone_is_said_to_be(port: str) -> None:
    with pytest.raises(SandboxDestroyedError) as caught:
        await SandboxAgent.start(sandbox=local(), sandbox_id=f"local/127.0.0.1:{port or free_port()}")
    assert caught.value.provider == "local"


@pytest.mark.parametrize("sandbox_id", ["docker/abc", "abc", "/abc", "local/"])
async def test_a_sandbox_of_another_provider_is_refused(sandbox_id: str) -> None:
    with pytest.raises(SandboxAgentError, match="provider"):
        await SandboxAgent.start(sandbox=local(), sandbox_id=sandbox_id)


async def test_a_server_that_died_is_started_again_and_its_session_restored() -> None:
    provider = local(log="silent")
    with anyio.fail_after(40):
        async with SandboxAgent.start(sandbox=provider) as sdk:
            session = await sdk.create_session(agent="mock")
            await session.prompt("echo one")
            before = provider.pid(raw(sdk.sandbox_id))
            assert before is not None
            os.kill(before, 9)
            await asyncio.to_thread(os.waitid, os.P_PID, before, os.WEXITED | os.WNOWAIT)
            assert (await session.prompt("echo two")).stop_reason == "end_turn"
            assert provider.pid(raw(sdk.sandbox_id)) != before
            await sdk.destroy_sandbox()


async def test_a_server_that_can_not_start_says_why(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with pytest.raises(SandboxAgentError, match=r"No such option"):
        await local(log=log, args=["--nonsense"]).create()
    with pytest.raises(SandboxAgentError, match="could not be started"):
        await local(binary=tmp_path / "nothing").create()


# Listens, and ends when the first client has connected.
DYING = """#!{python}
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
print("the disk is full", flush=True)
listener.accept()
sys.exit(3)
"""


@pytest.mark.parametrize("log", ["inherit", "silent", "server.log"])
async def test_a_server_that_dies_when_it_listens_says_why(
    tmp_path: Path, log: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.log").write_text("of an earlier server")
    program = tmp_path / "sandbox-agent"
    program.write_text(DYING.format(python=sys.executable))
    program.chmod(0o755)
    with (
        anyio.fail_after(10),
        pytest.raises(SandboxAgentError, match=r"code 3 at its start: the disk is full$"),
    ):
        await SandboxAgent.start(sandbox=local(binary=program, log=log))
    assert ("the disk is full" in capfd.readouterr().err) == (log == "inherit")


async def test_a_server_whose_store_another_one_uses_says_so(tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'server.db'}"
    first = local(log="silent", store=store)
    raw_id = await first.create()
    try:
        with pytest.raises(SandboxAgentError, match="belongs to another running server"):
            await SandboxAgent.start(sandbox=local(log="silent", store=store, args=["--store-wait", "0"]))
    finally:
        await first.destroy(raw_id)


async def test_a_restart_that_fails_can_be_tried_again() -> None:
    provider = local(log="silent")
    raw_id = await provider.create()
    try:
        token, pid = await provider.get_token(raw_id), provider.pid(raw_id)
        assert pid is not None
        os.kill(pid, 9)
        await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with (
            socket.create_server(("127.0.0.1", int(raw_id.rpartition(":")[2]))),
            pytest.raises(SandboxAgentError, match="another program listens"),
        ):
            await provider.ensure_server(raw_id)
        await asyncio.gather(provider.ensure_server(raw_id), provider.ensure_server(raw_id))
        assert await provider.get_token(raw_id) == token
        async with SandboxAgent.start(sandbox=provider, sandbox_id=f"local/{raw_id}") as sdk:
            assert (await sdk.get_health()).status == "ok"
    finally:
        await provider.destroy(raw_id)


@pytest.mark.skipif(not socket.has_ipv6, reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]", "localhost"])
async def test_a_server_listens_on_the_host_that_is_chosen(host: str) -> None:
    async with SandboxAgent.start(sandbox=local(host=host, log="silent")) as sdk:
        assert sdk.base_url.startswith("http://localhost:" if host == "localhost" else "http://[::1]:")
        session = await sdk.create_session(agent="mock")
        assert (await session.prompt("hello")).stop_reason == "end_turn"
        provider = local(host=host)
        await provider.reconnect(raw(sdk.sandbox_id))
        await sdk.destroy_sandbox()
        with pytest.raises(SandboxDestroyedError):
            await provider.reconnect(sdk.base_url.removeprefix("http://"))


async def test_another_program_can_be_the_server(tmp_path: Path) -> None:
    program = tmp_path / "sandbox-agent"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m sandbox_agent.cli.main "$@"\n')
    program.chmod(0o755)
    log = tmp_path / "logs/server.log"
    async with SandboxAgent.start(sandbox=local(binary=program, log=log)) as sdk:
        assert (await sdk.get_health()).status == "ok"
        await sdk.destroy_sandbox()
    assert "listens on" in log.read_text()


async def test_a_token_that_looks_like_an_option_reaches_another_server() -> None:
    npm_or_skip(PUBLISHED_SERVER, "the published server's command line")
    provider = local(binary=rust_server(), token="-secret", log="silent", args=["--no-telemetry"])
    async with SandboxAgent.start(sandbox=provider) as sdk:
        assert await sdk.list_agents()
        await sdk.destroy_sandbox()


def test_the_server_ends_with_the_interpreter(tmp_path: Path) -> None:
    script = (
        "import asyncio\n"
        "from sandbox_agent import SandboxAgent, local\n"
        "async def main():\n"
        "    provider = local(log='silent')\n"
        "    sdk = await SandboxAgent.start(sandbox=provider)\n"
        "    print(provider.pid(sdk.sandbox_id.removeprefix('local/')))\n"
        "    await sdk.dispose()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert not alive(int(done.stdout))
    assert done.stderr == ""


class Elsewhere(SandboxProvider):
    """A provider whose server never answers."""

    name = "elsewhere"

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.ensured: list[str] = []

    async def create(self) -> str:
        return "box-1"

    async def destroy(self, sandbox_id: str, /) -> None:
        self.ended.append(sandbox_id)

    async def get_transport(self, sandbox_id: str, /) -> httpx2.AsyncBaseTransport:
        return httpx2.MockTransport(lambda _request: httpx2.Response(503))

    async def ensure_server(self, sandbox_id: str, /) -> None:
        self.ensured.append(sandbox_id)


async def test_a_new_sandbox_that_can_not_be_reached_is_destroyed() -> None:
    provider = Elsewhere()
    with pytest.raises(HealthTimeoutError):
        await SandboxAgent.start(sandbox=provider, health_timeout=0.05)
    assert provider.ended == ["box-1"]


async def test_an_old_sandbox_that_can_not_be_reached_is_left_alone() -> None:
    provider = Elsewhere()
    with pytest.raises(HealthTimeoutError):
        await SandboxAgent.start(sandbox=provider, sandbox_id="elsewhere/box-1", health_timeout=0.05)
    assert provider.ended == []
    assert provider.ensured == ["box-1"]


async def test_a_provider_that_can_not_pause_destroys() -> None:
    provider = Elsewhere()
    sdk = await SandboxAgent.start(sandbox=provider, skip_health_check=True)
    await sdk.pause_sandbox()
    assert provider.ended == ["box-1"]
    with pytest.raises(SandboxAgentError, match="has no sandbox"):
        await sdk.destroy_sandbox()


async def test_a_port_at_which_another_listens_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(SandboxAgentError, match="another program listens"):
            await local(port=port, log="silent").create()


def test_a_fork_of_the_interpreter_leaves_the_server_alone() -> None:
    script = (
        "import asyncio, os, sys\n"
        "from sandbox_agent import local\n"
        "provider = local(log='silent')\n"
        "raw_id = asyncio.run(provider.create())\n"
        "fork = os.fork()\n"
        "if fork:\n"
        "    os.waitpid(fork, 0)\n"
        "    os.kill(provider.pid(raw_id), 0)\n"
        "    print(os.waitid(os.P_PID, provider.pid(raw_id), os.WEXITED | os.WNOHANG | os.WNOWAIT))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("None\n", "")
