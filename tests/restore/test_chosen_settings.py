"""A prompt never reaches an agent in a mode, or with a model, that was not chosen: whatever it does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox_agent import (
    InMemorySessionPersistDriver,
    SandboxAgent,
    SessionRestored,
    SettingNotConfirmedError,
)
from tests.restore.agent_server import AgentServer
from tests.server.sessions.stack import Stack, running
from tests.support import forgetful_agent
from tests.support.forgetful_agent import COMPLIANT, HABITS, REFUSING
from tests.support.servers import put_launcher

pytestmark = pytest.mark.anyio

CHOSEN = {"mode": "ask", "model": "big", "thought_level": "high"}
RESTORES = 4


def values(prompt: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a prompt that were chosen."""
    return {name: prompt[name] for name in CHOSEN}


# the server's sessions


def put_agent(folder: Path, habit: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the agent as ``stub`` and return its log."""
    script = Path(forgetful_agent.__file__)
    log = folder / "prompts.jsonl"
    put_launcher(folder / "data", "stub", [sys.executable, "-I", "-S", str(script), str(log), habit])
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))
    return log


def prompts_in(log: Path) -> list[dict[str, Any]]:
    """Return the settings in which each prompt reached the agent."""
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


async def end_agents(stack: Stack) -> None:
    """End the agents' processes; their sessions are restored by the next message."""
    for connection in stack.bridge.live():
        await stack.bridge.delete(connection.server_id)


@pytest.mark.soak_with("hangs")
@pytest.mark.parametrize("habit", HABITS)
async def test_a_server_session_is_never_prompted_in_settings_that_were_not_chosen(
    habit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = put_agent(tmp_path, habit, monkeypatch)
    # An agent's start takes a moment too.
    async with running(tmp_path, request_timeout=3.0 if habit == "hangs" else 20.0) as stack:
        await stack.create(agent="stub", agent_mode="ask", model="big", variant="high")
        assert (await stack.over(await stack.say("first"))).state == "done"
        for number in range(1, RESTORES + 1):
            await end_agents(stack)
            turn = await stack.over(await stack.say(f"after restore {number}"))
            if habit in COMPLIANT:
                assert (turn.state, len(prompts_in(log))) == ("done", number + 1)
                row = (await stack.recorder.open("s")).row
                assert (row.agent_mode, row.model, row.variant) == ("ask", "big", "high")
            else:
                assert (turn.state, len(prompts_in(log))) == ("failed", 1)
                assert "could not be confirmed" in (turn.error or "")
                assert (await stack.values("restored"))[-1]["failed"]
    assert [values(prompt) for prompt in prompts_in(log)] == [CHOSEN] * len(prompts_in(log))
    assert not log.with_suffix(".written").exists()


async def test_a_server_session_keeps_what_was_chosen_over_restarts_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = put_agent(tmp_path, "answers default", monkeypatch)
    async with running(tmp_path) as stack:
        await stack.create(agent="stub", agent_mode="ask", model="big")
        await stack.over(await stack.say("first"))
    for _ in range(RESTORES):
        async with running(tmp_path) as stack:
            await stack.over(await stack.say("on"))
    assert [(prompt["mode"], prompt["model"]) for prompt in prompts_in(log)] == [("ask", "big")] * 5
    assert not log.with_suffix(".written").exists()


# the SDK's sessions


@pytest.mark.parametrize("habit", HABITS)
async def test_an_sdk_session_is_never_prompted_in_settings_that_were_not_chosen(habit: str) -> None:
    driver, server = InMemorySessionPersistDriver(), AgentServer(habit)
    async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
        session = await sdk.create_session(
            agent="stub", id="s", mode="ask", model="big", thought_level="high"
        )
        await session.set_config_option("color", "blue")
        await session.prompt("first")
    chosen = {**CHOSEN, "color": "blue"}
    for number in range(1, RESTORES + 1):
        async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
            session = await sdk.resume_session("s")
            if habit in REFUSING:
                with pytest.raises(SettingNotConfirmedError) as caught:
                    await session.prompt(f"after restore {number}")
                assert "mode" in caught.value.failed
            else:
                await session.prompt(f"after restore {number}")
                assert {
                    option["id"]: option["currentValue"] for option in await session.get_config_options()
                } == chosen
                assert len(server.prompts) == number + 1
    for prompt in server.prompts:
        assert {name: prompt[name] for name in chosen} == chosen
    assert len(server.prompts) == (1 if habit in REFUSING else RESTORES + 1)


async def test_a_mode_that_the_agent_chose_itself_is_reported_and_the_chosen_one_is_set_again() -> None:
    driver, server = InMemorySessionPersistDriver(), AgentServer("answers default")
    async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
        session = await sdk.create_session(agent="stub", id="s", mode="ask")
        await session.prompt("leave the mode")
        assert ((await session.get_modes()) or {})["currentModeId"] == "auto"
        await session.prompt("nothing is set again within a live session")
    async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
        session = await sdk.resume_session("s")
        events = [event async for event in session.stream("on")]
        assert ((await session.get_modes()) or {})["currentModeId"] == "ask"
        assert events
        stored = [event.update for event in (await sdk.get_events(session_id="s")).items]
    assert [prompt["mode"] for prompt in server.prompts] == ["ask", "auto", "ask"]
    (restored,) = [update for update in stored if isinstance(update, SessionRestored)]
    assert (restored.applied, restored.failed) == ({"mode": "ask"}, None)


async def test_a_session_that_refuses_to_prompt_continues_once_another_value_is_chosen() -> None:
    driver, server = InMemorySessionPersistDriver(), AgentServer("ignores")
    async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
        await sdk.create_session(agent="stub", id="s", mode="ask")
    async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
        session = await sdk.resume_session("s")
        with pytest.raises(SettingNotConfirmedError):
            await session.prompt("refused")
        await session.set_mode("auto")
        await session.prompt("allowed")
    assert [prompt["mode"] for prompt in server.prompts] == ["auto"]


async def test_a_program_that_dies_while_it_creates_a_session_leaves_what_was_chosen() -> None:
    driver, server = InMemorySessionPersistDriver(), AgentServer("answers default")
    async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
        await sdk.create_session(agent="stub", id="s", mode="ask")
    created = await driver.get_session("s")
    assert created is not None
    # As the store has it after session/new, before session/set_mode.
    created.modes = {"currentModeId": "auto", "availableModes": [{"id": "auto"}, {"id": "ask"}]}
    created.config_options = None
    await driver.update_session(created)
    async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
        await (await sdk.resume_or_create_session(id="s", agent="stub")).prompt("on")
    assert [prompt["mode"] for prompt in server.prompts] == ["ask"]


async def test_a_record_of_an_older_version_keeps_what_its_agent_reported() -> None:
    driver, server = InMemorySessionPersistDriver(), AgentServer("answers default")
    async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
        await sdk.create_session(agent="stub", id="s", mode="ask", model="big")
    record = await driver.get_session("s")
    assert record is not None
    assert record.session_init is not None
    del record.session_init["_meta"]
    await driver.update_session(record)
    for _ in range(RESTORES):
        async with SandboxAgent.connect(transport=server, persist=driver) as sdk:
            await (await sdk.resume_session("s")).prompt("on")
    assert [(prompt["mode"], prompt["model"]) for prompt in server.prompts] == [("ask", "big")] * RESTORES


async def test_a_row_of_an_older_version_keeps_what_it_was_created_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = put_agent(tmp_path, "answers default", monkeypatch)
    async with running(tmp_path) as stack:
        await stack.create(agent="stub", agent_mode="ask", model="big")
        live = await stack.recorder.open("s")
        # As 3f6a96b wrote it, after a restore that put the agent's own values into the columns.
        settings = b'{"agent":"stub","agentMode":"ask","model":"big"}'
        await stack.recorder.update(live, settings=settings, agent_mode="auto", model="small")
        await end_agents(stack)
        await stack.over(await stack.say("on"))
    assert [(prompt["mode"], prompt["model"]) for prompt in prompts_in(log)] == [("ask", "big")]
