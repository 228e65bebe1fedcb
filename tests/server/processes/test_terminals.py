"""Terminals over WebSockets: what viewers send and receive, and how they and their process end."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import anyio
import httpx2
import pytest

from tests.server.processes.test_screen import Seen
from tests.server.processes.viewing import TOKEN, Terminals, terminals, view_by_path
from tests.support.servers import ServerProcess, our_server, serving

pytestmark = pytest.mark.anyio

RESIZE = {"cols": 91, "rows": 31}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with our_server(tmp_path_factory.mktemp("terminals"), token=TOKEN) as running:
        yield running


@pytest.fixture
async def there(server: ServerProcess) -> AsyncGenerator[Terminals]:
    async with terminals(server) as found:
        yield found


async def test_a_shell_reads_input_and_its_exit_code_ends_the_terminal(there: Terminals) -> None:
    process = await there.shell()
    async with there.view(process) as view:
        await view.says(b"> ")
        await view.send(type="input", data="echo text-$((1+1))\r")
        await view.says(b"text-2")
        await view.type("echo \u00e9-$((1+2)) $TERM; tty\r")
        await view.says("\u00e9-3 xterm-256color".encode())
        await view.says(b"/dev/")
        await view.type("exit 7\r")
        assert await view.frame("exit") == {"type": "exit", "exitCode": 7}
        await view.rest()
        assert view.code == 1000
    info = await there.get(process)
    assert (info["status"], info["exitCode"], info["tty"]) == ("exited", 7, True)
    log = (await there.client.get(f"/v1/processes/{process}/logs")).json()
    assert {entry["stream"] for entry in log["entries"]} == {"pty"}


async def test_the_terminal_controls_its_session(there: Terminals) -> None:
    script = "trap 'echo int; exit 3' INT; (: < /dev/tty) && echo ready; while :; do sleep 0.01; done"
    process = await there.create("sh", "-c", script)
    async with there.view(process) as view:
        await view.says(b"ready")
        await view.type("\x03")
        assert (await view.frame("exit"))["exitCode"] == 3
        assert view.output.endswith(b"^Cint\r\n")


async def test_the_size_is_that_of_the_request_and_then_of_resizes(there: Terminals) -> None:
    size = "trap 'stty size' WINCH; stty size; while :; do sleep 0.01; done"
    process = await there.create("sh", "-c", size, cols=100, rows=40)
    async with there.view(process) as view:
        await view.says(b"40 100")
        answer = await there.client.post(f"/v1/processes/{process}/terminal/resize", json=RESIZE)
        assert (answer.status_code, answer.json()) == (200, RESIZE)
        await view.says(b"31 91")
        await view.send(type="resize", cols=55, rows=22)
        await view.says(b"22 55")
    await there.kill(process)


async def test_without_a_size_it_is_80_by_24(there: Terminals) -> None:
    process = await there.create("stty", "size")
    async with there.view(process) as view:
        assert await view.rest() == b"24 80\r\n"


@pytest.mark.parametrize("body", [{"cols": -1, "rows": 5}, {"cols": 65_536, "rows": 5}, {"cols": 5}, {}])
async def test_an_impossible_size_is_refused(there: Terminals, body: dict[str, int]) -> None:
    process = await there.create("sleep", "1000")
    answer = await there.client.post(f"/v1/processes/{process}/terminal/resize", json=body)
    assert answer.status_code == 400
    async with there.view(process) as view:
        await view.send(type="resize", **body)
        assert "invalid terminal frame" in (await view.frame("error"))["message"]
    await there.kill(process)


async def test_several_viewers_see_the_same_and_one_that_leaves_ends_nothing(there: Terminals) -> None:
    process = await there.shell()
    async with there.view(process) as one, there.view(process) as two:
        await one.type("echo first-$((1+1))\r")
        await two.says(b"first-2")
        await two.type("echo second-$((1+2))\r")
        await one.says(b"second-3")
        await two.send(type="close")
        await two.rest()
        assert two.code == 1000
        await one.socket.close()
    async with there.view(process) as three:
        seen = Seen(await three.says(b"second-3"), cols=80, rows=24)
        # The shell's prompt may be before it: the command was typed before there was one.
        assert any("first-2" in line for line in seen.display)
        await three.type("exit\r")
        assert (await three.frame("exit"))["exitCode"] == 0


async def test_the_last_screen_of_a_process_that_has_ended_is_shown(there: Terminals) -> None:
    process = await there.create("sh", "-c", "seq 1 1000; printf 'the \\033[31mend\\033[m'; exit 3")
    async with there.view(process) as first:
        whole = await first.rest()
        assert whole == b"".join(b"%d\r\n" % n for n in range(1, 1001)) + b"the \x1b[31mend\x1b[m"
    async with there.view(process) as late:
        seen = Seen(await late.rest(), cols=80, rows=24)
        assert late.frames == [{"type": "exit", "exitCode": 3}]
        assert late.code == 1000
    assert [line.rstrip() for line in seen.display] == [*(str(n) for n in range(978, 1001)), "the end"]
    answer = await there.client.post(f"/v1/processes/{process}/terminal/resize", json=RESIZE)
    assert answer.status_code == 409


async def test_a_process_that_a_signal_ends_has_no_exit_code(there: Terminals) -> None:
    process = await there.create("sleep", "1000")
    async with there.view(process) as view:
        await there.kill(process)
        assert await view.frame("exit") == {"type": "exit", "exitCode": None}
    assert (await there.get(process))["exitSignal"] == 9


FRAMES = {
    "binary": b"\x00\x01",
    "not JSON": "nope",
    "not an object": "[1]",
    "no type": "{}",
    "an unknown type": '{"type": "nope"}',
    "no data": '{"type": "input"}',
    "not base64": '{"type": "input", "data": "%%%", "encoding": "base64"}',
    "an unknown encoding": '{"type": "input", "data": "a", "encoding": "hex"}',
    "nested deeply": "[" * 100_000,
    "too large": json.dumps({"type": "input", "data": "x" * 65_537}),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_an_invalid_message_is_answered_and_the_terminal_goes_on(there: Terminals, name: str) -> None:
    process = await there.create("cat")
    async with there.view(process) as view:
        await view.socket.send(FRAMES[name])
        assert (await view.frame("error"))["message"]
        await view.type("still here\r")
        await view.says(b"still here\r\nstill here\r\n")
    assert (await there.kill(process))["status"] == "exited"


async def test_a_message_that_breaks_the_rules_of_websockets_ends_the_viewer_not_the_terminal(
    there: Terminals,
) -> None:
    process = await there.create("cat")
    async with there.view(process) as bad, there.view(process) as good:
        bad.socket.transport.write(b"\xff\xff\xff")
        await bad.rest()
        assert bad.code == 1002
        await good.type("on\r")
        await good.says(b"on\r\non\r\n")
    await there.kill(process)


async def test_a_slow_viewer_lets_the_process_wait_and_misses_nothing(there: Terminals) -> None:
    """More is printed than all buffers on the way hold, and the viewer reads nothing at first."""
    count = 3_000_000
    process = await there.create("sh", "-c", f"read go; seq 1 {count}")
    async with there.view(process, max_queue=1) as view, there.view(process) as other:
        await view.type("go\r")
        await other.says(b"\n100000\r\n")
        other.output = b""
        await other.socket.close()
        text = await view.rest()
    lines = text.split(b"\r\n")
    assert lines[:2] == [b"go", b"1"]
    assert lines[1:-1] == [b"%d" % n for n in range(1, count + 1)]
    assert view.frames == [{"type": "exit", "exitCode": 0}]


async def test_without_viewers_a_process_prints_as_fast_as_it_can(there: Terminals) -> None:
    process = await there.create("sh", "-c", "seq 1 1000000; echo done")
    with anyio.fail_after(60):  # that stream ends with the process
        await there.client.get(f"/v1/processes/{process}/logs?follow=true&since={2**62}")
    assert (await there.get(process))["status"] == "exited"
    async with there.view(process) as view:
        assert b"done" in await view.rest()


async def test_a_process_that_is_restarted_keeps_its_viewers(there: Terminals) -> None:
    restart = {"policy": "on_failure", "delayMs": 1, "maxRestarts": 2}
    process = await there.create("sh", "-c", "echo run; stty size; exit 4", restart=restart, cols=70, rows=20)
    async with there.view(process) as view:
        assert await view.rest() == b"run\r\n20 70\r\n" * 3
        assert view.frames == [{"type": "exit", "exitCode": 4}]


async def test_a_viewer_that_does_not_read_is_disconnected_and_its_process_goes_on(tmp_path: Path) -> None:
    with our_server(tmp_path, token=TOKEN, module="tests.support.impatient_server") as server:
        async with terminals(server) as there:
            process = await there.create("sh", "-c", "read go; seq 1 3000000; echo done")
            raw = socket.create_connection(("127.0.0.1", server.port))
            with raw:
                head = [
                    f"GET /v1/processes/{process}/terminal/ws HTTP/1.1",
                    "Host: localhost",
                    "Connection: Upgrade",
                    "Upgrade: websocket",
                    "Sec-WebSocket-Version: 13",
                    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
                    f"Authorization: Bearer {TOKEN}",
                ]
                raw.sendall("\r\n".join([*head, "", ""]).encode())
                assert raw.recv(12) == b"HTTP/1.1 101"
                async with there.view(process) as view:
                    await view.type("go\r")
                    assert (await view.rest()).endswith(b"3000000\r\ndone\r\n")
                    assert view.code == 1000


async def test_input_that_is_not_read_is_refused_until_it_is(tmp_path: Path) -> None:
    with our_server(tmp_path, token=TOKEN, module="tests.support.impatient_server") as server:
        async with terminals(server) as there:
            # In raw mode, the kernel holds about 20 KB of input. What is more waits.
            wait = "while [ ! -e go ]; do sleep 0.01; done; echo go"
            script = f"stty raw -echo; echo raw; {wait}; head -c 48000 | wc -c; head -c 3"
            process = await there.create("sh", "-c", script, cwd=str(tmp_path))
            async with there.view(process) as view:
                await view.says(b"raw")
                await view.type("x" * 48_000)
                assert "has not read its input" in (await view.frame("error"))["message"]
                await view.type("refused")
                assert "has not read its input" in (await view.frame("error"))["message"]
                (tmp_path / "go").touch()
                await view.says(b"48000")
                await view.type("end")
                await view.says(b"end")
                assert (await view.frame("exit"))["exitCode"] == 0


async def test_viewers_of_a_server_that_ends_are_told_so(tmp_path: Path) -> None:
    with our_server(tmp_path, token=TOKEN) as server:
        async with terminals(server) as there:
            process = await there.create("sh", "-c", "trap '' TERM; echo here; sleep 1000")
            pid = (await there.get(process))["pid"]
            async with there.view(process) as view:
                await view.says(b"here")
                os.kill(server.pid, signal.SIGTERM)
                await view.rest()
                assert view.code == 1001
                assert not view.frames
        server.stop()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_a_terminal_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serving(path):
        transport = httpx2.AsyncHTTPTransport(uds=str(path))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            body = {"command": "sh", "args": ["-c", "echo hello; exit 5"], "tty": True}
            process = (await client.post("/v1/processes", json=body)).json()["id"]
        async with view_by_path(str(path), process) as view:
            assert await view.rest() == b"hello\r\n"
            assert [frame["type"] for frame in view.frames] == ["ready", "exit"]
