"""Sandboxes in containers of real engines: what their agents can reach, how they end and what is left."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from sandbox_agent import Mount, SandboxAgent, SandboxAgentError, SandboxDestroyedError, Session
from sandbox_agent.providers.engine.provider import EngineProvider
from sandbox_agent.testing.providers import raw_id_of, run_command
from sandbox_agent.wire.api import IDLE_EXIT_CODE
from tests.support import shell_agent
from tests.support.engines import Engine

pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]

SECRET = "a secret of the host"
OPTIONS: dict[str, Any] = {
    "mounts": [Mount(shell_agent.__file__, "/agent.py")],
    "agent_commands": {"shell": ["python3", "/agent.py"]},
}


@contextlib.asynccontextmanager
async def sandboxed(engine: Engine, **options: Any) -> AsyncGenerator[tuple[SandboxAgent, Session]]:
    """An agent that runs commands in a container."""
    async with SandboxAgent.start(sandbox=engine.provider(**OPTIONS, **options)) as sdk:
        try:
            yield sdk, await sdk.create_session(agent="shell")
        finally:
            await sdk.destroy_sandbox()


async def until_exited(engine: Engine, raw_id: str) -> int:
    """Wait until a container has exited and return its exit code."""
    with anyio.fail_after(60):
        answer = await engine.api.request("POST", f"/containers/{raw_id}/wait", timeout=60)
    return int(answer.json()["StatusCode"])


async def test_an_agent_cannot_leave_its_container(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(SECRET)
    async with sandboxed(engine) as (_, session), await anyio.open_process(["sleep", "600"]) as other:
        try:
            assert SECRET not in await run_command(session, f"cat {tmp_path}/secret; cat /root/.ssh/*")
            assert not (await run_command(session, "ls /root")).endswith("[0]")
            for path in (
                "/x",
                "/usr/x",
                "/etc/x",
                "/opt/sandbox-agent/x",
                "/agent.py",
                "/run/sandbox-agent/x",
            ):
                if engine.name == "podman" and path == "/run/sandbox-agent/x":
                    continue  # its volumes belong to the container's user; see the test of the token
                assert not (await run_command(session, f"echo >> {path}")).endswith("[0]"), path
            found = await run_command(session, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
            assert "pytest" not in found
            assert "sleep 600" not in found
            assert not (await run_command(session, f"kill -9 {other.pid}")).endswith("[0]")
            assert other.returncode is None
            assert not (await run_command(session, "ls /var/run/docker.sock")).endswith("[0]")
        finally:
            other.kill()


async def test_an_agent_has_no_privileges(engine: Engine) -> None:
    async with sandboxed(engine) as (_, session):
        found = await run_command(session, "id -u; grep -E 'Cap|NoNewPrivs' /proc/self/status")
        uid, *lines = found.removesuffix("[0]").strip().splitlines()
        values = dict(line.split(":\t") for line in lines)
        assert uid == "1000"
        assert values.pop("NoNewPrivs") == "1"
        assert {int(value, 16) for value in values.values()} == {0}
        for command in ("mount -t tmpfs x /tmp", "chroot / true", "mknod /tmp/x b 8 0", "su -c true"):
            assert not (await run_command(session, f"{command} </dev/null 2>&1")).endswith("[0]"), command


# Starts processes until one is refused. They end with it.
FORKS = """
import os
r, w = os.pipe()
for n in range(500):
    try:
        child = os.fork()
    except OSError as error:
        print("refused:", error)
        break
    if child == 0:
        os.close(w)
        os.read(r, 1)
        os._exit(0)
