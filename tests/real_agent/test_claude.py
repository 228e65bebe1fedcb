"""The main job on a real coding agent: Claude Code behind our server, driven by our SDK."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from sandbox_agent import (
    AgentMessageChunk,
    AgentThoughtChunk,
    ConnectionLostError,
    PermissionReply,
    PermissionRequest,
    QuestionRequest,
    SandboxAgent,
    Session,
    SessionEvent,
    SessionRestored,
    SQLiteSessionPersistDriver,
    TextContent,
    ToolCallUpdate,
    UnsupportedSessionValueError,
)
from sandbox_agent.testing.llm import STALLED_TEXT
from sandbox_agent.wire.universal import QuestionEventData
from tests.real_agent.conftest import ClaudeServer

pytestmark = [pytest.mark.anyio, pytest.mark.agents]

# The longest step: the agent's start on a loaded machine.
STEP_SECONDS = 60.0


@asynccontextmanager
async def connected(claude: ClaudeServer, file: Path) -> AsyncGenerator[SandboxAgent]:
    """Give a client with its sessions in that file."""
    driver = SQLiteSessionPersistDriver(file)
    try:
        with anyio.fail_after(STEP_SECONDS):
            async with SandboxAgent.connect(base_url=claude.url, persist=driver) as sdk:
                yield sdk
    finally:
        await driver.close()


async def history(sdk: SandboxAgent, session: Session) -> list[SessionEvent]:
    """Return all stored events, and see that none is missing or there twice."""
    events = (await sdk.get_events(session_id=session.id, limit=1_000)).items
    assert [event.event_index for event in events] == list(range(1, len(events) + 1))
    return events


def spoken(events: Sequence[SessionEvent], kind: type[AgentMessageChunk | AgentThoughtChunk]) -> str:
    """Return what the agent said, or thought."""
    chunks = [event.update for event in events if isinstance(event.update, kind)]
    return "".join(chunk.content.text for chunk in chunks if isinstance(chunk.content, TextContent))


def write_call(path: Path, text: str) -> str:
    """Return a prompt that makes the model write a file."""
    return f"[[call Write {json.dumps({'file_path': str(path), 'content': text})}]]"


async def test_claude_says_the_models_text_when_it_is_prompted(claude: ClaudeServer, tmp_path: Path) -> None:
    async with connected(claude, tmp_path / "sdk.db") as sdk:
        session = await sdk.create_session(agent="claude", cwd=str(claude.work))
        turn = session.stream("Summarize this. [[say It is empty, as a new folder is. 👋]]")
        streamed = [event async for event in turn]
        assert turn.response.stop_reason == "end_turn"
        assert spoken(streamed, AgentMessageChunk) == "It is empty, as a new folder is. 👋"
        stored = await history(sdk, session)
        assert [event.id for event in stored[-len(streamed) :]] == [event.id for event in streamed]
        assert len(claude.llm.requests) == 1
    await claude.leftovers.gone("claude-agent-acp", "claude-agent-sdk")


async def test_claude_shows_its_thinking_when_the_model_thinks(claude: ClaudeServer, tmp_path: Path) -> None:
    async with connected(claude, tmp_path / "sdk.db") as sdk:
        session = await sdk.create_session(agent="claude", cwd=str(claude.work))
        response = await session.prompt("[[think Seven times six, then.]][[say 42]]")
        assert response.stop_reason == "end_turn"
        events = await history(sdk, session)
        assert spoken(events, AgentThoughtChunk) == "Seven times six, then."
        assert spoken(events, AgentMessageChunk) == "42"


@pytest.mark.parametrize(("reply", "status"), [("once", "completed"), ("reject", "failed")])
async def test_claude_writes_a_file_only_when_it_may(
    claude: ClaudeServer, tmp_path: Path, reply: PermissionReply, status: str
) -> None:
    path = claude.work / "hello.txt"
    asked: list[tuple[PermissionRequest, bool]] = []
    async with connected(claude, tmp_path / "sdk.db") as sdk:
        session = await sdk.create_session(agent="claude", cwd=str(claude.work))

        def answer(request: PermissionRequest) -> object:
            asked.append((request, path.exists()))
            return session.respond_permission(request.id, reply)

        session.on_permission_request(answer)
        response = await session.prompt(write_call(path, "hello\n"))
        assert response.stop_reason == "end_turn"
        ((request, written_before),) = asked
        assert not written_before
        assert set(request.available_replies) == {"once", "always", "reject"}
        assert request.tool_call["rawInput"] == {"file_path": str(path), "content": "hello\n"}
        updates = [event.update for event in await history(sdk, session)]
        assert [u.status for u in updates if isinstance(u, ToolCallUpdate) and u.status] == [status]
    assert (path.read_text() if path.exists() else None) == ("hello\n" if reply == "once" else None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is refused")
async def test_claude_says_what_root_needs_to_bypass_permissions(
    claude: ClaudeServer, tmp_path: Path
) -> None:
    path = claude.work / "allowed"
    async with connected(claude, tmp_path / "sdk.db") as sdk:
        with pytest.raises(UnsupportedSessionValueError, match=r"to root only with IS_SANDBOX=1"):
            await sdk.create_session(agent="claude", cwd=str(claude.work), mode="bypassPermissions")
        # What permission_mode stands for works without it: the requests are allowed one by one.
        session = await sdk.create_session(agent="claude", cwd=str(claude.work), permission_mode="allow")
        await session.prompt(write_call(path, "by root"))
        assert path.read_text() == "by root"
        path.unlink()
        session = await sdk.create_session(
            agent="claude", cwd=str(claude.work), mode="bypassPermissions", env={"IS_SANDBOX": "1"}
        )
        await session.prompt(write_call(path, "unasked"))
    assert path.read_text() == "unasked"


async def test_claude_goes_on_when_a_turn_was_cancelled(claude: ClaudeServer, tmp_path: Path) -> None:
    async with connected(claude, tmp_path / "sdk.db") as sdk:
        session = await sdk.create_session(agent="claude", cwd=str(claude.work))
        turn = session.stream("[[stall]]")
        text = ""
        async for event in turn:
            text += spoken([event], AgentMessageChunk)
            if text == STALLED_TEXT:
                await session.cancel()
        assert turn.response.stop_reason in {"cancelled", "end_turn"}
        after = len(await history(sdk, session))
        response = await session.prompt("[[say Still here.]]")
        assert response.stop_reason == "end_turn"
        assert spoken((await history(sdk, session))[after:], AgentMessageChunk) == "Still here."


async def test_claude_uses_the_settings_when_they_are_changed(claude: ClaudeServer, tmp_path: Path) -> None:
    async with connected(claude, tmp_path / "sdk.db") as sdk:
        session = await sdk.create_session(agent="claude", cwd=str(claude.work), model="haiku")
        await session.prompt("[[say one]]")
        await session.set_model("sonnet")
        await session.set_thought_level("low")
        await session.set_mode("plan")
        await session.prompt("[[say two]]")
        first, second = claude.llm.requests
        assert "haiku" in first.model
        assert "sonnet" in second.model
        assert second.effort == "low"
        assert "Plan mode is active" not in first.text
        assert "Plan mode is active" in second.text
        options = await session.get_config_options()
        current = {option["category"]: option["currentValue"] for option in options}
        assert current | {"model": "sonnet", "mode": "plan", "thought_level": "low"} == current
        modes = await session.get_modes()
        assert modes is not None
        assert modes["currentModeId"] == "plan"
        with pytest.raises(UnsupportedSessionValueError):
            await session.set_model("gpt-99")
        await history(sdk, session)


async def hang_and_kill(session: Session, claude: ClaudeServer) -> None:
    """Prompt, and once the answer has begun SIGKILL the server and start it again."""
    text = ""
    async for event in session.stream("[[stall]]"):
        text += spoken([event], AgentMessageChunk)
        if text == STALLED_TEXT:
            await anyio.to_thread.run_sync(claude.process.kill)
            await claude.leftovers.gone()  # nothing outlives the server, killed or not
            await anyio.to_thread.run_sync(claude.process.start)


@pytest.mark.parametrize("forgotten", [False, True], ids=["by its own means", "by a replay"])
async def test_claude_knows_the_history_when_the_server_was_killed_in_a_turn(
    claude: ClaudeServer, tmp_path: Path, forgotten: bool
) -> None:
    async with connected(claude, tmp_path / "sdk.db") as sdk:
        session = await sdk.create_session(
            agent="claude", cwd=str(claude.work), model="sonnet", permission_policy="allow_once"
        )
        await session.prompt(write_call(claude.work / "recipe.txt", "boil oranges\n"))
        await session.prompt("The secret word is marmalade. [[say I will remember marmalade.]]")
        first_agent_session = session.agent_session_id
        with pytest.raises(ConnectionLostError):
            await hang_and_kill(session, claude)
        session_id = session.id
    if forgotten:  # as in a new sandbox
        shutil.rmtree(tmp_path / "home/.claude/projects")

    heard = len(claude.llm.requests)
    async with connected(claude, tmp_path / "sdk.db") as sdk:
        session = await sdk.resume_session(session_id)
        assert (session.agent_session_id != first_agent_session) is forgotten
        response = await session.prompt("What was the word? [[say You said it before.]]")
        assert response.stop_reason == "end_turn"
        (said,) = claude.llm.requests[heard:]
        assert "The secret word is marmalade." in said.text
        assert "I will remember marmalade." in said.text
        assert "recipe.txt" in said.text
        assert STALLED_TEXT in said.text
        assert "sonnet" in said.model
        events = await history(sdk, session)
        (restored,) = [event.update for event in events if isinstance(event.update, SessionRestored)]
        assert restored.method == ("replay" if forgotten else "session/load")
        assert restored.failed is None
        # It keeps nothing of an answer that was cut off, and has not always kept the turn before it.
        assert restored.verified is (None if forgotten else False)
        assert restored.replayed > 0
        assert restored.left_out == 0
        assert spoken(events, AgentMessageChunk).endswith(f"{STALLED_TEXT}You said it before.")
    await claude.leftovers.gone("claude-agent-acp", "claude-agent-sdk")


QUESTION = {
    "question": "Which color?",
    "header": "Color",
    "multiSelect": False,
    "options": [
        {"label": "Red", "description": "like wine"},
        {"label": "Blue", "description": "like the sea"},
    ],
}
ASK = f"[[call AskUserQuestion {json.dumps({'questions': [QUESTION]})}]]"


async def test_claude_asks_the_user_of_the_sdk(claude: ClaudeServer, tmp_path: Path) -> None:
    asked: list[QuestionRequest] = []
    async with connected(claude, tmp_path / "sdk.db") as sdk:
        session = await sdk.create_session(agent="claude", cwd=str(claude.work), question_policy="ask")

        def answer(question: QuestionRequest) -> object:
            asked.append(question)
            return session.respond_question(question.id, ["Blue"])

        session.on_question(answer)
        response = await session.prompt(ASK)
        assert response.stop_reason == "end_turn"
        ((field, *_),) = [question.fields for question in asked]
        assert (asked[0].message, field.kind) == ("Which color?", "choice")
        assert any("Blue" in result for request in claude.llm.requests for result in request.results)


async def test_claude_asks_the_users_of_a_server_session_and_its_inbox(
    claude: ClaudeServer, tmp_path: Path
) -> None:
    async with connected(claude, tmp_path / "sdk.db") as sdk:
        await sdk.sessions.create("s", agent="claude", directory=str(claude.work))
        kinds: list[str] = []
        async for event in sdk.sessions.stream_turn("s", ASK):
            kinds.append(event.type)
            if event.type == "question.requested":
                assert isinstance(event.data, QuestionEventData)
                (pending,) = await sdk.sessions.permissions()
                assert (pending.kind, pending.session_id) == ("question", "s")
                assert pending.permission_id == event.data.question_id
                await sdk.sessions.reply_question("s", event.data.question_id, [["Blue"]])
        assert kinds.count("question.requested") == kinds.count("question.resolved") == 1
        assert any("Blue" in result for request in claude.llm.requests for result in request.results)
        assert await sdk.sessions.permissions() == []
