"""Processes that have ended are started again, as their policy says, until they are stopped."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent.server.processes.restarts import Restarts
from sandbox_agent.wire.processes import ProcessRestartRequest
from tests.runtime.children import gone
from tests.server.processes.talk import SECONDS, Talk, output
from tests.server.processes.test_processes import problem

pytestmark = pytest.mark.anyio

QUICK = {"delayMs": 1, "maxDelayMs": 5}
SLOW = {"delayMs": 3_600_000, "maxDelayMs": 3_600_000}


async def waiting(talk: Talk, process_id: str) -> dict[str, Any]:
    """Return a process when it waits to be restarted."""
    with anyio.fail_after(SECONDS):
        while (found := await talk.get(process_id))["restart"]["state"] != "waiting":
            pass
    return found


@pytest.mark.parametrize(
    ("policy", "code", "starts"),
    [("never", 1, 1), ("on_failure", 0, 1), ("on_failure", 1, 4), ("always", 0, 4), ("always", 1, 4)],
)
async def test_a_process_is_restarted_as_its_policy_says(
    talk: Talk, policy: str, code: int, starts: int
) -> None:
    restart = {"policy": policy, "maxRestarts": 3, **QUICK}
    created = await talk.shell(f"echo $$; exit {code}", restart=restart)
    assert created["restart"] == {"policy": policy, "state": "running", "count": 0}
    ended = await talk.ended(created["id"])
    assert ended["exitCode"] == code
    assert ended["restart"] == {"policy": policy, "state": "ended", "count": starts - 1}
    entries = (await talk.logs(created["id"]))["entries"]
    pids = output(entries).split()
    assert len(set(pids)) == len(pids) == starts
    assert int(pids[0]) == created["pid"]
    assert [entry["sequence"] for entry in entries] == [*range(1, len(entries) + 1)]


async def test_a_signal_is_a_failure(talk: Talk) -> None:
    restart = {"policy": "on_failure", "maxRestarts": 1, **QUICK}
    created = await talk.shell("kill -9 $$", restart=restart)
    ended = await talk.ended(created["id"])
    assert (ended["exitSignal"], ended["restart"]["count"]) == (signal.SIGKILL, 1)


@pytest.mark.parametrize("what", ["stop", "kill"])
async def test_a_process_that_is_stopped_is_not_restarted(talk: Talk, what: str) -> None:
    created = await talk.create("sleep", "600", restart={"policy": "always", **QUICK})
    ended = await talk.signal(created["id"], what)
    assert ended["restart"] == {"policy": "always", "state": "ended", "count": 0}
    assert gone([created["pid"]])
    assert (await talk.client.delete(f"/v1/processes/{created['id']}")).status_code == 204


@pytest.mark.parametrize("what", ["stop", "kill"])
async def test_a_process_that_waits_to_be_restarted_can_be_stopped(talk: Talk, what: str) -> None:
    created = await talk.shell("exit 3", restart={"policy": "on_failure", **SLOW})
    found = await waiting(talk, created["id"])
    assert (found["status"], found["exitCode"], found["restart"]["count"]) == ("exited", 3, 1)
    assert found["restart"]["nextStartAtMs"] >= found["exitedAtMs"] + 3_600_000
    assert problem(await talk.input(created["id"], "x")) == (409, "conflict")
    answer = await talk.client.delete(f"/v1/processes/{created['id']}")
    assert problem(answer) == (409, "conflict")
    assert "restarted" in answer.json()["detail"]
    ended = await talk.signal(created["id"], what)
    assert ended["restart"] == {"policy": "on_failure", "state": "ended", "count": 1}
    assert (await talk.client.delete(f"/v1/processes/{created['id']}")).status_code == 204


async def test_a_follower_reads_on_over_restarts(talk: Talk) -> None:
    created = await talk.shell("read line; echo $line", restart={"policy": "always", **QUICK})
    async with talk.follow(created["id"]) as stream:
        for number in range(1, 4):
            with anyio.fail_after(SECONDS):
                while (await talk.input(created["id"], f"{number}\n")).status_code == 409:
                    pass  # it is being restarted
            event = await stream.next()
            assert event is not None
            assert (event.id, output([event.data])) == (number, f"{number}\n".encode())
        await talk.signal(created["id"], "kill")
        assert [event.event for event in await stream.rest()] == ["exit"]


async def test_a_process_whose_program_is_gone_waits_and_says_so(talk: Talk, tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nrm -- $0\n")
    program.chmod(0o755)
    created = await talk.create(str(program), restart={"policy": "always", "maxRestarts": 4, **QUICK})
    ended = await talk.ended(created["id"])
    assert ended["restart"]["count"] == 4
    assert "No such file" in ended["restart"]["error"]


async def test_one_that_waits_counts_as_one_that_runs(talk: Talk) -> None:
    created = await talk.shell("exit 3", restart={"policy": "always", **SLOW})
    await waiting(talk, created["id"])
    await talk.configure(maxConcurrentProcesses=1)
    assert problem(await talk.post("", {"command": "true"})) == (409, "conflict")
    await talk.signal(created["id"], "stop")


@pytest.mark.parametrize(
    "members",
    [
        {"policy": "sometimes"},
        {},
        {"policy": "always", "delayMs": 0},
        {"policy": "always", "maxRestarts": -1},
    ],
)
async def test_a_policy_that_there_is_not_is_an_error(talk: Talk, members: dict[str, Any]) -> None:
    assert problem(await talk.post("", {"command": "true", "restart": members})) == (400, "invalid_request")


def test_delays_double_up_to_the_longest_and_begin_anew_after_a_long_run() -> None:
    restarts = Restarts(ProcessRestartRequest(policy="always", delay_ms=100, max_delay_ms=350))
    delays = [restarts.next_delay(success=False, ran_seconds=0.3) for _ in range(4)]
    assert delays == [0.1, 0.2, 0.35, 0.35]
    assert restarts.next_delay(success=False, ran_seconds=0.4) == 0.1
    assert restarts.next_delay(success=True, ran_seconds=0) == 0.2
    assert restarts.count == 6


def test_a_first_delay_that_is_longer_than_the_longest_is_the_longest() -> None:
    restarts = Restarts(ProcessRestartRequest(policy="always", delay_ms=100, max_delay_ms=50))
    assert restarts.next_delay(success=True, ran_seconds=0) == 0.05


def test_there_are_only_so_many_restarts() -> None:
    restarts = Restarts(ProcessRestartRequest(policy="on_failure", max_restarts=1))
    assert restarts.next_delay(success=False, ran_seconds=0) == 0.5
    assert restarts.next_delay(success=False, ran_seconds=0) is None
    assert restarts.next_delay(success=True, ran_seconds=0) is None
