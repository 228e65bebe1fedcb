"""Agents whose server, warden and keepers were killed at once are ended by the next server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from sandbox_agent.runtime.orphans import RunFile, end_orphans
from sandbox_agent.runtime.process_tree import TAG_VARIABLE
from sandbox_agent.runtime.warden import KEEPS
from tests.runtime.children import alive, gone
from tests.server.talk import Talk, talk
from tests.support.servers import ServerProcess, descendants, our_server

pytestmark = pytest.mark.skipif(not KEEPS, reason="needs /proc of Linux")

TAG = "0123456789abcdef" * 2


def kill_at_once(pids: Iterable[int]) -> None:
    """Kill processes that end others when one of them dies."""
    for signum in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            os.kill(pid, signum)


def command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


async def survivors(server: ServerProcess, *agents: Talk) -> list[int]:
    """Let agents survive all but SIGKILL, with a child each; return their pids."""
    for agent in agents:
        await agent.prompt("deaf")
        await agent.prompt("spawn deaf")
    return [
        pid for pid in descendants(server.pid) if "agents.mock" in command(pid) or "sleep" in command(pid)
    ]


@pytest.mark.anyio
async def test_the_next_server_ends_what_a_killed_one_has_left(tmp_path: Path) -> None:
    with our_server(tmp_path) as server:
        async with talk(server, "one") as one, talk(server, "two") as two:
            left = await survivors(server, one, two)
            watching = [server.pid, *(pid for pid in descendants(server.pid) if pid not in left)]
            assert len(left) == 4
            assert len(watching) == 4  # the server, the warden, two keepers
            kill_at_once(watching)
        assert gone(watching[1:])
        assert all(alive(pid) for pid in left)
    with our_server(tmp_path) as server:
        assert gone(left)
        async with talk(server, "again") as talking:
            await talking.start("echo well")
        assert "4 processes of agents were ended" in (tmp_path / "server.log").read_text()
        assert len(list((tmp_path / "data/sandbox-agent/run").iterdir())) == 1
    assert list((tmp_path / "data/sandbox-agent/run").iterdir()) == []


@pytest.mark.anyio
async def test_the_agents_of_a_server_that_runs_are_left_alone(tmp_path: Path) -> None:
    with our_server(tmp_path) as server:
        async with talk(server, "one") as talking:
            await talking.start("echo before")
            with our_server(tmp_path, "--store", "memory"):
                answer = await talking.start("echo meanwhile")
            assert answer.status_code == 200


@pytest.fixture
def other(tmp_path: Path) -> Iterable[subprocess.Popen[bytes]]:
    """A process of its own group without a tag."""
    environment = {name: value for name, value in os.environ.items() if name != TAG_VARIABLE}
    process = subprocess.Popen(["sleep", "600"], start_new_session=True, env=environment)
    yield process
    process.kill()
    process.wait()


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def record(folder: Path, *agents: dict[str, object], **header: object) -> None:
    """Write the file of a server that was killed."""
    run_file = RunFile.create(folder, TAG)
    (path,) = folder.iterdir()
    first = {**json.loads(path.read_bytes()), "server": 0, **header}
    os.close(vars(run_file)["_descriptor"])
    path.write_text("".join(json.dumps(line) + "\n" for line in (first, *agents)) + '{"pid": 1')


def test_an_agent_without_the_tag_is_known_by_its_start_time(
    tmp_path: Path, other: subprocess.Popen[bytes]
) -> None:
    record(tmp_path, {"pid": other.pid, "start": start_time(other.pid)})
    assert end_orphans(tmp_path) == 1
    assert other.wait(10) == -signal.SIGKILL
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", ["start", "boot", "pids", "tag"])
def test_a_process_that_has_the_pid_of_an_agent_is_left_alone(
    tmp_path: Path, other: subprocess.Popen[bytes], wrong: str
) -> None:
    header = {} if wrong == "start" else {wrong: "another"}
    record(tmp_path, {"pid": other.pid, "start": start_time(other.pid) - (wrong == "start")}, **header)
    assert end_orphans(tmp_path) == 0
    assert other.poll() is None
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_runs_is_known_without_its_lock(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    agent: dict[str, object] = {"pid": other.pid, "start": start_time(other.pid)}
    record(tmp_path, agent, server=os.getpid())
    assert end_orphans(tmp_path) == 0
    assert other.poll() is None
    assert len(list(tmp_path.iterdir())) == 1
    record_of_others = next(tmp_path.iterdir())
    record_of_others.unlink()
    record(tmp_path, agent, server=os.getpid(), start=1)
    assert end_orphans(tmp_path) == 1


def test_the_file_of_a_server_that_runs_is_kept(tmp_path: Path, other: subprocess.Popen[bytes]) -> None:
    tagged = subprocess.Popen(["sleep", "600"], env={**os.environ, TAG_VARIABLE: f"{TAG}1"})
    run_file = RunFile.create(tmp_path, TAG)
    try:
        run_file.add(tagged.pid, f"{TAG}1")
        run_file.add(other.pid, f"{TAG}2")  # it has ended, and its pid is another's
        (path,) = tmp_path.iterdir()
        assert [json.loads(line).get("pid") for line in path.read_text().splitlines()] == [None, tagged.pid]
        assert end_orphans(tmp_path) == 0
        assert tagged.poll() is None
        assert list(tmp_path.iterdir()) == [path]
    finally:
        run_file.close()
        tagged.kill()
        tagged.wait()
    assert list(tmp_path.iterdir()) == []


def test_agents_are_recorded_the_moment_they_are_started(tmp_path: Path) -> None:
    run_file = RunFile.create(tmp_path, TAG)
    try:
        started: list[int] = []
        for number in range(100):
            tag = f"{TAG}{number}"
            with subprocess.Popen(["sleep", "600"], env={**os.environ, TAG_VARIABLE: tag}) as agent:
                run_file.add(agent.pid, tag)
                started.append(agent.pid)
                agent.kill()
        (path,) = tmp_path.iterdir()
        assert [json.loads(line).get("pid") for line in path.read_text().splitlines()] == [None, *started]
    finally:
        run_file.close()


def test_the_file_does_not_grow_with_agents_that_have_ended(tmp_path: Path) -> None:
    tagged = subprocess.Popen(["sleep", "600"], env={**os.environ, TAG_VARIABLE: f"{TAG}1"})
    run_file = RunFile.create(tmp_path, TAG)
    try:
        for _ in range(1000):
            run_file.add(tagged.pid, f"{TAG}1")
            run_file.remove(tagged.pid)
        run_file.add(tagged.pid, f"{TAG}1")
        (path,) = tmp_path.iterdir()
        lines = path.read_text().splitlines()
        assert len(lines) < 300
        assert json.loads(lines[-1])["pid"] == tagged.pid
    finally:
        run_file.close()
        tagged.kill()
        tagged.wait()
