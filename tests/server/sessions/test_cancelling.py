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


async def test_a_session_that_its_agent_has_lost_is_restored_with_the_next_message(
    tmp_path: Path, stubborn: str
) -> None:
    async with running(tmp_path) as stack:
        await stack.create(agent=stubborn)
        with anyio.fail_after(60):
            await stack.over(await stack.say("lose"))
            failed = await stack.over(await stack.say("one"))
            assert (failed.state, failed.error) == ("failed", "Session not found")
            assert (await stack.over(await stack.say("two"))).state == "done"
        assert (await stack.texts("assistant"))[-1].endswith("two")
        assert len(await stack.statuses("restored")) == 1
