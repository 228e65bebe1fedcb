"""An agent ignores a cancellation, or has lost its session: the session goes on."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import pytest

from tests.server.sessions.stack import Stack, running
from tests.support.servers import put_launcher

pytestmark = pytest.mark.anyio

STUBBORN = Path(__file__).parent / "stubborn_agent.py"


@pytest.fixture
def stubborn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An agent that ignores session/cancel."""
    put_launcher(tmp_path / "data", "stubborn", [sys.executable, str(STUBBORN)])
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return "stubborn"


async def cancel_running_turn(stack: Stack) -> None:
    """Cancel a turn that will not end by itself."""
    await stack.until("item.delta")
    await stack.sessions.cancel("s")


async def test_an_agent_that_ignores_a_cancellation_is_stopped(tmp_path: Path, stubborn: str) -> None:
    async with running(tmp_path, cancel_grace=0.2) as stack:
        await stack.create(agent=stubborn)
        turn, waiting = await stack.say("go"), await stack.say("next")
        with anyio.fail_after(30):
            await cancel_running_turn(stack)
            cancelled = await stack.over(turn)
            assert (cancelled.state, cancelled.stop_reason) == ("cancelled", "cancelled")
            # The next message runs in a new process, which gets the history.
            assert (await stack.over(waiting)).state == "done"
        assert (await stack.texts("assistant"))[-1].endswith("next")
        assert len(await stack.statuses("restored")) == 1
        assert "error" not in await stack.types()


async def test_an_agent_that_is_stopped_after_cancellations_has_not_died(
    tmp_path: Path, stubborn: str
) -> None:
    async with running(tmp_path, cancel_grace=0.05) as stack:
        await stack.create(agent=stubborn)
        with anyio.fail_after(60):
            for count in range(1, 4):
                turn = await stack.say("go")
                # Each turn has the text of the user and of the agent.
                await stack.until("item.delta", count=2 * count)
                await stack.sessions.cancel("s")
                assert (await stack.over(turn)).state == "cancelled"
            last = await stack.over(await stack.say("next"))
        assert (last.state, last.error) == ("done", None)


async def test_an_agent_that_ends_its_turn_in_time_keeps_running(tmp_path: Path) -> None:
    async with running(tmp_path, cancel_grace=20.0) as stack:
        await stack.create()
        (connection,) = stack.bridge.live()
        turn = await stack.say("stream 100000 1")
        with anyio.fail_after(30):
            await cancel_running_turn(stack)
            assert (await stack.over(turn)).state == "cancelled"
            assert (await stack.over(await stack.say("echo again"))).state == "done"
        assert stack.bridge.live() == [connection]


async def test_a_session_that_its_agent_has_lost_is_restored_within_the_turn(
    tmp_path: Path, stubborn: str
) -> None:
    async with running(tmp_path) as stack:
        await stack.create(agent=stubborn)
        with anyio.fail_after(60):
            await stack.over(await stack.say("lose"))
            turn = await stack.over(await stack.say("one"))
        assert (turn.state, turn.error) == ("done", None)
        # One turn with one message of the user, and the agent gets the message once.
        assert await stack.texts("user") == ["lose", "one"]
        (before, after) = await stack.texts("assistant")
        assert (before, after) == ("I got: lose", "I got: one")
        types = await stack.types()
        assert (types.count("turn.started"), types.count("turn.ended")) == (2, 2)
        assert "error" not in types
        assert len(await stack.statuses("restored")) == 1
        prompt = await stack.last_prompt()
        assert "User: lose" in prompt
        assert "User: one" not in prompt


async def test_a_session_that_is_lost_again_fails_its_turn_and_goes_on(tmp_path: Path, stubborn: str) -> None:
    async with running(tmp_path) as stack:
        await stack.create(agent=stubborn)
        with anyio.fail_after(60):
            turns = [await stack.over(await stack.say("never")) for _ in range(2)]
            assert [(turn.state, turn.error) for turn in turns] == [("failed", "Session not found")] * 2
            assert (await stack.over(await stack.say("two"))).state == "done"
        types = await stack.types()
        assert (types.count("turn.started"), types.count("turn.ended"), types.count("error")) == (3, 3, 2)


async def test_a_prompt_is_not_sent_again_when_the_agent_has_used_a_tool(
    tmp_path: Path, stubborn: str
) -> None:
    async with running(tmp_path) as stack:
        await stack.create(agent=stubborn)
        with anyio.fail_after(60):
            failed = await stack.over(await stack.say("act and lose"))
            assert (failed.state, failed.error) == ("failed", "Session not found")
            assert (await stack.over(await stack.say("two"))).state == "done"
        calls = [event for event in await stack.events() if event["type"] == "item.started"]
        assert [event["data"]["item"]["kind"] for event in calls].count("tool_call") == 1
        assert (await stack.texts("assistant"))[-1] == "I got: two"


async def test_a_turn_that_is_cancelled_while_its_session_is_restored(tmp_path: Path, stubborn: str) -> None:
    async with running(tmp_path) as stack:
        await stack.create(agent=stubborn, directory=str(tmp_path))
        (first,) = stack.bridge.live()
        gate = tmp_path / "closed"
        with anyio.fail_after(60):
            await stack.over(await stack.say("lose"))
            gate.touch()
            turn = await stack.say("one")
            await first.ended.wait()
            await stack.sessions.cancel("s")
            gate.unlink()
            cancelled = await stack.over(turn)
            assert (cancelled.state, cancelled.error) == ("cancelled", None)
            assert (await stack.over(await stack.say("two"))).state == "done"
        assert (await stack.texts("assistant"))[-1] == "I got: two"
        assert "error" not in await stack.types()


async def test_a_server_that_ends_while_a_lost_session_is_restored_has_interrupted_the_turn(
    tmp_path: Path, stubborn: str
) -> None:
    gate = tmp_path / "closed"
    with anyio.fail_after(60):
        async with running(tmp_path) as stack:
            await stack.create(agent=stubborn, directory=str(tmp_path))
            (first,) = stack.bridge.live()
            await stack.over(await stack.say("lose"))
            gate.touch()
            turn = await stack.say("one")
            await first.ended.wait()
        gate.unlink()
        async with running(tmp_path) as stack:
            assert (await stack.over(await stack.say("two"))).state == "done"
            assert (await stack.turn(turn)).state == "interrupted"
            assert await stack.texts("assistant") == ["I got: lose", "I got: two"]