"""


async def test_an_agent_cannot_exhaust_processes_or_memory(engine: Engine) -> None:
    async with sandboxed(engine, memory="256m", pids=64) as (sdk, session):
        assert "refused: [Errno 11]" in await run_command(session, f"python3 -c '{FORKS}'")
        memory = "python3 -c 'print(len(bytearray(2**30)))'"
        found = await run_command(session, memory)
        assert "1073741824" not in found
        assert not found.endswith("[0]")
        assert (await sdk.get_health()).status == "ok"


async def test_an_agent_without_a_network_has_only_loopback(engine: Engine) -> None:
    async with sandboxed(engine, network="none") as (_, session):
        found = await run_command(session, "cat /proc/net/dev")
        assert {line.split(":")[0].strip() for line in found.splitlines() if ":" in line} == {"lo"}


async def test_a_socket_that_an_agent_puts_in_its_place_is_not_used(engine: Engine) -> None:
    async with sandboxed(engine, network="none") as (sdk, session):
        code = (
            "import os, socket; os.rename(p := '/run/sandbox-agent-socket/server.sock', p + '.old'); "
            "s = socket.socket(socket.AF_UNIX); s.bind(p); s.listen(); "
            "print('listening', flush=True); s.accept()"
        )
        await run_command(
            session, f'python3 -c "{code}" >/tmp/out 2>&1 & until grep -q listening /tmp/out; do :; done'
        )
        provider = sdk.sandbox
        assert isinstance(provider, EngineProvider)
        transport = await provider.get_transport(raw_id_of(sdk))
        assert transport is not None
        async with httpx2.AsyncClient(transport=transport) as client:
            with pytest.raises(httpx2.ConnectError, match="is not its server"):
                await client.get("http://sandbox/v1/health")
        move = "cd /run/sandbox-agent-socket && mv server.sock.old server.sock"
        assert (await run_command(session, move)).endswith("[0]")


async def test_the_token_and_the_variables_are_not_shown(engine: Engine) -> None:
    async with sandboxed(engine, env={"API_KEY": SECRET}) as (sdk, session):
        raw_id = raw_id_of(sdk)
        provider = sdk.sandbox
        assert isinstance(provider, EngineProvider)
        token = await provider.get_token(raw_id)
        shown = str(await engine.api.inspect(raw_id)) + await provider.logs(raw_id)
        found = await run_command(
            session, "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /run/sandbox-agent/* | tr '\\0' '\\n'"
        )
        assert f"API_KEY={SECRET}" in found  # the agent's own variable
        assert SECRET not in shown
        assert token not in shown + found


async def test_a_token_that_was_replaced_is_refused(engine: Engine) -> None:
    """Podman's volumes belong to the container's user, who could put a token that it knows there."""
    async with sandboxed(engine) as (sdk, _):
        raw_id = raw_id_of(sdk)
        known = (
            "printf 'token=aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\\nsandbox-agent-end' > /run/sandbox-agent/secret"
        )
        code, _ = await engine.api.execute(
            raw_id, ["sh", "-c", f"chmod 600 /run/sandbox-agent/secret; {known}"], user="0"
        )
        assert code == 0 or engine.name == "docker"
        with pytest.raises(SandboxAgentError, match="was changed"):
            await engine.provider().get_token(raw_id)


async def test_a_container_that_is_killed_starts_again_with_its_files(engine: Engine) -> None:
    async with sandboxed(engine) as (sdk, session):
        await run_command(session, "echo kept > ~/file; echo kept > /workspace/file")
        url = await sdk.sandbox.get_url(raw_id_of(sdk)) if sdk.sandbox else None
        await engine.api.request("POST", f"/containers/{raw_id_of(sdk)}/kill")
        assert (await run_command(session, "cat ~/file /workspace/file")).endswith("kept\nkept\n[0]")
        assert sdk.sandbox is not None
        assert await sdk.sandbox.get_url(raw_id_of(sdk)) == url


PROGRAM = """
import asyncio, sys
from sandbox_agent import {name}, SandboxAgent

