"""``sdk.processes``: commands run in the sandbox, and their output arrives as a whole."""

from __future__ import annotations

import signal
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing
from pathlib import Path

import anyio
import httpx2
import msgspec
import pytest

from sandbox_agent import (
    ConflictError,
    ConnectionLostError,
    GoneError,
    InvalidRequestError,
    NotFoundError,
    PayloadTooLargeError,
    ProcessConfig,
    ProcessInfo,
    ProcessLogEntry,
    ProcessRestartRequest,
    SandboxAgent,
    StreamError,
)
from tests.client.gateway import Faults, Gateway
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import ServerProcess, our_server, published_server

pytestmark = pytest.mark.anyio

SECONDS = 30.0
MIB = 1024 * 1024
OURS, PUBLISHED = "our server", "the published server"
BOTH = pytest.mark.parametrize("server", [OURS, PUBLISHED], indirect=True)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[ServerProcess]:
    """A server; ours by default."""
    if getattr(request, "param", OURS) == OURS:
        with our_server(tmp_path) as running:
            yield running
        return
    npm_or_skip(PUBLISHED_SERVER, "compatibility with the published server")
    with published_server(tmp_path) as running:
        yield running


@pytest.fixture
async def sdk(server: ServerProcess) -> AsyncGenerator[SandboxAgent]:
    async with SandboxAgent.connect(base_url=server.url) as found:
        yield found


async def collect(sdk: SandboxAgent, process_id: str) -> bytes:
    """Follow a log to its end."""
    with anyio.fail_after(SECONDS):
        return b"".join([entry.data async for entry in sdk.processes.follow_logs(process_id)])


async def until(sdk: SandboxAgent, process_id: str, text: bytes) -> list[ProcessLogEntry]:
    """Follow a log until a text was printed."""
    found: list[ProcessLogEntry] = []
    with anyio.fail_after(SECONDS):
        async with aclosing(sdk.processes.follow_logs(process_id)) as entries:
            async for entry in entries:
                found.append(entry)
                if text in b"".join(each.data for each in found):
                    break
    return found


@BOTH
async def test_a_process_is_created_given_input_followed_and_deleted(
    sdk: SandboxAgent, tmp_path: Path
) -> None:
    processes = sdk.processes
    script = 'pwd; echo "$COLOR"; read line; echo "$line"; exit 3'
    created = await processes.create("sh", ["-c", script], cwd=tmp_path, env={"COLOR": "red"})
    assert isinstance(created, ProcessInfo)
    assert (created.status, created.owner, created.cwd) == ("running", "user", str(tmp_path))
    assert [process.id for process in await processes.list()] == [created.id]
    assert await processes.list(owner="desktop") == []
    with pytest.raises(ConflictError):
        await processes.delete(created.id)
    assert await processes.send_input(created.id, "hö\n") == 4
    assert await collect(sdk, created.id) == f"{tmp_path}\nred\nhö\n".encode()
    ended = await processes.get(created.id)
    assert (ended.status, ended.exit_code, ended.pid) == ("exited", 3, None)
    logs = await processes.logs(created.id, tail=1)
    assert logs.entries[-1].data.endswith("hö\n".encode())
    assert logs.gap is None
    assert (await processes.logs(created.id, stream="stderr")).entries == []
    assert (await processes.logs(created.id, since=logs.entries[-1].sequence)).entries == []
    with pytest.raises(ConflictError):
        await processes.send_input(created.id, b"x")
    await processes.delete(created.id)
    for call in (processes.get, processes.stop, processes.kill, processes.delete, processes.logs):
        with pytest.raises(NotFoundError):
            await call(created.id)
    with pytest.raises(NotFoundError):
        await collect(sdk, created.id)


@BOTH
async def test_a_command_runs_to_its_end(sdk: SandboxAgent) -> None:
    done = await sdk.processes.run("sh", ["-c", "echo out; echo wrong >&2; exit 3"], cwd="/")
    assert (done.exit_code, done.stdout, done.stderr, done.timed_out) == (3, "out\n", "wrong\n", False)
    cut = await sdk.processes.run("printf", ["12345"], max_output_bytes=3)
    assert (cut.stdout, cut.stdout_truncated) == ("123", True)
    late = await sdk.processes.run("sleep", ["600"], timeout=0.2)
    assert (late.timed_out, late.exit_code) == (True, None)
    with pytest.raises((InvalidRequestError, StreamError)):
        await sdk.processes.run("no-such-command")


@BOTH
async def test_processes_are_stopped_and_killed(sdk: SandboxAgent) -> None:
    processes = sdk.processes
    created = await processes.create(
        "sh", ["-c", "trap 'echo no' TERM; echo up; while :; do sleep 0.05; done"]
    )
    await until(sdk, created.id, b"up")
    assert (await processes.stop(created.id, wait=0.001)).status == "running"
    await until(sdk, created.id, b"no")
    assert (await processes.kill(created.id, wait=20)).status == "exited"
    polite = await processes.create("sleep", ["600"])
    assert (await processes.stop(polite.id)).status == "exited"


@BOTH
async def test_limits_are_read_and_replaced(sdk: SandboxAgent) -> None:
    before = await sdk.processes.get_config()
    assert isinstance(before, ProcessConfig)
    changed = msgspec.structs.replace(before, max_concurrent_processes=1, max_input_bytes_per_request=2)
    assert await sdk.processes.set_config(changed) == changed
    assert await sdk.processes.get_config() == changed
    created = await sdk.processes.create("cat")
    with pytest.raises(ConflictError):
        await sdk.processes.create("cat")
    with pytest.raises((PayloadTooLargeError, InvalidRequestError)):
        await sdk.processes.send_input(created.id, b"123")
    await sdk.processes.kill(created.id)


