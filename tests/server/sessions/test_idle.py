"""Sessions without a turn, a message and a viewer: their agents are stopped, and restored when needed."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

from sandbox_agent.server.agents.connection import AgentConnection
from tests.server.sessions.stack import TIMEOUT, Stack, running

pytestmark = pytest.mark.anyio

IDLE = 0.2


async def created(stack: Stack, name: str = "s") -> AgentConnection:
    """Create a session, and return the connection of its agent."""
    before = stack.bridge.live()
    await stack.create(name)
    (connection,) = [each for each in stack.bridge.live() if each not in before]
    return connection


async def ended(connection: AgentConnection) -> None:
    """Wait until the agent has ended."""
    with anyio.fail_after(TIMEOUT):
        await connection.ended.wait()


async def test_the_agent_of_an_idle_session_is_stopped_and_the_next_message_restores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SANDBOX_AGENT_MOCK_STATE", str(tmp_path / "mock"))
    async with running(tmp_path, idle_timeout=IDLE) as stack:
        agent = await created(stack)
        await stack.over(await stack.say("echo before"))
        events = await stack.events()
        await ended(agent)
        assert await stack.events() == events  # nothing happened that a viewer should see
        assert not (await stack.recorder.open("s")).row.ended
        again = await stack.over(await stack.say("echo after"))
        assert again.state == "done"
        assert await stack.texts("assistant") == ["before", "after"]
        (restored,) = await stack.values("restored")
        assert restored["method"] == "session/resume"


async def test_a_session_with_a_viewer_a_turn_or_another_sessions_end_keeps_its_agent(
    tmp_path: Path,
) -> None:
    async with running(tmp_path, idle_timeout=IDLE) as stack:
        # Each is in use before the next one is made, which takes longer than the timeout on a busy machine.
        viewed = await created(stack, "v")
        session = await stack.recorder.open("v")
        with ExitStack() as uses:
            uses.enter_context(session.usage.used("", streams=1))
            viewed_over_acp = await created(stack, "a")
            uses.enter_context(viewed_over_acp.usage.used("ann", streams=1))
            working = await created(stack, "w")
            await stack.say("stall", "w")
            # They are older than two sessions that become idle one after the other.
            for number in range(2):
                await ended(await created(stack, f"idle {number}"))
            assert stack.bridge.live() == [viewed, viewed_over_acp, working]
        await ended(viewed)
        await ended(viewed_over_acp)
        assert working.alive


async def test_a_turn_whose_permission_no_client_watches_is_interrupted(tmp_path: Path) -> None:
    async with running(tmp_path, idle_timeout=IDLE) as stack:
        agent = await created(stack)
        session = await stack.recorder.open("s")
        with session.usage.used("", streams=1):
            turn = await stack.say("permission")
            asked = await stack.asked()
            await ended(await created(stack, "idle"))
            assert agent.alive
        over = await stack.over(turn)
        assert (over.state, over.error) == ("interrupted", "idle")
        (resolved,) = [event for event in await stack.events() if event["type"] == "permission.resolved"]
        assert resolved["data"]["permission_id"] == asked.permission_id
        assert resolved["data"]["metadata"]["outcome"] == "interrupted"
        await ended(agent)
        assert "error" not in await stack.types()
        assert (await stack.over(await stack.say("echo after"))).state == "done"


async def test_a_turn_with_a_waiting_message_is_not_interrupted(tmp_path: Path) -> None:
    async with running(tmp_path, idle_timeout=IDLE) as stack:
        agent = await created(stack)
        turn, waiting = await stack.say("permission"), await stack.say("echo next")
        asked = await stack.asked()
        await ended(await created(stack, "idle"))
        assert agent.alive
        result = {"outcome": {"outcome": "selected", "optionId": "allow_once"}}
        assert await stack.sessions.answer("s", asked.permission_id, result, "anna")
        assert (await stack.over(turn)).state == (await stack.over(waiting)).state == "done"


class HeldStop:
    """Holds the end of an agent up, from its first step to ``release``."""

    def __init__(self, agent: AgentConnection, monkeypatch: pytest.MonkeyPatch) -> None:
        self._stop = agent.stop
        self._begun = anyio.Event()
        self.release = anyio.Event()
        monkeypatch.setattr(agent, "stop", self._held)

    async def _held(self) -> None:
        self._begun.set()
        await self.release.wait()
        await self._stop()

    async def begun(self) -> None:
        """Wait until the agent is being stopped."""
        with anyio.fail_after(TIMEOUT):
            await self._begun.wait()


async def test_a_message_that_arrives_while_the_agent_is_stopped_runs_in_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, idle_timeout=IDLE) as stack:
        agent = await created(stack)
        held = HeldStop(agent, monkeypatch)
        await held.begun()
        turn = await stack.say("echo hello")
        held.release.set()
        assert (await stack.over(turn)).state == "done"
        assert await stack.texts("assistant") == ["hello"]
        assert not agent.alive


@pytest.mark.parametrize("how", ["terminate", "delete"])
async def test_a_session_ends_while_its_idle_agent_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async with running(tmp_path, idle_timeout=IDLE) as stack:
        agent = await created(stack)
        held = HeldStop(agent, monkeypatch)
        await held.begun()
        with anyio.fail_after(TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(getattr(stack.sessions, how), "s")
                held.release.set()
        assert not agent.alive
        assert stack.bridge.live() == []
