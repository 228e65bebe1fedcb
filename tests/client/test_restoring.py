"""How a session goes on in another agent process, or with another agent, and what is said about it."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent import (
    AcpRpcError,
    AgentProcessExitedError,
    InMemorySessionPersistDriver,
    PermissionRequest,
    SandboxAgent,
    SessionEvent,
    SessionFencedError,
    SessionNotFoundError,
    SessionRecord,
    SessionRestored,
    SQLiteSessionPersistDriver,
    Turn,
    UnsupportedAgentError,
)
from sandbox_agent.client import catch_up, unfinished
from sandbox_agent.engine.restore.history import OPENING
from tests.client.checks import all_events, methods, said, sent_prompts
from tests.client.conftest import Front
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio

AGENT = Path(__file__).parent / "loading_agent.py"
MOCK = [sys.executable, "-m", "sandbox_agent.agents.mock"]


Serving = Callable[..., AbstractAsyncContextManager[ServerProcess]]


@pytest.fixture
def serving(front: Front) -> Serving:
    """Starts a server whose ``claude`` opens its sessions again in a way, and whose ``codex`` is a mock."""

    @asynccontextmanager
    async def serve(folder: Path, habit: str, *options: str) -> AsyncGenerator[ServerProcess]:
        put_launcher(folder / "data", "claude", [sys.executable, str(AGENT), str(folder / "kept"), habit])
        put_launcher(folder / "data", "codex", MOCK)
        with our_server(folder, *options, env={"SANDBOX_AGENT_MOCK_STATE": str(folder / "mock")}) as server:
            yield front(server)

    return serve


def restored(events: list[SessionEvent]) -> list[SessionRestored]:
    """Return what is said about restores."""
    return [event.update for event in events if isinstance(event.update, SessionRestored)]


def values_of(record: SessionRecord) -> dict[str, str]:
    """Return what a session is set to."""
    return {option["id"]: option["currentValue"] for option in record.config_options or []}


async def test_a_session_is_resumed_by_its_agent_which_has_not_forgotten_its_mode(
    serving: Serving, tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(40):
        async with serving(tmp_path, "plain") as server:
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.create_session(agent="mock", id="s", model="mock-fast", mode="plan")
                await session.prompt("echo the word is marmalade")
                first = session.agent_session_id
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.resume_session("s")
                events = await all_events(sdk, session)
                (told,) = restored(events)
                assert told == SessionRestored(session_id="s", method="session/resume")
                assert session.agent_session_id == first
                assert await session.get_modes() is not None
                assert (session.record.modes or {})["currentModeId"] == "plan"
                assert values_of(session.record)["model"] == "mock-fast"
                # It kept its settings: none of them was sent again.
                assert not [name for name in methods(events)[-6:] if name.startswith("session/set_")]
                await session.prompt("echo on")
                assert [len(blocks) for blocks in sent_prompts(await all_events(sdk, session))] == [1, 1]


@pytest.mark.parametrize(
    ("habit", "verified"), [("plain", True), ("differs", False), ("late", None), ("silent", True)]
)
async def test_what_an_agent_tells_again_is_no_news_and_is_compared(
    habit: str, verified: bool | None, serving: Serving, tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(40):
        async with serving(tmp_path, habit) as server:
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.create_session(agent="claude", id="s")
                await session.prompt("one")
                await session.prompt("two")
                before = await all_events(sdk, session)
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.get_session("s")
                assert session is not None
                heard: list[SessionEvent] = []
                session.on_event(heard.append)
                assert await sdk.resume_session("s") is session
                await session.prompt("three")
                events = await all_events(sdk, session)
                await sdk.resume_session("s")
    assert said(events) == "You said one.You said two.You said three."
    assert events[: len(before)] == before
    assert heard == events[len(before) :]
    (told,) = restored(events)
    assert (told.method, told.verified, told.failed) == ("session/load", verified, None)
    assert "user_message_chunk" not in "".join(event.payload_json.decode() for event in events)
    # What is so now is told, once.
    after = b"".join(event.payload_json for event in events[len(before) :])
    assert after.count(b"usage_update") == after.count(b"available_commands_update") == 1


async def test_a_request_of_the_past_reaches_nobody(
    serving: Serving, tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    asked: list[PermissionRequest] = []
    with anyio.fail_after(40):
        async with serving(tmp_path, "asks") as server:
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                await (await sdk.create_session(agent="claude", id="s")).prompt("one")
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.get_session("s")
                assert session is not None
                session.on_permission_request(asked.append)
                await session.prompt("two")
                events = await all_events(sdk, session)
    assert asked == []
    assert "session/request_permission" not in methods(events)
    assert restored(events)[0].method == "session/load"


@pytest.mark.parametrize(
    ("habit", "attempts"),
    [
        ("fails", ["session/load"]),
        ("dies", ["session/load"]),
        ("resume unknown", ["session/resume", "session/load"]),
    ],
)
async def test_the_next_rung_is_tried_when_the_agent_refuses_or_dies(
    habit: str, attempts: list[str], serving: Serving, tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(40):
        async with serving(tmp_path, habit) as server:
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                await (await sdk.create_session(agent="claude", id="s")).prompt("one")
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.resume_session("s")
                await session.prompt("blocks")
                events = await all_events(sdk, session)
    (told,) = restored(events)
    native = habit == "resume unknown"
    assert told.method == ("session/load" if native else "replay")
    tried = [name for name in methods(events) if name in {"session/load", "session/resume"}]
    assert tried == attempts
    blocks = json.loads(said(events).removeprefix("You said one."))
    assert len(blocks) == (1 if native else 2)
    assert ("User: one" in blocks[0]) is not native


async def test_an_agent_that_hangs_in_load_is_given_the_replay_when_its_time_is_over(
    serving: Serving, tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(40):
        async with serving(tmp_path, "hangs", "--request-timeout", "1") as server:
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                await (await sdk.create_session(agent="claude", id="s")).prompt("one")
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.resume_session("s")
                await session.prompt("two")
                events = await all_events(sdk, session)
    assert restored(events)[0].method == "replay"
    assert said(events) == "You said one.You said two."


async def test_settings_are_set_again_where_a_loaded_session_has_others(
    serving: Serving, tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(40):
        async with serving(tmp_path, "plain") as server:
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.create_session(agent="claude", id="s", mode="plan", model="plan")
                await session.prompt("one")
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.resume_session("s")
                # The agent forgets its settings with its process.
                assert values_of(session.record) == {"mode": "plan", "model": "plan"}
                events = await all_events(sdk, session)
    assert restored(events)[0].failed is None
    assert methods(events).count("session/set_config_option") == 4


async def test_an_agent_session_that_has_not_read_its_replay_is_no_session_to_go_on_with(
    serving: Serving, tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(40):
        async with serving(tmp_path, "plain") as server:
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.create_session(agent="claude", id="s")
                await session.prompt("one")
                (tmp_path / "kept" / f"{session.agent_session_id}.jsonl").unlink()
            for _ in range(2):  # restored, and no prompt sent: its agent knows the new session, an empty one
                async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                    await sdk.resume_session("s")
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.resume_session("s")
                await session.prompt("blocks")
                events = await all_events(sdk, session)
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.resume_session("s")
                events = await all_events(sdk, session)
    assert [told.method for told in restored(events)] == ["replay", "replay", "replay", "session/load"]
    assert "User: one" in said(events)


async def test_a_session_is_handed_over_to_another_agent_and_back(
    serving: Serving, tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    asked: list[PermissionRequest] = []
    with anyio.fail_after(60):
        async with serving(tmp_path, "plain") as server:
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.create_session(
                    agent="mock", id="s", cwd=str(tmp_path), mode="plan", model="mock-fast"
                )

                def answer(request: PermissionRequest) -> None:
                    asked.append(request)
                    session.respond_permission(request.id, "once")

                session.on_permission_request(answer)
                await session.prompt("echo the word is marmalade")
                former = session.agent_session_id
                assert await sdk.resume_session("s", agent="claude") is session
                assert (session.id, session.agent) == ("s", "claude")
                assert session.agent_session_id != former
                await session.prompt("blocks")
                stored = await driver.get_session("s")
                assert stored is not None
                assert (stored.agent, stored.agent_session_id) == ("claude", session.agent_session_id)
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                # Whoever comes later goes on with the agent that has it now, by that agent's own means.
                session = await sdk.resume_or_create_session(id="s", agent="mock")
                assert session.agent == "claude"
                session.on_permission_request(answer)
                await sdk.resume_session("s", agent="codex")
                await session.prompt("permission 1")
                events = await all_events(sdk, session)
    first, second, third = restored(events)
    assert (first.method, first.from_agent, first.agent) == ("replay", "mock", "claude")
    # Its mode is the other's, too; what the other has not is said.
    assert first.failed == {
        "model": "claude has no model 'mock-fast': it has default, plan",
        "thought_level": "claude has no thought level 'medium': it offers no choice of thought level",
    }
    assert values_of(stored)["mode"] == "plan"
    assert (second.method, second.from_agent, second.agent) == ("session/load", None, None)
    assert (third.method, third.from_agent, third.agent) == ("replay", "claude", "codex")
    # What the user chose is still wanted, though the agent in between did not have it.
    assert (third.failed, third.applied) == (None, {"model": "mock-fast", "mode": "plan"})
    assert len(asked) == 1
    assert "User: echo the word is marmalade" in said(events)
    assert [blocks[-1]["text"] for blocks in sent_prompts(events)] == [
        "echo the word is marmalade",
        "blocks",
        "permission 1",
    ]
    assert all(OPENING not in json.dumps(blocks) for blocks in sent_prompts(events))


async def test_a_turn_that_runs_is_cancelled_when_its_session_is_handed_over(
    serving: Serving, tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(40):
        async with (
            serving(tmp_path, "plain") as server,
            SandboxAgent.connect(base_url=server.url, persist=driver) as sdk,
        ):
            session = await sdk.create_session(agent="mock", id="s")
            begun = asyncio.Event()
            session.on_event(lambda event: begun.set() if event.update is not None else None)
            turn = asyncio.create_task(session.prompt("stream 10000 10"))
            await begun.wait()
            await sdk.resume_session("s", agent="codex")
            assert (await turn).stop_reason == "cancelled"
            await session.prompt("echo mine now")
            events = await all_events(sdk, session)
    names = methods(events)
    assert names.index("session/cancel") < names.index("_sandbox_agent/session_restored")
    assert said(events).endswith("mine now")
    assert restored(events)[0].agent == "codex"


async def test_a_session_stays_where_it_is_when_the_other_agent_is_unknown(
    tmp_path: Path, sdk: SandboxAgent
) -> None:
    session = await sdk.create_session(agent="mock", id="s", cwd=str(tmp_path))
    await session.prompt("echo one")
    for wrong in ("", " "):
        with pytest.raises(ValueError, match="agent is empty"):
            await sdk.resume_session("s", agent=wrong)
    with pytest.raises(UnsupportedAgentError):
        await sdk.resume_session("s", agent="nobody")
    with pytest.raises(SessionNotFoundError):
        await sdk.resume_session("nowhere", agent="mock")
    await session.prompt("echo two")
    events = await all_events(sdk, session)
    assert (session.agent, said(events), restored(events)) == ("mock", "onetwo", [])


async def test_the_later_of_two_clients_has_the_session_and_the_other_takes_it_back(
    serving: Serving, tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(60):
        async with (
            serving(tmp_path, "plain") as server,
            SandboxAgent.connect(base_url=server.url, persist=driver) as first,
            SandboxAgent.connect(base_url=server.url, persist=driver) as second,
        ):
            mine = await first.create_session(agent="mock", id="s")
            await mine.prompt("echo one")
            theirs = await second.resume_session("s", take_over=True)
            await theirs.prompt("echo two")
            with pytest.raises(SessionFencedError):
                await mine.prompt("echo nowhere")
            assert await first.resume_session("s", take_over=True) is mine
            await mine.prompt("echo three")
            with pytest.raises(SessionFencedError):
                await theirs.prompt("echo nowhere else")
            await second.resume_session("s", take_over=True)
            await theirs.prompt("echo four")
            events = await all_events(second, theirs)
    text = said(events)
    assert [text.index(word) for word in ("one", "two", "three", "four")] == sorted(
        text.index(word) for word in ("one", "two", "three", "four")
    )


class CountingDriver(InMemorySessionPersistDriver):
    """A store that counts what is read of it."""

    def __init__(self) -> None:
        super().__init__()
        self.read = 0

    async def tail_events(self, session_id: str, /, *, limit: int) -> list[SessionEvent]:
        events = await super().tail_events(session_id, limit=limit)
        self.read += len(events)
        return events

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> Any:
        raise AssertionError("a restore walks no history")


async def test_a_replay_has_the_conversation_also_when_the_agent_speaks_in_many_pieces(
    serving: Serving, tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(40):
        async with (
            serving(tmp_path, "plain") as server,
            SandboxAgent.connect(base_url=server.url, persist=driver) as sdk,
        ):
            session = await sdk.create_session(agent="mock", id="s")
            await session.prompt("echo the word is marmalade")
            await session.prompt("burst 300 10")
            await session.prompt("burst 300 10")
            await sdk.resume_session("s", agent="codex")
            await session.prompt("echo on")
            events = await all_events(sdk, session)
    (told,) = restored(events)
    assert (told.method, told.left_out) == ("replay", 0)
    assert told.replayed > 600


@pytest.mark.parametrize("habit", ["plain", "fails"])
async def test_a_restore_reads_what_it_may_replay_and_no_more(
    habit: str, serving: Serving, tmp_path: Path
) -> None:
    driver = CountingDriver()
    with anyio.fail_after(40):
        async with serving(tmp_path, habit) as server:
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.create_session(agent="claude", id="s")
                for number in range(30):
                    await session.prompt(f"number {number}")
            stored = await driver.last_event_index("s")
            assert 100 < stored < 256
            # Read once more to find the place in the former stream; a few to find what a lost client left.
            driver.read = -stored - catch_up.FIRST - unfinished.NEWEST
            async with SandboxAgent.connect(base_url=server.url, persist=driver, replay_max_events=40) as sdk:
                await sdk.resume_session("s")
    if habit == "plain":  # it opens its own session
        assert driver.read == 40
    else:  # texts in pieces leave a replay room for more than 40 stored events
        assert 40 + 4 * 40 - 16 < driver.read < 40 + 4 * 40 + 32


async def test_a_restore_that_is_lost_leaves_the_session_with_the_agent_that_it_had(
    serving: Serving, tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(40):
        async with serving(tmp_path, "plain") as server:
            put_launcher(
                tmp_path / "data", "codex", [sys.executable, str(AGENT), str(tmp_path), "dies at once"]
            )
            async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
                session = await sdk.create_session(agent="mock", id="s", mode="plan")
                await session.prompt("echo one")
                before = session.record
                with pytest.raises(AgentProcessExitedError):
                    await sdk.resume_session("s", agent="codex")
                assert session.record == before
                await session.prompt("echo two")
                events = await all_events(sdk, session)
    assert said(events) == "onetwo"
    assert restored(events) == []


@pytest.mark.parametrize("method", ["prompt", "stream"])
async def test_a_session_that_its_agent_has_lost_is_restored_once(sdk: SandboxAgent, method: str) -> None:
    """The agent lives, and answers that it does not know the session."""
    session = await sdk.create_session(agent="claude")
    await session.prompt("lose this session")
    first = session.agent_session_id
    with anyio.fail_after(30):
        if method == "prompt":
            assert (await session.prompt("blocks")).stop_reason == "end_turn"
        else:
            turn = session.stream("blocks")
            seen = [event async for event in turn]
            assert seen[-1].payload["result"]["stopReason"] == "end_turn"
    assert session.agent_session_id != first
    events = await all_events(sdk, session)
    assert len(restored(events)) == 1
    assert [blocks[0]["text"] for blocks in sent_prompts(events)] == ["lose this session", "blocks", "blocks"]


async def drain(turn: Turn) -> None:
    """Read all events of a turn."""
    async for _ in turn:
        pass


@pytest.mark.parametrize("method", ["prompt", "stream"])
async def test_a_prompt_is_not_sent_again_when_the_agent_has_used_a_tool(
    sdk: SandboxAgent, method: str
) -> None:
    session = await sdk.create_session(agent="claude")
    text = "act and lose this session"
    with anyio.fail_after(30):
        with pytest.raises(AcpRpcError, match="Session not found"):
            await (session.prompt(text) if method == "prompt" else drain(session.stream(text)))
        assert (await session.prompt("blocks")).stop_reason == "end_turn"
    events = await all_events(sdk, session)
    assert [blocks[0]["text"] for blocks in sent_prompts(events)] == [text, "blocks"]
    assert len(restored(events)) == 1


async def test_a_session_that_is_lost_again_fails_clearly(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude")
    await session.prompt("lose all sessions")
    for _ in range(2):
        with anyio.fail_after(30), pytest.raises(AcpRpcError, match="Internal") as caught:
            await session.prompt("hello")
        assert caught.value.data == {"details": "Session not found"}
