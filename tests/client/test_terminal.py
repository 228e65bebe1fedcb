"""``sdk.processes.terminal``: a terminal in the sandbox, typed into and read from Python."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx2
import pytest
from websockets.protocol import Protocol

from sandbox_agent import (
    ConflictError,
    ConnectionLostError,
    NotFoundError,
    ProcessTerminal,
    SandboxAgent,
    TokenInvalidError,
)
from sandbox_agent.client import terminal as module
from sandbox_agent.extras import MissingExtraError
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import ServerProcess, our_server, published_server, serving

pytestmark = pytest.mark.anyio

TOKEN = "s3cret-token-0123456789"
SECONDS = 30.0
OURS, PUBLISHED = "our server", "the published server"
BOTH = pytest.mark.parametrize("server", [OURS, PUBLISHED], indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[ServerProcess]:
    """A server; ours by default."""
    if getattr(request, "param", OURS) == OURS:
        with our_server(tmp_path, token=TOKEN) as running:
            yield running
        return
    npm_or_skip(PUBLISHED_SERVER, "compatibility with the published server")
    with published_server(tmp_path, token=TOKEN) as running:
        yield running


@pytest.fixture
async def sdk(server: ServerProcess) -> AsyncGenerator[SandboxAgent]:
    async with SandboxAgent.connect(base_url=server.url, token=TOKEN) as found:
        yield found


async def create(sdk: SandboxAgent, script: str, **options: Any) -> str:
    """Create a process with a terminal that waits for "go" before it runs a script; return its id."""
    process = await sdk.processes.create("sh", ["-c", f"stty -echo; read go; {script}"], tty=True, **options)
    return process.id


async def until(terminal: ProcessTerminal, text: bytes) -> bytes:
    """Iterate until the output has a text."""
    output = b""
    with anyio.fail_after(SECONDS):
        async for data in terminal:
            output += data
            if text in output:
                return output
    raise AssertionError(output)


@BOTH
async def test_a_terminal_is_read_typed_into_and_resized(sdk: SandboxAgent) -> None:
    process = await create(sdk, "read size; stty size; read end; exit 7")
    async with sdk.processes.terminal(process) as terminal:
        assert terminal.process_id == process
        await terminal.send_input("go\r")
        await terminal.resize(91, 31)
        await terminal.send_input(b"size\r")
        await until(terminal, b"31 91")
        await sdk.processes.resize_terminal(process, 50, 20)
        await terminal.send_input("end\r")
        with anyio.fail_after(SECONDS):
            assert await terminal.wait() == 7
        assert (terminal.exited, terminal.exit_code) == (True, 7)
        async for _ in terminal:  # ends
            pass


@BOTH
async def test_the_iteration_ends_with_the_process(sdk: SandboxAgent) -> None:
    process = await create(sdk, "seq 1 10000; kill -9 $$")
    async with sdk.processes.terminal(process) as terminal:
        await terminal.send_input("go\r")
        with anyio.fail_after(SECONDS):
            output = b"".join([data async for data in terminal])
        assert b"9998\r\n9999\r\n10000\r\n" in output
        assert (terminal.exited, terminal.exit_code) == (True, None)


@BOTH
async def test_listeners_receive_what_happens(sdk: SandboxAgent) -> None:
    process = await create(sdk, "echo hello; exit 3")
    happened: list[tuple[str, object]] = []
    closed = anyio.Event()

    async def on_data(data: bytes) -> None:
        happened.append(("data", data))

    def on_close(code: int) -> None:
        happened.append(("close", code))
        closed.set()

    async with sdk.processes.terminal(process) as terminal:
        terminal.on_ready(lambda process_id: happened.append(("ready", process_id)))
        remove = terminal.on_data(lambda data: pytest.fail(f"unregistered: {data!r}"))
        remove()
        terminal.on_data(on_data)
        terminal.on_error(lambda message: happened.append(("error", message)))
        terminal.on_exit(lambda code: happened.append(("exit", code)))
        terminal.on_close(on_close)
        await terminal.send_input("x" * 100_000)  # in several messages
        await terminal._send({"type": "nope"})  # pyright: ignore[reportPrivateUsage]
        await terminal.send_input("\rgo\r")
        with anyio.fail_after(SECONDS):
            await closed.wait()
    kinds = [kind for kind, _ in happened]
    assert kinds[0] == "ready"
    assert "error" in kinds
    assert kinds[-2:] == ["exit", "close"]
    assert ("exit", 3) in happened
    assert b"hello" in b"".join(data for kind, data in happened if kind == "data" and isinstance(data, bytes))


@BOTH
async def test_a_listener_that_fails_is_logged(sdk: SandboxAgent, caplog: pytest.LogCaptureFixture) -> None:
    process = await create(sdk, "echo hello; exit 3")

    async def fail(_: object) -> None:
        raise ZeroDivisionError

    async with sdk.processes.terminal(process) as terminal:
        terminal.on_data(fail)
        terminal.on_data(lambda _: 1 / 0)
        with caplog.at_level(logging.CRITICAL):
            await terminal.send_input("go\r")
            with anyio.fail_after(SECONDS):
                assert await terminal.wait() == 3


@BOTH
async def test_a_process_without_a_terminal_a_missing_one_and_a_wrong_token(
    sdk: SandboxAgent, server: ServerProcess
) -> None:
    pipes = await sdk.processes.create("sleep", ["1000"])
    with pytest.raises(ConflictError):
        async with sdk.processes.terminal(pipes.id):
            pytest.fail("it has no terminal")
    with pytest.raises(ConflictError):
        await sdk.processes.resize_terminal(pipes.id, 10, 10)
    with pytest.raises(NotFoundError):
        async with sdk.processes.terminal("proc_99"):
            pytest.fail("there is none")
    process = await create(sdk, "exit")
    async with SandboxAgent.connect(
        base_url=server.url, token="another-token", skip_health_check=True
    ) as other:
        with pytest.raises(TokenInvalidError):
            async with other.processes.terminal(process):
                pytest.fail("the token is wrong")


@BOTH
async def test_errors_of_the_body_are_raised_as_they_are(sdk: SandboxAgent) -> None:
    process = await create(sdk, "exit")
    with pytest.raises(ZeroDivisionError):
        async with sdk.processes.terminal(process):
            raise ZeroDivisionError
    assert (await sdk.processes.get(process)).status == "running"
    terminal = sdk.processes.terminal(process)
    async with terminal:
        pass
    for call in (terminal.send_input("x"), terminal.resize(1, 1), terminal.wait()):
        with pytest.raises(ConnectionLostError):
            await call


async def test_output_that_is_not_read_lets_the_process_wait_and_is_complete(
    sdk: SandboxAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUFFER_BYTES", 4096)
    count = 1_000_000
    process = await create(sdk, f"seq 1 {count}; exit 5")
    async with sdk.processes.terminal(process) as terminal:
        # Another viewer, which waits for the first one.
        async with sdk.processes.terminal(process) as other:
            await terminal.send_input("go\r")
            await until(other, b"\n1000\r\n")
        with anyio.fail_after(SECONDS):
            output = b"".join([data async for data in terminal])
    assert output.split(b"\r\n")[-count - 1 :] == [*(b"%d" % n for n in range(1, count + 1)), b""]


async def test_waiting_for_the_end_drops_output_that_nothing_reads(
    sdk: SandboxAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUFFER_BYTES", 4096)
    process = await create(sdk, "seq 1 1000000; exit 5")
    async with sdk.processes.terminal(process) as terminal:
        await terminal.send_input("go\r")
        with anyio.fail_after(SECONDS):
            assert await terminal.wait() == 5


async def test_a_server_that_ends_ends_the_iteration_with_an_error(
    sdk: SandboxAgent, server: ServerProcess
) -> None:
    process = await create(sdk, "exit")
    async with sdk.processes.terminal(process) as terminal:
        await anyio.to_thread.run_sync(server.stop)
        with anyio.fail_after(SECONDS), pytest.raises(ConnectionLostError, match=r"1001.*shutting down"):
            async for _ in terminal:
                pass
        with pytest.raises(ConnectionLostError):
            await terminal.wait()


async def test_a_server_that_is_killed_ends_the_iteration_with_an_error(
    sdk: SandboxAgent, server: ServerProcess
) -> None:
    process = await create(sdk, "exit")
    async with sdk.processes.terminal(process) as terminal:
        server.kill()
        with anyio.fail_after(SECONDS), pytest.raises(ConnectionLostError):
            async for _ in terminal:
                pass


async def test_a_server_that_is_silent_loses_the_connection(
    server: ServerProcess, sdk: SandboxAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.2)
    async with sdk.processes.terminal(await create(sdk, "sleep 1000")) as terminal:
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with anyio.fail_after(SECONDS), pytest.raises(ConnectionLostError, match=r"silent for 0\.6 s"):
                await until(terminal, b"never")
        finally:
            os.kill(server.pid, signal.SIGCONT)


@BOTH
async def test_a_terminal_without_output_stays_connected(
    sdk: SandboxAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More pings than may stay without an answer.
    monkeypatch.setattr(module, "SILENCE_SECONDS", 0.25)
    monkeypatch.setattr(module, "_MAX_PINGS", 15)
    process_id = await create(sdk, "echo done")
    pings: list[bytes] = []
    send_ping = Protocol.send_ping

    def count(self: Protocol, data: bytes) -> None:
        pings.append(data)
        send_ping(self, data)

    monkeypatch.setattr(Protocol, "send_ping", count)
    with anyio.fail_after(SECONDS):
        async with sdk.processes.terminal(process_id) as terminal:
            while len(pings) < 10:
                await anyio.lowlevel.checkpoint()
            await terminal.send_input("go\r")
            assert b"done" in await until(terminal, b"done")


async def test_a_server_that_does_not_answer_the_handshake_is_given_up(
    sdk: SandboxAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HANDSHAKE_SECONDS", 0.0)
    process = await create(sdk, "exit")
    with pytest.raises(ConnectionLostError, match="has not opened"):
        async with sdk.processes.terminal(process):
            pytest.fail("it took no time")


async def test_a_terminal_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(path):
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with SandboxAgent.connect(base_url="http://localhost", transport=transport) as sdk:
            process = await create(sdk, "echo hello; exit 4")
            async with sdk.processes.terminal(process) as terminal:
                await terminal.send_input("go\r")
                await until(terminal, b"hello")
                assert await terminal.wait() == 4


async def test_a_transport_without_websockets_is_named(sdk: SandboxAgent) -> None:
    async def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json={"status": "ok"})

    async with SandboxAgent.connect(transport=httpx2.MockTransport(answer)) as other:
        with pytest.raises(Exception, match="opens no WebSocket"):
            async with other.processes.terminal("proc_1"):
                pytest.fail("there is no WebSocket")


async def test_without_the_library_the_extra_is_named(
    sdk: SandboxAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str, package: str | None = None) -> object:
        return None if name == "websockets" else importlib.util.find_spec(name, package)

    monkeypatch.setattr("sandbox_agent.extras.find_spec", find)
    with pytest.raises(MissingExtraError, match=r"sandbox-agent-py\[terminal\]"):
        sdk.processes.terminal("proc_1")
