"""Agents that use more than they may: ended with the reason, and nothing else with them."""

from __future__ import annotations

import json
from collections.abc import Generator

import anyio
import pytest

from sandbox_agent import AgentProcessExitedError, ErrorData, SandboxAgent
from sandbox_agent.runtime.limits import Limits, parse_size
from sandbox_agent.runtime.tree_usage import TreeUsage
from sandbox_agent.runtime.warden import KEEPS
from tests.client.checks import all_events, said
from tests.runtime.children import gone
from tests.server.talk import talk
from tests.support.servers import ServerProcess, descendants, our_server

needs_proc = pytest.mark.skipif(not KEEPS, reason="needs /proc of Linux")


@pytest.fixture
def limited(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    with our_server(tmp_path_factory.mktemp("s"), "--agent-memory", "250M", "--agent-pids", "4") as server:
        yield server


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
        spawned = [pid for pid in descendants(limited.pid) if "sleep" in _command(pid)]
        await talking.start("spawn deaf")
        response = await talking.start("spawn deaf")
        if response.status_code == 200:  # it was faster than the check
            response = await talking.start("stall")
        problem = response.json()
        assert problem["type"] == "urn:sandbox-agent:error:agent_process_exited"
        assert "5 processes, more than the 4 of --agent-pids" in problem["reason"]
        assert len(spawned) == 2
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