async def main():
    provider = {name}("{image}", host="{host}", max_lifetime={lifetime})
    sdk = await SandboxAgent.start(sandbox=provider)
    session = await sdk.create_session(agent="mock")
    await session.prompt("echo hello")
    print(sdk.sandbox_id, flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


async def test_the_sandbox_of_a_killed_program_is_found_or_ends_and_is_removed(engine: Engine) -> None:
    code = PROGRAM.format(name=engine.name, image="sandbox-agent-test:latest", host=engine.host, lifetime=1)
    async with await anyio.open_process([sys.executable, "-c", code], stderr=None) as program:
        assert program.stdout is not None
        sandbox_id = (await program.stdout.receive()).decode().strip()
        program.kill()
    raw_id = sandbox_id.partition("/")[2]
    # Another process uses it again: it is the same, and ends only afterwards.
    async with SandboxAgent.start(sandbox=engine.provider(), sandbox_id=sandbox_id) as sdk:
        session = await sdk.create_session(agent="mock")
        await session.prompt("echo again")
    assert await until_exited(engine, raw_id) == IDLE_EXIT_CODE
    assert raw_id in await engine.containers()
    with anyio.fail_after(30):
        while raw_id in await engine.containers():
            async with sandboxed(engine):
                pass
    with pytest.raises(SandboxDestroyedError):
        await engine.provider().reconnect(raw_id)


async def test_a_snapshot_has_the_files_and_neither_token_nor_variables(engine: Engine) -> None:
    async with sandboxed(engine, env={"API_KEY": SECRET}) as (sdk, session):
        await run_command(session, "echo kept > ~/file; echo kept > /workspace/file")
        provider = sdk.sandbox
        assert isinstance(provider, EngineProvider)
        image = await provider.snapshot(raw_id_of(sdk))
    shown = (await engine.api.request("GET", f"/images/{image}/json")).text
    assert SECRET not in shown
    async with sandboxed(engine, image=image) as (_, session):
        assert (await run_command(session, "cat ~/file /workspace/file; echo $API_KEY")).startswith(
            "kept\nkept\n\n"
        )
    await engine.api.request("DELETE", f"/images/{image}", params={"force": "true"})


async def test_twenty_sandboxes_at_once_all_answer(docker_engine: Engine) -> None:
    answers: list[str] = []

    async def use() -> None:
        async with SandboxAgent.start(sandbox=docker_engine.provider(memory="256m")) as sdk:
            session = await sdk.create_session(agent="mock")
            answers.append((await session.prompt("echo hello")).stop_reason)
            await sdk.destroy_sandbox()

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(use)
    assert answers == ["end_turn"] * 20
    assert await docker_engine.containers() == []


async def test_a_missing_image_is_named_with_what_builds_it(engine: Engine) -> None:
    with pytest.raises(SandboxAgentError, match=r"the image 'sandbox-agent-py:.*': build it with"):
        await EngineProvider.create(engine.provider(image=None))
    with pytest.raises(SandboxAgentError, match="does not have the image 'missing:1': build it"):
        await engine.provider(image="missing:1", pull="never").create()


async def test_a_server_that_does_not_start_says_why_and_leaves_no_container(engine: Engine) -> None:
    with pytest.raises(SandboxAgentError, match=r"(?s)exited with code 2 at its start: .*--missing"):
        await engine.provider(args=["--missing"]).create()
    assert await engine.containers() == []


async def test_a_container_that_is_no_sandbox_is_left_alone(engine: Engine) -> None:
    body = {"Image": "sandbox-agent-test:latest", "Cmd": ["sleep", "600"]}
    await engine.api.request("POST", "/containers/create", params={"name": "database"}, body=body)
    try:
        for call in ("destroy", "reconnect", "pause", "ensure_server"):
            with pytest.raises(SandboxAgentError, match="is not a sandbox of this package"):
                await getattr(engine.provider(), call)("database")
        assert await engine.api.inspect("database") is not None
    finally:
        await engine.api.remove("database")


async def test_an_id_that_is_no_name_is_a_sandbox_that_does_not_exist(engine: Engine) -> None:
    for raw_id in ("../images", "a/b", "x?force=true", ""):
        with pytest.raises(SandboxDestroyedError):
            await engine.provider().reconnect(raw_id)


async def test_a_paused_sandbox_can_be_destroyed(engine: Engine) -> None:
    provider = engine.provider()
    raw_id = await provider.create()
    await provider.pause(raw_id)
    await provider.destroy(raw_id)
    assert await engine.containers() == []


async def test_a_workspace_of_root_is_refused_unless_the_user_is_chosen(
    engine: Engine, tmp_path: Path
) -> None:
    assert os.geteuid() == 0
    with pytest.raises(SandboxAgentError, match=r"belongs to root.*chown -R 1000:1000"):
        await engine.provider(workspace=tmp_path).create()
