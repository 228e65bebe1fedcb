"""The server's own life: it drains on SIGTERM, leaves nobody when it is killed, and survives want."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx2
import pytest

from tests.runtime.children import gone
from tests.server.talk import Talk, envelope, talk
from tests.server.test_stream import descriptors
from tests.support.servers import ServerProcess, descendants, our_server, put_launcher

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_signal_drains_the_server_and_leaves_no_child(
    tmp_path: Path, how: signal.Signals, store: str
) -> None:
    option = "memory" if store == "memory" else f"sqlite:{tmp_path}/store.db"
    with our_server(tmp_path, "--store", option) as server:
        async with talk(server) as talking, talking.stream() as stream:
            await talking.prompt("spawn deaf")
            await talking.prompt("deaf")
            await stream.until('"id":4')
            grandchild = int(stream.texts.split("process ")[1].split()[0])
            tree = [*descendants(server.pid), grandchild]
            assert len(tree) >= 3  # the agent, the warden, the grandchild
            prompt = talking.start("stall")
            idle = Talk(talking.client, "idle")
            await idle.open()
            begun = time.monotonic()
            os.kill(server.pid, how)
            with anyio.fail_after(15):
                assert (await prompt).status_code == 500
                await stream.rest()
            assert b"agent_exited" in stream.events[-1].data
            code = await anyio.to_thread.run_sync(server.stop)
            assert time.monotonic() - begun < 5
            assert code == 0
            assert gone(tree)


@pytest.mark.soak
async def test_a_viewer_that_never_reads_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with our_server(tmp_path) as server:
        async with talk(server) as talking, talking.stream():
            await talking.prompt("burst 30000 300")  # more than the socket takes
            # fails after 15 s; it takes 2 s, and as long as the store needs for what the agent wrote
            assert await anyio.to_thread.run_sync(server.stop) == 0


async def test_a_warden_that_is_stopped_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with our_server(tmp_path) as server:
        async with talk(server):
            tree = descendants(server.pid)
            warden = tree[0]  # the parent of the others
            assert _is(warden, b"warden_main")
            os.kill(warden, signal.SIGSTOP)
            assert await anyio.to_thread.run_sync(server.stop) == 0  # fails after 15 s
            assert gone(tree)


@pytest.mark.soak
async def test_a_server_that_hangs_at_its_end_is_ended_within_8_seconds(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, sys, time\nif 'server' in sys.argv: atexit.register(time.sleep, 600)\n"
    )
    with our_server(tmp_path, env={"PYTHONPATH": str(tmp_path)}) as server:
        async with talk(server):
            tree = descendants(server.pid)
            assert await anyio.to_thread.run_sync(server.stop) == 1
            assert gone(tree)
        assert "the server did not end within 7 s: 0 envelopes are lost" in server.log.read_text()


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_killed_server_leaves_no_agent_and_no_grandchild(tmp_path: Path, deaf: bool) -> None:
    with our_server(tmp_path) as server:
        async with talk(server) as talking, talking.stream() as stream:
            await talking.prompt("spawn deaf")
            if deaf:
                await talking.prompt("deaf")
            await stream.until('"id":4' if deaf else '"id":3')
            grandchild = int(stream.texts.split("process ")[1].split()[0])
            tree = [*descendants(server.pid), grandchild]
            server.kill()
            assert gone(tree)
            server.start()  # for the end of the talk


def test_an_agent_that_was_just_started_is_ended_with_a_killed_server(tmp_path: Path) -> None:
    """Kill it as soon as there is an agent: before its warden has heard of it."""
    for _ in range(5):
        with our_server(tmp_path) as server:
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            headers = {"content-type": "application/json"}
            connection.request("POST", "/v1/acp/x?agent=mock", b'{"id":1,"method":"x"}', headers)
            while not any(_is(pid, b"agents.mock") for pid in descendants(server.pid)):
                pass
            tree = descendants(server.pid)
            server.kill()
            connection.close()
            assert gone(tree)


async def test_running_out_of_descriptors_refuses_agents_and_harms_nobody(tmp_path: Path) -> None:
    with our_server(tmp_path) as server:
        async with talk(server) as talking:
            used = descriptors(server.pid)
            limits = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
            for spare in (4, 6, 8, 10):
                resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + spare, limits[1]))
                others = [Talk(talking.client, f"other-{number}") for number in range(6)]
                statuses: list[int] = []
                for other in others:
                    response = await other.post(
                        envelope("initialize", {"protocolVersion": 1}, 1), agent="mock"
                    )
                    statuses.append(response.status_code)
                assert set(statuses) <= {200, 502}
                assert 502 in statuses
                await talking.prompt("echo still here")
                resource.prlimit(server.pid, resource.RLIMIT_NOFILE, limits)
                for other in others:
                    await other.delete()
            await Talk(talking.client, "after").open()
            assert server.stop() == 0


async def test_the_list_of_agents_can_ask_them_for_their_options(tmp_path: Path) -> None:
    with our_server(tmp_path) as server:  # the shared one has agents that do not answer
        await _ask_agents_for_their_options(server)


async def _ask_agents_for_their_options(server: ServerProcess) -> None:
    async with talk(server, open_=False) as talking:
        plain = (await talking.client.get("/v1/agents/mock")).json()
        assert plain["installed"] is True
        assert "configOptions" not in plain
        for _ in range(2):
            asked = (await talking.client.get("/v1/agents/mock", params={"config": "true"})).json()
            assert {option["id"] for option in asked["configOptions"]} >= {"model", "mode"}
        listed = (await talking.client.get("/v1/agents", params={"config": "true"})).json()["agents"]
        assert "mock" in [each["id"] for each in listed]
        assert all("configOptions" in each for each in listed)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ('"result": 7', None),
        ('"result": {"configOptions": {}}', None),
        ('"result": {"configOptions": [1, null, "x"]}', None),
        ('"error": {"code": 1, "message": "log in first"}', "log in first"),
        ('"error": "no"', "refused"),
    ],
)
async def test_an_agent_that_answers_nonsense_is_listed_with_the_others(
    tmp_path: Path, answer: str, error: str | None
) -> None:
    script = "import sys, json\nfor line in sys.stdin:\n    request = json.loads(line)['id']\n"
    script += f"    print('{{\"id\": ' + str(request) + ', {answer}}}', flush=True)\n"
    (tmp_path / "odd.py").write_text(script)
    put_launcher(tmp_path / "data", "odd", [sys.executable, str(tmp_path / "odd.py")])
    with our_server(tmp_path) as server:
        async with talk(server, open_=False) as talking:
            response = await talking.client.get("/v1/agents", params={"config": "true"})
            assert response.status_code == 200
            agents = {each["id"]: each for each in response.json()["agents"]}
            assert agents["odd"]["configOptions"] == []
            assert (error or "") in agents["odd"].get("configError", "")
            assert "configError" not in agents["mock"]


async def test_a_server_that_ends_while_it_asks_an_agent_leaves_none(
    tmp_path: Path, fresh: Callable[[], str]
) -> None:
    with our_server(tmp_path) as server:
        put_launcher(tmp_path / "data", "silent", ["sleep", "600"])
        async with talk(server, fresh(), open_=False) as talking:

            async def ask() -> None:
                with contextlib.suppress(httpx2.TransportError):
                    await talking.client.get("/v1/agents/silent", params={"config": "true"})

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask)
                with anyio.fail_after(20):
                    while not (tree := [pid for pid in descendants(server.pid) if _is(pid, b"sleep")]):
                        await anyio.lowlevel.checkpoint()
                begun = time.monotonic()
                assert await anyio.to_thread.run_sync(server.stop) == 0
                assert time.monotonic() - begun < 5
                assert gone(tree)


def _is(pid: int, word: bytes) -> bool:
    try:
        return word in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
