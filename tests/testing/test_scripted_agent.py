"""A scripted agent: a real process behind a real server, whose turns are functions of the test."""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent import (
    AcpRpcError,
    AgentMessageChunk,
    AgentProcessExitedError,
    AgentThoughtChunk,
    AvailableCommandsUpdate,
    CurrentModeUpdate,
    Diff,
    Plan,
    PlanEntry,
    QuestionRequest,
    SandboxAgent,
    Session,
    SessionInfoUpdate,
    SessionRestored,
    ToolCall,
    ToolCallUpdate,
    UsageUpdate,
    local,
)
from sandbox_agent.testing import ScriptedAgent, ScriptedTurn

pytestmark = pytest.mark.anyio

PATIENCE = 60.0


@asynccontextmanager
async def running(agent: ScriptedAgent, **options: Any) -> AsyncGenerator[Session]:
    """A session of the agent behind a server of its own."""
    with anyio.fail_after(PATIENCE), agent:
        provider = local(agent_commands=agent.commands, log="silent")
        async with SandboxAgent.start(sandbox=provider) as sdk:
            yield await sdk.create_session(agent=agent.id, **options)
            await sdk.destroy_sandbox()


async def updates_of(session: Session, prompt: str = "go") -> list[Any]:
    return [event.update async for event in session.stream(prompt) if event.update is not None]


def text_of(updates: list[Any], kind: type[Any] = AgentMessageChunk) -> str:
    return "".join(update.text for update in updates if isinstance(update, kind))


async def test_the_scripts_are_turns_and_the_last_one_is_repeated() -> None:
    async with running(ScriptedAgent("One.", lambda turn: turn.say(f"You said {turn.prompt}."))) as session:
        assert [text_of(await updates_of(session, prompt)) for prompt in ("a", "b", "c")] == [
            "One.",
            "You said b.",
            "You said c.",
        ]


async def test_a_script_sends_everything_that_an_agent_can_send() -> None:
    diff = Diff(path="/work/a.py", old_text="1", new_text="2")

    def script(turn: ScriptedTurn) -> None:
        turn.think("Hm.").plan("Read", PlanEntry(content="Write", status="in_progress"))
        turn.tool("Edit a.py", kind="edit", input={"path": "a.py"}, output="1 line", diffs=[diff])
        turn.tool("Run", kind="execute", failed=True, raw_output={"code": 1}, paths=["/work/b"])
        turn.usage(100, 1000, cost=0.5, input_tokens=60, output_tokens=40)
        turn.set_title("Fixed").set_commands({"review": "Reviews"}).set_option("mode", "plan")
        turn.say("Done.").stop("max_tokens")

    agent = ScriptedAgent(script)
    async with running(agent) as session:
        turn = session.stream("go")
        updates = [event.update async for event in turn]
        response = turn.response
    assert response.stop_reason == "max_tokens"
    assert text_of(updates) == "Done."
    assert text_of(updates, AgentThoughtChunk) == "Hm."
    (plan,) = [update for update in updates if isinstance(update, Plan)]
    assert [(entry.content, entry.status) for entry in plan.entries] == [
        ("Read", "pending"),
        ("Write", "in_progress"),
    ]
    edit, execute = [update for update in updates if isinstance(update, ToolCall)]
    assert (edit.title, edit.kind, edit.raw_input, edit.content) == (
        "Edit a.py",
        "edit",
        {"path": "a.py"},
        [diff],
    )
    assert [location.path for location in execute.locations] == ["/work/b"]
    changes = [update for update in updates if isinstance(update, ToolCallUpdate)]
    assert [change.status for change in changes] == ["in_progress", "completed", "in_progress", "failed"]
    assert changes[1].content is not None
    assert changes[1].content[0] == diff
    assert changes[3].raw_output == {"code": 1}
    (usage,) = [update for update in updates if isinstance(update, UsageUpdate)]
    assert usage.cost is not None
    assert (usage.used, usage.size, usage.cost.amount) == (100, 1000, 0.5)
    assert any(isinstance(update, SessionInfoUpdate) and update.title == "Fixed" for update in updates)
    (commands,) = [update for update in updates if isinstance(update, AvailableCommandsUpdate)]
    assert commands.available_commands[0].name == "review"
    assert any(isinstance(update, CurrentModeUpdate) for update in updates)
    assert agent.settings == []


@pytest.mark.parametrize(
    ("policy", "option", "status"),
    [("allow_once", "allow_once", "completed"), ("reject", "reject_once", "failed")],
)
async def test_a_script_acts_on_the_answer_to_a_permission_request(
    policy: Any, option: str, status: str
) -> None:
    def script(turn: ScriptedTurn) -> None:
        turn.say("written" if turn.ask_permission("Write a.py", output="ok").allowed else "refused")

    agent = ScriptedAgent(script)
    async with running(agent, permission_policy=policy) as session:
        updates = await updates_of(session)
    assert [(outcome.title, outcome.option) for outcome in agent.permissions] == [("Write a.py", option)]
    assert text_of(updates) == ("written" if policy == "allow_once" else "refused")
    assert [update.status for update in updates if isinstance(update, ToolCallUpdate)][-1] == status


