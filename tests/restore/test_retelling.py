"""A warning that an agent prints while it resumes a session is news, and no history is sent again."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox_agent import AgentMessageChunk, InMemorySessionPersistDriver, SandboxAgent, SessionRestored
from tests.restore.agent_server import AgentServer
from tests.restore.test_chosen_settings import end_agents, prompts_in, put_agent
from tests.server.sessions.stack import running

pytestmark = pytest.mark.anyio


async def test_in_the_sdk() -> None:
    driver, server = InMemorySessionPersistDriver(), AgentServer("warns")
    async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
        await (await sdk.create_session(agent="stub", id="s")).prompt("first")
    async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
        await (await sdk.resume_session("s")).prompt("second")
        updates = [event.update for event in (await sdk.get_events(session_id="s")).items]
    (restored,) = [update for update in updates if isinstance(update, SessionRestored)]
    assert restored == SessionRestored(session_id="s", method="session/resume")
    texts = [update.text for update in updates if isinstance(update, AgentMessageChunk)]
    assert texts == ["done", "Warning: old model.", "done"]
    assert [len(prompt["blocks"]) for prompt in server.prompts] == [1, 1]


async def test_in_a_session_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = put_agent(tmp_path, "warns", monkeypatch)
    async with running(tmp_path) as stack:
        await stack.create(agent="stub")
        await stack.over(await stack.say("first"))
        await end_agents(stack)
        await stack.over(await stack.say("second"))
        (restored,) = await stack.values("restored")
        assert (restored["method"], "verified" in restored) == ("session/resume", False)
        assert await stack.texts("assistant") == ["done", "Warning: old model.", "done"]
    assert [len(prompt["blocks"]) for prompt in prompts_in(log)] == [1, 1]
