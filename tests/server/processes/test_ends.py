"""Nothing that a process has started survives its end, nor that of the server, whatever it does."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

from tests.runtime.children import alive, gone, parent_of
from tests.runtime.test_keeper import BODY, ESCAPED
from tests.server.processes.talk import SECONDS, Talk, output
from tests.server.test_orphans import command, kill_at_once
from tests.support.servers import ServerProcess, descendants, our_server

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="keepers need subreapers, which only Linux has"),
]

PROGRAM = ["-S", "-E", "-c", f"import os, signal, subprocess, sys, time\n{BODY}"]
# The shell's background jobs keep its output open.
BACKGROUND = "setsid sleep 600 & echo $!; sleep 600 & echo $!"


async def escaped(talk: Talk, created: dict[str, Any]) -> list[int]:
    """Return the pids of a process of PROGRAM and of all its descendants, which have left everything."""
    pids: list[int] = []
    async with talk.follow(created["id"]) as stream:
        while len(pids) < ESCAPED:
            event = await stream.next()
            assert event is not None
            assert event.event == "log"
            pids += map(int, output([event.data]).split())
    return [created["pid"], *pids]


async def printed_pids(talk: Talk, process_id: str, count: int) -> list[int]:
    """Return the pids that a script has printed, one in a line."""
    text = b""
    async with talk.follow(process_id) as stream:
        while text.count(b"\n") < count:
            event = await stream.next()
            assert event is not None
            text += output([event.data])
    return [int(line) for line in text.split()]


async def test_a_kill_leaves_no_descendants_that_left_everything(talk: Talk) -> None:
    created = await talk.create(sys.executable, *PROGRAM)
    tree = await escaped(talk, created)
    assert all(alive(pid) for pid in tree)
    assert (await talk.signal(created["id"], "kill"))["status"] == "exited"
    assert gone(tree)


async def test_a_process_whose_keeper_hangs_is_killed(server: ServerProcess, talk: Talk) -> None:
    created = await talk.create("sleep", "600")
    keeper = parent_of(created["pid"])
    assert keeper in helpers(server.pid)
    os.kill(keeper, signal.SIGSTOP)
    assert (await talk.signal(created["id"], "kill"))["status"] == "exited"
    assert gone([created["pid"], keeper])


async def test_stop_reaches_descendants_in_other_sessions(talk: Talk) -> None:
    script = (
        "setsid sh -c 'trap \"echo stopped; exit\" TERM; echo $$; while true; do sleep 0.05; done' & wait"
    )
    created = await talk.shell(f"trap 'wait' TERM; {script}; wait")
    tree = [created["pid"], *await printed_pids(talk, created["id"], 1)]
    ended = await talk.signal(created["id"], "stop")
    assert ended["status"] == "exited"
    assert gone(tree)
    assert b"stopped" in output((await talk.logs(created["id"]))["entries"])


async def test_with_a_process_all_that_it_has_started_ends(talk: Talk) -> None:
    created = await talk.shell(BACKGROUND)
    tree = [created["pid"], *await printed_pids(talk, created["id"], 2)]
    assert (await talk.ended(created["id"]))["exitCode"] == 0
    assert gone(tree)


async def test_a_one_shot_command_that_takes_too_long_is_killed_with_all_that_it_has_started(
    talk: Talk,
) -> None:
    answer = await talk.run(f"{BACKGROUND}; wait", timeoutMs=1500)
    assert (answer["timedOut"], answer["exitCode"]) == (True, None)
    pids = [int(line) for line in answer["stdout"].split()]
    assert len(pids) == 2
    assert gone(pids)


def run_pids(answer: dict[str, Any]) -> list[int]:
    """Return the pids that a one-shot command has left in the background."""
    assert (answer["timedOut"], answer["exitCode"]) == (False, 0)
    pids = [int(line) for line in answer["stdout"].split()]
    assert len(pids) == 2
    assert all(alive(pid) for pid in pids)
    return pids


async def start(talk: Talk) -> list[int]:
    """Start a process whose descendants have left everything, and leave others in the background."""
    tree = await escaped(talk, await talk.create(sys.executable, *PROGRAM))
    return [*tree, *run_pids(await talk.run(BACKGROUND))]


@pytest.mark.parametrize("with_warden", [False, True])
async def test_nothing_is_left_when_the_server_is_killed(tmp_path: Path, with_warden: bool) -> None:
    with our_server(tmp_path) as server:
        async with Talk(server.url) as talk:
            await talk.run("true")
            tree = [*await start(talk), *helpers(server.pid)]
        if with_warden:
            os.kill(helpers(server.pid)[0], signal.SIGKILL)
        server.kill()
        assert gone(tree)


async def test_the_next_server_ends_what_one_that_was_killed_with_its_keepers_has_left(
    tmp_path: Path,
) -> None:
    with our_server(tmp_path) as server:
        async with Talk(server.url) as talk:
            created = await talk.shell(BACKGROUND + "; wait")
            tree = [created["pid"], *await printed_pids(talk, created["id"], 2)]
            tree += run_pids(await talk.run(BACKGROUND))
        own = helpers(server.pid)
        assert len(own) == 3  # the warden, and two keepers
        kill_at_once([server.pid, *own])
        assert gone(own)
        assert all(alive(pid) for pid in tree)
    with our_server(tmp_path):
        assert gone(tree)


def helpers(server: int) -> list[int]:
    """Return the warden and the keepers of a server, which are forks of it."""
    return [pid for pid in descendants(server) if "warden_main" in command(pid)]


async def test_nothing_is_left_when_the_server_ends(tmp_path: Path) -> None:
    with our_server(tmp_path) as server:
        async with Talk(server.url) as talk:
            tree = await start(talk)
        assert server.stop() == 0
        assert gone(tree)


async def test_a_one_shot_command_ends_with_the_server(tmp_path: Path) -> None:
    pids: list[int] = []
    with our_server(tmp_path) as server:
        async with Talk(server.url) as talk, anyio.create_task_group() as tasks:

            async def run() -> None:
                answer = await talk.run(
                    f"echo $$ > {tmp_path}/pid; mv {tmp_path}/pid {tmp_path}/there; sleep 600"
                )
                assert answer["exitSignal"] in (9, 15)

            tasks.start_soon(run)
            with anyio.fail_after(SECONDS):
                while not await anyio.Path(tmp_path / "there").exists():
                    await anyio.lowlevel.checkpoint()
            pids.append(int(await anyio.Path(tmp_path / "there").read_text()))
            assert await anyio.to_thread.run_sync(server.stop) == 0
    assert gone(pids)