@pytest.mark.parametrize("answer", [{"color": "red"}, None])
async def test_a_script_gets_the_answer_to_a_question(answer: dict[str, Any] | None) -> None:
    got: list[Any] = []
    agent = ScriptedAgent(lambda turn: got.append(turn.ask("Which color?", {"color": ["red", "blue"]})))

    def policy(_question: QuestionRequest) -> dict[str, Any] | None:
        return answer

    async with running(agent, question_policy=policy) as session:
        await session.prompt("paint")
    assert got == [answer]
    agent.check()


async def test_a_failing_script_ends_the_turn_with_an_error_and_the_next_one_runs() -> None:
    agent = ScriptedAgent(lambda turn: turn.fail("No quota", code=-32001, data={"a": 1}), "Again.")
    async with running(agent) as session:
        with pytest.raises(AcpRpcError, match="No quota") as caught:
            await session.prompt("go")
        assert (caught.value.code, caught.value.data) == (-32001, {"a": 1})
        assert text_of(await updates_of(session)) == "Again."
    agent.check()


async def test_an_assertion_in_a_script_is_raised_in_the_test() -> None:
    def script(turn: ScriptedTurn) -> None:
        assert turn.prompt == "what the test expects"

    agent = ScriptedAgent(script)
    async with running(agent) as session:
        with pytest.raises(AcpRpcError, match="the script failed: AssertionError"):
            await session.prompt("something else")
    with pytest.raises(AssertionError):
        agent.check()


async def test_a_crash_ends_the_process_and_the_session_is_loaded_by_the_next_one() -> None:
    agent = ScriptedAgent("One.", lambda turn: turn.say("Oh").crash(7, stderr="out of luck\n"), "Back.")
    async with running(agent, model="mock-fast") as session:
        seen: list[Any] = []
        session.on_event(lambda event: seen.append(event.update))
        await session.prompt("first")
        with pytest.raises(AgentProcessExitedError, match="7"):
            await session.prompt("second")
        updates = await updates_of(session, "third")
        assert text_of([update for update in updates if isinstance(update, AgentMessageChunk)]) == "Back."
        restored = next(update for update in seen if isinstance(update, SessionRestored))
    assert restored.method in {"session/load", "session/resume"}
    assert agent.prompts == ["first", "second", "third"]
    assert restored.method in agent.methods


async def test_an_agent_that_cannot_restore_gets_the_history_with_the_next_prompt() -> None:
    seen: list[list[dict[str, Any]]] = []
    agent = ScriptedAgent(
        "One.", lambda turn: turn.crash(), lambda turn: seen.append(turn.blocks), can_restore=False
    )
    async with running(agent) as session:
        await session.prompt("first")
        with pytest.raises(AgentProcessExitedError):
            await session.prompt("second")
        await session.prompt("third")
    assert "session/load" not in agent.methods
    assert len(seen[0]) == 2
    assert "first" in seen[0][0]["text"]
    assert agent.prompts[-1] == "third"


async def test_what_the_client_sets_and_cancels_is_noted() -> None:
    agent = ScriptedAgent(
        lambda turn: turn.say(turn.settings["model"]).stall(),
        models=["small", "large"],
        modes=[],
        thought_levels=[],
    )
    async with running(agent) as session:
        await session.set_model("large")
        turn = session.stream("go")
        async for event in turn:
            if isinstance(event.update, AgentMessageChunk):
                await session.cancel()
    assert turn.text == "large"
    assert turn.response.stop_reason == "cancelled"
    assert [(change.option, change.value) for change in agent.settings] == [("model", "large")]
    assert agent.cancels == [agent.settings[0].session_id]


async def test_garbage_on_stdout_does_not_end_the_turn() -> None:
    agent = ScriptedAgent(lambda turn: turn.write(b"not JSON\n").say("Still here."))
    async with running(agent) as session:
        assert text_of(await updates_of(session)) == "Still here."


async def test_sixteen_sessions_run_at_the_same_time() -> None:
    barrier = threading.Barrier(16)
    agent = ScriptedAgent(lambda turn: (barrier.wait(PATIENCE), turn.say(turn.prompt)))
    said: dict[str, str] = {}

    async def talk(session: Session, prompt: str) -> None:
        said[prompt] = text_of(await updates_of(session, prompt))

    with anyio.fail_after(PATIENCE), agent:
        provider = local(agent_commands=agent.commands, log="silent")
        async with SandboxAgent.start(sandbox=provider) as sdk:
            async with anyio.create_task_group() as group:
                for number in range(16):
                    session = await sdk.create_session(agent="scripted")
                    group.start_soon(talk, session, f"prompt {number}")
            await sdk.destroy_sandbox()
    assert said == {f"prompt {number}": f"prompt {number}" for number in range(16)}


async def test_a_scripted_agent_takes_the_place_of_a_known_one(tmp_path: Path) -> None:
    async with running(ScriptedAgent("I am not Claude.", id="claude"), cwd=tmp_path) as session:
        assert text_of(await updates_of(session)) == "I am not Claude."


def test_a_script_is_a_text_or_a_plain_function() -> None:
    async def script(_turn: ScriptedTurn) -> None: ...

    with pytest.raises(TypeError, match="is a coroutine function: make it a plain one"):
        ScriptedAgent(script)
    with pytest.raises(TypeError, match="a script is a text to say or a function of the turn, not 3"):
        ScriptedAgent(3)  # pyright: ignore[reportArgumentType]


async def test_an_agent_that_was_closed_says_what_is_missing() -> None:
    agent = ScriptedAgent("One.")
    async with running(agent) as session:
        agent.close()
        with pytest.raises(AgentProcessExitedError):
            await session.prompt("first")
