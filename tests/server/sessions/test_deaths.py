"""An agent that dies again and again is not started again at once."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from sandbox_agent.errors import StreamError
from sandbox_agent.server.sessions.deaths import Deaths
from tests.server.sessions.stack import running

pytestmark = pytest.mark.anyio


def test_three_deaths_within_a_minute_are_too_many() -> None:
    now = 0.0
    deaths = Deaths(lambda: now)
    deaths.add()
    now = 10.0
    deaths.add()
    deaths.check("claude")
    now = 59.0
    deaths.add()
    with pytest.raises(StreamError, match=r"claude ended by itself 3 times .* for 1 s"):
        deaths.check("claude")
    now = 60.0
    deaths.check("claude")
    deaths.add()  # 10, 59 and 60 are within a minute, too
    with pytest.raises(StreamError, match="for 10 s"):
        deaths.check("claude")


async def test_messages_of_a_session_whose_agent_keeps_dying_fail_with_the_reason(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        with anyio.fail_after(60):
            turns = [await stack.say("die 3") for _ in range(5)]
            ended = [await stack.over(turn) for turn in turns]
        assert [turn.state for turn in ended] == ["failed"] * 5
        assert [turn.error for turn in ended[:3]] == ["the agent's process exited"] * 3
        for turn in ended[3:]:
            assert turn.error is not None
            assert "mock ended by itself 3 times within 60 s" in turn.error
        assert stack.bridge.live() == []


async def test_an_agent_that_is_stopped_on_purpose_has_not_died(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        with anyio.fail_after(60):
            for _ in range(4):
                (connection,) = stack.bridge.live()
                await connection.stop()
                assert (await stack.over(await stack.say("echo again"))).state == "done"
