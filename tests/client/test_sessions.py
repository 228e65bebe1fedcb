"""Sessions over a real server and the mock agent: make, prompt, stream, list, destroy."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import anyio
import pytest

from sandbox_agent import (
    AcpRpcError,
    AgentMessageChunk,
    ConflictError,
    PersistError,
    PromptResponse,
    SandboxAgent,
    SandboxAgentError,
    Session,
    SessionAlreadyExistsError,
    SessionEvent,
    SessionNotFoundError,
    SQLiteSessionPersistDriver,
    UnknownUpdate,
    UnsupportedAgentError,
)
from sandbox_agent.client import router as router_module
from tests.client.checks import all_events, methods, said, sent_prompts
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio


async def test_a_prompt_is_answered_and_every_envelope_is_stored_when_it_returns(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", cwd="/tmp")
    response = await session.prompt("echo hello")
    assert response.stop_reason == "end_turn"
    events = await all_events(sdk, session)
    kinds = methods(events)
    assert kinds[:3] == ["session/new", "result", "session/prompt"]
    assert kinds[-1] == "result"
    assert set(kinds[3:-1]) == {"session/update"}
    assert said(events) == "hello"
    assert [event.sender for event in events[:3]] == ["client", "agent", "client"]
    assert {event.connection_id for event in events} == {session.last_connection_id}


async def test_a_prompt_may_be_content_blocks(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude")
    blocks = [{"type": "text", "text": "first"}, {"type": "text", "text": "blocks"}]
    await session.prompt(blocks)
    events = await all_events(sdk, session)
    assert sent_prompts(events) == [blocks]
    assert '"text": "first"' in said(events)


async def test_a_stream_begins_with_the_prompt_and_ends_with_its_answer(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    turn = session.stream("echo hello")
    seen = [event async for event in turn]
    assert turn.response.stop_reason == "end_turn"
    assert methods(seen)[0] == "session/prompt"
    assert methods(seen)[-1] == "result"
    assert said(seen) == "hello"
    assert seen == (await all_events(sdk, session))[-len(seen) :]


async def test_a_turn_goes_on_when_its_stream_is_left(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    with anyio.fail_after(20):
        async for event in session.stream("burst 3000 50"):
            if event.update is not None:
                break
        async for event in session.events():
            if event.payload.get("result", {}).get("stopReason"):
                break
    assert methods(await all_events(sdk, session)).count("session/update") == 3000


async def test_a_stream_raises_what_the_turn_failed_with_after_its_events(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude")
    turn = session.stream("fail")
    seen: list[SessionEvent] = [await anext(turn), await anext(turn)]
    with pytest.raises(AcpRpcError) as caught:
        await anext(turn)
    assert (caught.value.code, caught.value.data) == (-32603, {"why": "asked to"})
    assert str(caught.value) == "Internal agent error: it broke"
    assert methods(seen) == ["session/prompt", "error"]


async def test_events_gives_history_then_live_ones_without_gap_or_repeat(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    await session.prompt("burst 1500 20")
    history = await all_events(sdk, session)
    seen: list[int] = []
    reading = asyncio.Event()

    async def read(until: int) -> None:
        async for event in session.events(after=700):
            seen.append(event.event_index)
            reading.set()
            if event.event_index == until:
                return

    total = len(history) + 1500 + 2
    with anyio.fail_after(20):
        async with asyncio.TaskGroup() as group:
            group.create_task(read(total))
            await reading.wait()
            await session.prompt("burst 1500 20")
    assert seen == list(range(701, total + 1))


async def test_a_slow_reader_of_a_large_turn_gets_every_event_once(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    before = len(await all_events(sdk, session))
    reader = session.stream("burst 30000 10")
    first = await anext(reader)
    async for event in session.events(after=before + 30001):
        if event.payload.get("result"):
            break
    indexes = [first.event_index] + [event.event_index async for event in reader]
    assert indexes == list(range(before + 1, before + 30003))


async def test_20_000_events_are_all_stored_and_seen_when_prompt_returns(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    seen: list[int] = []
    session.on_event(lambda event: seen.append(event.event_index))
    before = len(await all_events(sdk, session))
    await session.prompt("burst 20000 200")
    assert seen == list(range(before + 1, before + 20003))
    assert len(await all_events(sdk, session)) == before + 20002


async def test_two_sessions_made_at_once_share_one_connection(sdk: SandboxAgent) -> None:
    before = {server.server_id for server in await sdk.list_acp_servers()}
    one, two = await asyncio.gather(sdk.create_session(agent="mock"), sdk.create_session(agent="mock"))
    made = [server for server in await sdk.list_acp_servers() if server.server_id not in before]
    assert [server.agent for server in made] == ["mock"]
    assert made[0].server_id.startswith("sdk-mock-")
    assert one.last_connection_id == two.last_connection_id
    assert one.agent_session_id != two.agent_session_id


async def test_two_turns_at_once_keep_their_events_apart(sdk: SandboxAgent) -> None:
    one = await sdk.create_session(agent="mock")
    two = await sdk.create_session(agent="mock")
    await asyncio.gather(one.prompt("burst 2000 30"), two.prompt("burst 2000 30"))
    for session in (one, two):
        events = await all_events(sdk, session)
        assert methods(events).count("session/update") == 2000
        owners = {
            event.payload["params"]["sessionId"]
            for event in events
            if "params" in event.payload and event.sender == "agent"
        }
        assert owners == {session.agent_session_id}


async def test_updates_that_come_before_the_session_is_known_are_kept_in_place(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude")
    events = await all_events(sdk, session)
    assert methods(events) == ["session/new", "session/update", "result"]
    assert said(events) == "early, authenticated with anthropic-api-key"


async def test_an_update_that_nobody_knows_passes_through(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude")
    (update,) = [
        event.update
        async for event in session.stream("unknown update")
        if isinstance(event.update, UnknownUpdate)
    ]
    assert update.raw["flux"] == 1.21


async def test_a_lone_surrogate_does_not_end_the_turn(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude")
    events = [event async for event in session.stream("surrogate")]
    texts = [event.update.text for event in events if isinstance(event.update, AgentMessageChunk)]
    assert texts == ["\ufffd"]  # it can be printed
    assert any(b"\\ud83d" in event.payload_json for event in events)


async def test_lines_that_are_no_json_do_not_end_the_turn(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    assert (await session.prompt("garbage")).stop_reason == "end_turn"
    assert said(await all_events(sdk, session)).endswith("That was garbage.")


async def test_cancel_stops_the_turn_and_is_stored(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    with anyio.fail_after(10):
        turn = session.stream("stall")
        await anext(turn)
        await session.cancel()
        rest = [event async for event in turn]
    assert turn.response.stop_reason == "cancelled"
    assert turn.response.cancelled
    assert "session/cancel" in methods(rest)


async def test_a_cancelled_turn_is_cancelled_whatever_its_agent_says(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude")
    with anyio.fail_after(10):
        turn = await begin(session, "end when cancelled")
        await session.cancel()
        response = await turn
    assert (response.stop_reason, response.cancelled) == ("end_turn", True)
    assert not (await session.prompt("blocks")).cancelled


async def test_cancelling_the_caller_does_not_cancel_the_turn(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    started = asyncio.Event()
    session.on_event(lambda event: started.set() if event.update is not None else None)
    caller = asyncio.create_task(session.prompt("stream 20 10"))
    with anyio.fail_after(10):
        await started.wait()
        caller.cancel()
        async for event in session.events():
            if event.payload.get("result", {}).get("stopReason"):
                assert event.payload["result"]["stopReason"] == "end_turn"
                break


async def test_session_cancel_by_hand_is_refused(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    with pytest.raises(SandboxAgentError, match=r"use session\.cancel\(\)"):
        await session.raw_send("session/cancel")


async def test_any_method_can_be_sent_and_is_stored(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    listed = await session.raw_send("session/list")
    assert session.agent_session_id in {item["sessionId"] for item in listed["sessions"]}
    await session.raw_send("_x/note", {"a": 1}, notification=True)
    assert methods(await all_events(sdk, session))[-3:] == ["session/list", "result", "_x/note"]


async def test_a_method_that_the_agent_lacks_raises_with_its_code(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    with pytest.raises(AcpRpcError, match="Method not supported by agent") as caught:
        await session.raw_send("_no/such")
    assert caught.value.code == -32601


async def test_stored_sessions_are_listed_and_found(sdk: SandboxAgent) -> None:
    made = [await sdk.create_session(agent="mock", id=f"s{number}") for number in range(3)]
    first = await sdk.list_sessions(limit=2)
    rest = await sdk.list_sessions(limit=2, cursor=first.next_cursor)
    assert [*first.items, *rest.items] == made
    assert await sdk.get_session("s1") is made[1]
    assert await sdk.get_session("nobody") is None


async def test_an_id_that_exists_is_not_made_twice(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", id="mine")
    with pytest.raises(SessionAlreadyExistsError):
        await sdk.create_session(agent="mock", id="mine", mode="plan")
    assert await sdk.resume_or_create_session(id="mine", agent="mock") is session
    assert "_sandbox_agent/session_restored" not in methods(await all_events(sdk, session))


async def test_a_destroyed_session_says_when_and_can_be_resumed(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    destroyed = await sdk.destroy_session(session.id)
    assert destroyed is session
    assert session.destroyed_at is not None
    stored = await sdk.persist.get_session(session.id)
    assert stored is not None
    assert stored.destroyed_at == session.destroyed_at
    assert methods(await all_events(sdk, session))[-1] == "session/cancel"
    resumed = await sdk.resume_session(session.id)
    assert resumed.destroyed_at is None
    assert (await resumed.prompt("hello")).stop_reason == "end_turn"


async def test_a_deleted_session_leaves_nothing(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    await session.prompt("hello")
    await sdk.delete_session(session.id)
    assert await sdk.get_session(session.id) is None
    with pytest.raises(SessionNotFoundError):
        await sdk.get_events(session_id=session.id)
    with pytest.raises(SessionNotFoundError):
        await sdk.resume_session(session.id)


async def test_an_agent_that_the_server_does_not_know_is_refused(sdk: SandboxAgent) -> None:
    with pytest.raises(UnsupportedAgentError):
        await sdk.create_session(agent="nobody", id="x")
    assert await sdk.get_session("x") is None


async def test_a_record_changed_by_another_process_is_read_by_refresh(
    shared_server: ServerProcess, sdk: SandboxAgent, driver: SQLiteSessionPersistDriver
) -> None:
    session = await sdk.create_session(agent="mock")
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as other:
        await other.destroy_session(session.id)
    assert session.destroyed_at is None
    assert (await session.refresh()).destroyed_at is not None


async def test_a_client_that_was_disposed_says_so(shared_server: ServerProcess) -> None:
    sdk = await SandboxAgent.connect(base_url=shared_server.url)
    session = await sdk.create_session(agent="mock")
    await sdk.dispose()
    await sdk.dispose()
    with pytest.raises(SandboxAgentError):
        await session.prompt("hello")


async def test_dispose_ends_the_agents_and_the_readers(shared_server: ServerProcess) -> None:
    async with SandboxAgent.connect(base_url=shared_server.url) as observer:
        before = {server.server_id for server in await observer.list_acp_servers()}
        sdk = await SandboxAgent.connect(base_url=shared_server.url)
        session = await sdk.create_session(agent="mock")
        reader = session.events()
        first = await anext(reader)
        with anyio.fail_after(10):
            await sdk.dispose()
            rest = [event async for event in reader]
        assert first.event_index == 1
        assert methods(rest) == ["result"]
        assert {server.server_id for server in await observer.list_acp_servers()} == before


async def test_a_session_deleted_in_a_turn_leaves_nothing(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    started = asyncio.Event()
    session.on_event(lambda event: started.set() if event.update is not None else None)
    turn = asyncio.create_task(session.prompt("stream 1000 5"))
    with anyio.fail_after(10):
        await started.wait()
        await sdk.delete_session(session.id)
        assert (await turn).stop_reason == "cancelled"
    with pytest.raises(SessionNotFoundError):
        await sdk.get_events(session_id=session.id)
    assert await sdk.get_session(session.id) is None


async def test_sessions_of_the_agents_own_do_not_fill_the_memory(
    sdk: SandboxAgent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(router_module, "MAX_HELD", 50)
    session = await sdk.create_session(agent="claude")
    await session.prompt("subagent")
    await session.prompt("subagent")
    assert caplog.text.count("belongs to no session of this client") == 1
    assert said(await all_events(sdk, session)).endswith("donedone")


async def test_a_client_disposed_while_it_connects_leaves_no_agent(shared_server: ServerProcess) -> None:
    async with SandboxAgent.connect(base_url=shared_server.url) as observer:
        before = {server.server_id for server in await observer.list_acp_servers()}
        sdk = await SandboxAgent.connect(base_url=shared_server.url)
        making = asyncio.create_task(sdk.create_session(agent="mock"))
        await asyncio.sleep(0)
        with anyio.fail_after(10):
            await sdk.dispose()
            with pytest.raises(SandboxAgentError):
                await making
        assert {server.server_id for server in await observer.list_acp_servers()} == before


async def test_an_error_that_is_only_a_text_is_an_error(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude")
    with pytest.raises(AcpRpcError, match="it broke"):
        await session.prompt("fail with a text")


async def test_a_second_prompt_is_sent_when_the_first_turn_has_ended(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    texts = [f"echo {number}" for number in range(4)]
    with anyio.fail_after(30):
        first = asyncio.create_task(session.prompt("stream 20 20"))
        await asyncio.sleep(0)
        await asyncio.gather(*(session.prompt(text) for text in texts))
        assert first.done()
    events = await all_events(sdk, session)
    running = 0
    for event in events:
        if event.payload.get("method") == "session/prompt":
            running += 1
        elif "stopReason" in (event.payload.get("result") or {}):
            running -= 1
        assert 0 <= running <= 1
    assert [blocks[0]["text"] for blocks in sent_prompts(events)] == ["stream 20 20", *texts]


async def test_a_prompt_waits_for_a_turn_whose_caller_was_cancelled(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    started = asyncio.Event()
    session.on_event(lambda event: started.set() if event.update is not None else None)
    with anyio.fail_after(30):
        caller = asyncio.create_task(session.prompt("stream 30 20"))
        await started.wait()
        caller.cancel()
        await session.prompt("echo the end")
    assert said(await all_events(sdk, session)).split()[-3:] == ["000030", "the", "end"]


async def begin(session: Session, prompt: str) -> asyncio.Task[PromptResponse]:
    """Send a prompt, and wait until the agent has begun its turn."""
    started = asyncio.Event()
    stop = session.on_event(lambda event: started.set() if event.update is not None else None)
    turn = asyncio.create_task(session.prompt(prompt))
    await started.wait()
    stop()
    return turn


async def test_a_prompt_that_does_not_queue_is_refused_while_a_turn_runs_or_waits(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    with anyio.fail_after(30):
        running = await begin(session, "stream 1000 20")
        waiting = asyncio.create_task(session.prompt("echo waited"))
        await asyncio.sleep(0)
        with pytest.raises(ConflictError, match="a turn of session") as raised:
            await session.prompt("refused", on_busy="error")
        assert pickle.loads(pickle.dumps(raised.value)).detail == raised.value.detail
        with pytest.raises(ConflictError):
            async for _ in session.stream("refused", on_busy="error"):
                pass
        running.cancel()  # its turn continues
        with pytest.raises(ConflictError):
            await session.prompt("refused", on_busy="error")
        await session.cancel()
        await waiting
        assert (await session.prompt("echo idle", on_busy="error")).stop_reason == "end_turn"
    prompts = [blocks[0]["text"] for blocks in sent_prompts(await all_events(sdk, session))]
    assert prompts == ["stream 1000 20", "echo waited", "echo idle"]


async def test_what_to_do_while_busy_is_one_of_two(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    with pytest.raises(ValueError, match='"queue" or "error"'):
        await session.prompt("x", on_busy="wait")  # pyright: ignore[reportArgumentType]


async def test_an_agent_that_ignores_a_cancellation_is_stopped(shared_server: ServerProcess) -> None:
    with anyio.fail_after(60):
        async with SandboxAgent.connect(base_url=shared_server.url, cancel_grace=0.2) as sdk:
            session = await sdk.create_session(agent="claude")
            turn = await begin(session, "never end")
            await session.cancel()
            assert (await turn).stop_reason == "cancelled"
            assert (await session.prompt("blocks")).stop_reason == "end_turn"
            assert "session_restored" in str(methods(await all_events(sdk, session)))


async def test_an_agent_that_ignores_a_cancellation_lets_other_turns_end(
    shared_server: ServerProcess,
) -> None:
    with anyio.fail_after(60):
        async with SandboxAgent.connect(base_url=shared_server.url, cancel_grace=0.2) as sdk:
            stuck, other = await sdk.create_session(agent="claude"), await sdk.create_session(agent="claude")
            first = stuck.last_connection_id
            running = await begin(other, "never end")
            turn = await begin(stuck, "never end")
            await stuck.cancel()
            assert (await turn).stop_reason == "cancelled"
            assert not running.done()
            assert (await stuck.prompt("blocks")).stop_reason == "end_turn"
            assert stuck.last_connection_id != first
            assert other.last_connection_id == first
            await other.cancel()
            assert (await running).stop_reason == "cancelled"
            assert (await other.prompt("blocks")).stop_reason == "end_turn"
            assert other.last_connection_id == stuck.last_connection_id


async def test_a_turn_has_its_text_and_its_response(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    async with session.stream("echo one two") as turn:
        with pytest.raises(SandboxAgentError, match="has no response yet: await it, or iterate to its end"):
            _ = turn.response
        assert (turn.text, repr(turn)) == ("", f"<Turn of session {session.id!r}: running>")
        async for _event in turn:
            pass
    assert (turn.text, turn.response.stop_reason) == ("one two", "end_turn")
    assert repr(turn) == f"<Turn of session {session.id!r}: end_turn>"
    awaited = session.stream("echo three")
    assert (await awaited).stop_reason == "end_turn"
    assert awaited.text == "three"
    assert await awaited is awaited.response
    assert await session.ask("echo four") == "four"


async def test_a_turn_that_is_left_early_can_still_be_awaited(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    async with session.stream("burst 100 10") as turn:
        async for _event in turn:
            break
    with anyio.fail_after(20):
        assert (await turn).stop_reason == "end_turn"


async def test_a_turn_that_is_left_before_its_first_event_was_not_sent(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    async with session.stream("echo one") as turn:
        pass
    with pytest.raises(SandboxAgentError, match="was not sent: the turn was left before its first event"):
        await turn
    assert await session.ask("echo two") == "two"


async def test_leaving_a_session_destroys_it_and_keeps_its_history(sdk: SandboxAgent) -> None:
    async with await sdk.create_session(agent="mock") as session:
        assert await session.ask("echo here") == "here"
        assert session.destroyed_at is None
    assert session.destroyed_at is not None
    assert (await sdk.get_events(session_id=session.id)).items
    async with await sdk.resume_session(session.id, read_only=True) as reader:
        assert reader.id == session.id


async def test_connect_takes_the_url_alone(shared_server: ServerProcess) -> None:
    async with SandboxAgent.connect(shared_server.url) as sdk:
        assert (await sdk.get_health()).status == "ok"


async def test_leaving_a_driver_closes_it(tmp_path: Path) -> None:
    async with SQLiteSessionPersistDriver(tmp_path / "s.db") as driver:
        assert (await driver.list_sessions()).items == []
    with pytest.raises(PersistError, match="closed"):
        await driver.list_sessions()
