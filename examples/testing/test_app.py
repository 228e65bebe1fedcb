"""Tests of the app, with the fixtures of Sandbox Agent's plugin for pytest. Run them with ``pytest``."""

from __future__ import annotations

from pathlib import Path

import pytest
from app import fix

from sandbox_agent import AgentProcessExitedError, SandboxAgent
from sandbox_agent.testing import ScriptedAgent, ScriptedTurn

pytestmark = pytest.mark.anyio


async def test_the_agent_is_asked_for_the_fix(
    sandbox_agent_client: SandboxAgent, scripted_agent: ScriptedAgent, tmp_path: Path
) -> None:
    scripted_agent.script("Fixed.")
    assert await fix(sandbox_agent_client, tmp_path, "It crashes.") == "Fixed."
    assert scripted_agent.prompts == ["Fix this bug: It crashes."]


async def test_changes_outside_of_the_folder_are_rejected(
    sandbox_agent_client: SandboxAgent, scripted_agent: ScriptedAgent, tmp_path: Path
) -> None:
    def script(turn: ScriptedTurn) -> None:
        turn.ask_permission("Write a.py", paths=[f"{turn.cwd}/a.py"])
        turn.ask_permission("Write /etc/passwd", paths=["/etc/passwd"])

    scripted_agent.script(script)
    await fix(sandbox_agent_client, tmp_path, "It crashes.")
    assert [outcome.allowed for outcome in scripted_agent.permissions] == [True, False]


async def test_an_agent_that_crashes_is_an_error(
    sandbox_agent_client: SandboxAgent, scripted_agent: ScriptedAgent, tmp_path: Path
) -> None:
    scripted_agent.script(lambda turn: turn.say("Let me see").crash(1))
    with pytest.raises(AgentProcessExitedError):
        await fix(sandbox_agent_client, tmp_path, "It crashes.")