@BOTH
async def test_a_log_is_followed_from_an_entry_by_stream_or_by_its_tail(sdk: SandboxAgent) -> None:
    created = await sdk.processes.create(
        "sh", ["-c", "while read line; do echo $line; echo e$line >&2; done"]
    )
    for number in range(3):
        await sdk.processes.send_input(created.id, f"{number}\n")
        await until(sdk, created.id, b"e%d\n" % number)
    await sdk.processes.kill(created.id)
    await collect(sdk, created.id)
    all_of = [entry.sequence for entry in (await sdk.processes.logs(created.id)).entries]
    assert all_of == [*range(1, len(all_of) + 1)]
    follow = sdk.processes.follow_logs
    with anyio.fail_after(SECONDS):
        assert [entry.sequence async for entry in follow(created.id, since=2)] == all_of[2:]
        assert [entry.sequence async for entry in follow(created.id, tail=2)] == all_of[-2:]
        assert [entry.sequence async for entry in follow(created.id, since=1, tail=2)] == all_of[-2:]
        errors = [entry async for entry in follow(created.id, stream="stderr")]
        assert [entry async for entry in follow(created.id, since=all_of[-1])] == []
    assert b"".join(entry.data for entry in errors) == b"e0\ne1\ne2\n"
    assert {entry.stream for entry in errors} == {"stderr"}


async def test_a_process_is_restarted(sdk: SandboxAgent) -> None:
    policy = ProcessRestartRequest(policy="on_failure", delay_ms=1, max_restarts=2)
    created = await sdk.processes.create("sh", ["-c", "echo $$; exit 3"], restart=policy)
    assert len((await collect(sdk, created.id)).split()) == 3
    restart = (await sdk.processes.get(created.id)).restart
    assert restart is not None
    assert (restart.policy, restart.state, restart.count) == ("on_failure", "ended", 2)
    always = await sdk.processes.create("sleep", ["600"], restart="always")
    assert always.restart is not None
    assert always.restart.policy == "always"
    assert (await sdk.processes.kill(always.id)).exit_signal == signal.SIGKILL


async def test_each_entry_is_returned_once_over_connections_that_are_cut(server: ServerProcess) -> None:
    """The gateway cuts all connections again and again."""
    seen: list[str] = []
    async with (
        Gateway(server.port, Faults(cut_every=0.1, on_request=lambda line, _: seen.append(line))) as gateway,
        SandboxAgent.connect(base_url=gateway.url) as sdk,
        SandboxAgent.connect(base_url=server.url) as direct,
    ):
        script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; sleep 0.02; done"
        created = await direct.processes.create("sh", ["-c", script])
        with anyio.fail_after(SECONDS):
            entries = [entry async for entry in sdk.processes.follow_logs(created.id)]
    assert len([line for line in seen if "/logs" in line]) > 2
    assert [entry.sequence for entry in entries] == [*range(1, len(entries) + 1)]
    assert b"".join(entry.data for entry in entries).split() == [b"%d" % i for i in range(1, 61)]


async def full_log(sdk: SandboxAgent) -> tuple[str, int]:
    """Return a process with a full log, and the sequence of its oldest entry."""
    config = await sdk.processes.get_config()
    await sdk.processes.set_config(msgspec.structs.replace(config, max_log_bytes_per_process=MIB))
    created = await sdk.processes.create("sh", ["-c", "head -c 5000000 /dev/zero"])
    await collect(sdk, created.id)
    logs = await sdk.processes.logs(created.id)
    assert logs.gap is not None
    assert (logs.gap.from_, logs.gap.to) == (1, logs.entries[0].sequence - 1)
    return created.id, logs.entries[0].sequence


async def test_a_gap_after_an_entry_that_was_named_is_an_error_or_skipped(sdk: SandboxAgent) -> None:
    process_id, first = await full_log(sdk)
    follow = sdk.processes.follow_logs
    with pytest.raises(GoneError) as raised:
        _ = [entry async for entry in follow(process_id, since=1)]
    assert raised.value.extensions == {"missingFrom": 2, "missingTo": first - 1}
    for found in (
        [entry async for entry in follow(process_id, since=1, allow_gaps=True)],
        [entry async for entry in follow(process_id, since=first - 1)],
        [entry async for entry in follow(process_id)],
    ):
        assert found[0].sequence == first


async def test_a_process_of_a_server_that_was_restarted_is_gone(server: ServerProcess) -> None:
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        created = await sdk.processes.create("sh", ["-c", "echo up; sleep 600"])
        async with aclosing(sdk.processes.follow_logs(created.id)) as entries:
            assert (await anext(entries)).data == b"up\n"
            await anyio.to_thread.run_sync(server.kill)
            await anyio.to_thread.run_sync(server.start)
            other = await sdk.processes.create("sh", ["-c", "echo other; sleep 600"])
            assert other.id == created.id
            with anyio.fail_after(SECONDS), pytest.raises(GoneError, match="restarted"):
                await anext(entries)
        await sdk.processes.kill(other.id)


async def test_a_process_that_is_created_is_not_created_twice() -> None:
    """The connection breaks: whether the process runs is not known."""
    sent: list[str] = []

    async def answer(request: httpx2.Request) -> httpx2.Response:
        sent.append(f"{request.method} {request.url.path}")
        raise httpx2.ReadError("cut")

    async with SandboxAgent.connect(transport=httpx2.MockTransport(answer), skip_health_check=True) as sdk:
        with pytest.raises(ConnectionLostError):
            await sdk.processes.create("true")
    assert sent == ["POST /v1/processes"]
