"""Agents that use more than they may: ended with the reason, and nothing else with them."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Generator
from pathlib import Path

import anyio
import pytest

from sandbox_agent import AgentProcessExitedError, ErrorData, SandboxAgent
from sandbox_agent.cgroups import PREFIX, find_parents, parse_size
from sandbox_agent.runtime.limits import Limits
from sandbox_agent.runtime.tree_usage import TreeUsage
from sandbox_agent.runtime.warden import KEEPS
from tests.client.checks import all_events, said
from tests.runtime.children import gone
from tests.server.talk import client_of, envelope, talk
from tests.support import shell_agent
from tests.support.cgroups import WHY_NO_CGROUPS, needs_cgroups
from tests.support.servers import ServerProcess, descendants, our_server

needs_proc = pytest.mark.skipif(not KEEPS, reason="needs /proc of Linux")


# In a mount namespace in which no control group is visible.
WITHOUT_GROUPS = ["unshare", "--mount", "sh", "-ec", 'mount -t tmpfs none /sys/fs/cgroup; exec "$@"', "sh"]
LIMITS = ("--agent-memory", "250M", "--agent-pids", "4")
# Shell commands. The first one forks for ever in processes that have left the agent's group and session.
BOMB = "exec setsid sh -c 'bomb() { bomb & bomb & wait; }; bomb' 2>/dev/null"
HOG = f"{sys.executable} -c 'held = bytearray(400 << 20)'"
GROUPS = "cat /proc/self/cgroup"


@pytest.fixture(params=["by the kernel", "by watching"])
def limited(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Generator[ServerProcess]:
    server = our_server(tmp_path_factory.mktemp("s"), *LIMITS)
    if request.param == "by watching":
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            pytest.skip("only root hides control groups, with unshare")
        server.wrap(lambda command: [*WITHOUT_GROUPS, *command])
    elif WHY_NO_CGROUPS is not None:
        pytest.skip(WHY_NO_CGROUPS)
    with server:
        yield server
        is_watched = "is watched" in server.log.read_text()
        assert is_watched == (request.param == "by watching")


def groups_of_agents() -> list[Path]:
    """Return the control groups that servers on this machine have created for agents."""
    parents = set(find_parents(["memory", "pids"]).values())
    return [group for parent in parents for group in parent.glob(f"{PREFIX}*")]


@needs_proc
@needs_cgroups
@pytest.mark.anyio
async def test_what_an_agent_starts_is_limited_by_the_kernel_and_others_go_on(tmp_path: Path) -> None:
    former = set(groups_of_agents())
    shell = f"--agent-command=shell={sys.executable} {shell_agent.__file__}"
    with our_server(tmp_path, *LIMITS, shell) as server:
        async with (
            SandboxAgent.connect(base_url=server.url) as sdk,
            SandboxAgent.connect(base_url=server.url) as other,
        ):
            bystander = await other.create_session(agent="shell")
            session = await sdk.create_session(agent="shell")
            with anyio.fail_after(60):
                await session.prompt(GROUPS)
                own = set(groups_of_agents()) - former
                assert {path.parent for path in own} == set(find_parents(["memory", "pids"]).values())
                text = said(await all_events(sdk, session))
                assert any(path.name in text for path in own)
                # Its tool is killed, and the agent lives.
                await session.prompt(HOG)
                assert said(await all_events(sdk, session)).endswith("[137]")
                with pytest.raises(AgentProcessExitedError, match=r"more than the 4 of --agent-pids"):
                    await session.prompt(BOMB)
                await bystander.prompt("echo untouched")
                assert "untouched" in said(await all_events(other, bystander))
    assert set(groups_of_agents()) == former


@needs_proc
@needs_cgroups
@pytest.mark.anyio
async def test_groups_of_a_server_that_was_killed_are_removed_at_the_next_start(tmp_path: Path) -> None:
    former = set(groups_of_agents())
    with our_server(tmp_path, *LIMITS) as server:
        async with client_of(server) as client:
            body = envelope("initialize", {"protocolVersion": 1}, 1)
            assert (await client.post("/v1/acp/one?agent=mock", json=body)).status_code == 200
        assert set(groups_of_agents()) > former
        killed = descendants(server.pid)
        server.kill()
        assert gone(killed)
        assert set(groups_of_agents()) > former  # nothing was there to remove them
        with our_server(tmp_path, *LIMITS):
            assert set(groups_of_agents()) == former


@needs_proc
@pytest.mark.anyio
async def test_an_agent_that_uses_too_much_memory_is_ended_with_the_reason(limited: ServerProcess) -> None:
    async with (
        SandboxAgent.connect(base_url=limited.url) as sdk,
        SandboxAgent.connect(base_url=limited.url) as other,
    ):
        bystander = await other.create_session(agent="mock")
        session = await sdk.create_session(agent="mock")
        with anyio.fail_after(60):
            with pytest.raises(AgentProcessExitedError, match=r"more than the 250 MiB of --agent-memory"):
                await session.prompt("allocate 400")
            await session.prompt("echo again")
            await bystander.prompt("echo untouched")
        events = await all_events(sdk, session)
        exits = [event for event in events if event.payload.get("method") == "_adapter/agent_exited"]
        assert ["--agent-memory" in event.payload["params"]["reason"] for event in exits] == [True]
        assert "again" in said(events)
        assert not [
            event for event in await all_events(other, bystander) if "agent_exited" in str(event.payload)
        ]


@needs_proc
@pytest.mark.anyio
async def test_a_server_session_says_which_limit_ended_its_agent(limited: ServerProcess) -> None:
    async with SandboxAgent.connect(base_url=limited.url) as sdk:
        await sdk.sessions.create("s", agent="mock")
        with anyio.fail_after(60):
            await sdk.sessions.post_message("s", "allocate 400")
            async for event in sdk.sessions.stream_events("s"):
                if isinstance(event.data, ErrorData):
                    assert event.data.code == "agent_process_exited"
                    assert "was ended by the server: its processes used" in event.data.message
                    assert "--agent-memory" in event.data.details["reason"]
                    break
            ended = [event.data async for event in sdk.sessions.stream_turn("s", "echo again")][-1]
        assert getattr(ended, "metadata", {})["stop_reason"] == "end_turn"


@needs_proc
@pytest.mark.anyio
async def test_an_agent_with_too_many_processes_is_ended_with_all_of_them(limited: ServerProcess) -> None:
    async with talk(limited, "many") as talking:
        for _ in range(2):
            await talking.start("spawn")
        spawned: list[int] = []
        with anyio.fail_after(10):
            while len(spawned) < 2:  # one that is being executed has no command line
                spawned = [pid for pid in descendants(limited.pid) if "sleep" in _command(pid)]
                await anyio.lowlevel.checkpoint()
        await talking.start("spawn deaf")
        response = await talking.start("spawn deaf")
        if response.status_code == 200:  # it was faster than the check
            response = await talking.start("stall")
        problem = response.json()
        assert problem["type"] == "urn:sandbox-agent:error:agent_process_exited"
        assert "5 processes, more than the 4 of --agent-pids" in problem["reason"]
        assert gone(spawned)


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline") as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512), ("1k", 1024), ("512M", 512 << 20), ("2GiB", 2 << 30), ("3 TB", 3 << 40), ("4gb", 4 << 30)],
)
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "1.5G", "-1", "1X", "1" * 30])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="use a number with K, M, G or T"):
        parse_size(text)


@pytest.mark.parametrize(
    ("limits", "is_exceeded"),
    [
        (Limits(), False),
        (Limits(10, 2), False),
        (Limits(9, 2), True),
        (Limits(10, 1), True),
        (Limits(0, 1), True),
    ],
)
def test_a_limit_is_exceeded_by_more_than_it(limits: Limits, is_exceeded: bool) -> None:
    assert (limits.excess(TreeUsage(2, 10, 0.0)) is not None) == is_exceeded
    assert json.dumps(limits.excess(TreeUsage(0, 0, 0.0))) == "null"
