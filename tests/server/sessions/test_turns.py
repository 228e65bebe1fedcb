"""Messages of managed sessions: accepted, queued, run in order, cancelled, failed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent.errors import ConflictError, InvalidRequestError, ServerSessionNotFoundError
from sandbox_agent.server.sessions.driven_session import MAX_QUEUED_MESSAGES
from tests.server.sessions.stack import TIMEOUT, running, said
from tests.support.servers import put_launcher

pytestmark = pytest.mark.anyio


async def test_a_message_is_answered_and_its_turn_is_done(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        turn = await stack.say("echo hello")
        assert turn.state == "accepted"
        done = await stack.over(turn)
        assert (done.state, done.stop_reason, done.number) == ("done", "end_turn", 1)
        assert done.digest == turn.digest
        assert await stack.texts("user") == ["echo hello"]
        assert await stack.texts("assistant") == ["hello"]
        events = await stack.events()
        assert [event["sequence"] for event in events] == list(range(1, len(events) + 1))
        assert events[0]["type"] == "session.started"
        started = [event for event in events if event["type"] == "turn.started"]
        assert [event["data"]["turn_id"] for event in started] == [turn.turn_id]


async def test_messages_run_one_at_a_time_in_their_order(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        turns = [await stack.say(f"echo {number}") for number in range(8)]
        for turn in turns:
            assert (await stack.over(turn)).state == "done"
        marks = [event for event in await stack.events() if event["type"].startswith("turn.")]
        assert [(mark["type"], mark["data"]["turn_id"]) for mark in marks] == [
            (kind, turn.turn_id) for turn in turns for kind in ("turn.started", "turn.ended")
        ]
        assert await stack.texts("assistant") == [str(number) for number in range(8)]
        assert [turn.number for turn in turns] == list(range(1, 9))


async def test_a_message_is_refused_when_too_many_wait(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        first = await stack.say("stall")
        await stack.until("turn.started")
        for _ in range(MAX_QUEUED_MESSAGES):
            await stack.say("echo later", key=None)
        with pytest.raises(ConflictError, match="wait already"):
            await stack.say("echo too many")
        await stack.sessions.cancel("s")
        assert (await stack.over(first)).state == "cancelled"
        await stack.until("turn.ended", count=MAX_QUEUED_MESSAGES + 1)
        assert len(await stack.texts("assistant")) == MAX_QUEUED_MESSAGES


async def test_the_same_key_returns_the_same_turn_and_another_body_conflicts(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        turn = await stack.say("echo once", key="k")
        assert (await stack.say("echo once", key="k")).turn_id == turn.turn_id
        await stack.over(turn)
        again = await stack.say("echo once", key="k")
        assert (again.turn_id, again.state) == (turn.turn_id, "done")
        with pytest.raises(ConflictError, match="another"):
            await stack.say("echo twice", key="k")
        assert await stack.texts("assistant") == ["once"]


async def test_messages_sent_at_once_under_one_key_make_one_turn(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        found: list[str] = []

        async def say() -> None:
            found.append((await stack.say("echo once", key="k")).turn_id)

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(say)
        assert len(set(found)) == 1


async def test_a_prompt_that_is_none_is_refused(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        for prompt in ([], [{"text": "no type"}]):
            with pytest.raises(InvalidRequestError):
                await stack.sessions.message("s", prompt)
        with pytest.raises(ServerSessionNotFoundError):
            await stack.sessions.message("nobody", said("hello"))


async def test_cancel_ends_the_turn_and_leaves_the_queue(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        stalled, next_one = await stack.say("stall"), await stack.say("echo next")
        await stack.until("turn.started")
        await stack.sessions.cancel("s")
        assert (await stack.over(stalled)).state == "cancelled"
        assert (await stack.over(next_one)).state == "done"


async def test_cancel_answers_what_the_agent_has_asked(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        turn = await stack.say("permission 3")
        await stack.until("permission.requested", count=3)
        await stack.sessions.cancel("s")
        assert (await stack.over(turn)).state == "cancelled"
        resolved = [event for event in await stack.events() if event["type"] == "permission.resolved"]
        assert {event["data"]["metadata"]["outcome"] for event in resolved} == {"cancelled"}
        assert len(resolved) == 3
        assert await stack.store.pending_permissions(limit=10) == []


async def test_cancel_without_a_turn_does_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        await stack.sessions.cancel("s")
        turn = await stack.over(await stack.say("echo still here"))
        assert turn.state == "done"


async def test_a_cancel_that_races_the_end_of_a_turn_harms_nothing(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        for number in range(30):
            turn = await stack.say(f"echo {number}")
            for _ in range(number):  # so many steps of the event loop later
                await anyio.lowlevel.checkpoint()
            await stack.sessions.cancel("s")
            assert (await stack.over(turn)).state in ("done", "cancelled")
        last = await stack.over(await stack.say("echo last"))
        assert last.state == "done"
        assert (await stack.texts("assistant"))[-1] == "last"
        kinds = await stack.types()
        assert kinds.count("turn.ended") == 31


class Gate:
    """Holds the calls of a method until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.reached = anyio.Event()
        self.opened = anyio.Event()
        method = getattr(owner, name)

        async def wait(*args: Any) -> Any:
            self.reached.set()
            await self.opened.wait()
            return await method(*args)

        monkeypatch.setattr(owner, name, wait)


async def test_a_cancel_between_two_turns_cancels_the_one_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        between = Gate(monkeypatch, stack.recorder, "wait_flushed")
        first, next_one = await stack.say("echo first"), await stack.say("stall")
        last = await stack.say("echo last")
        await between.reached.wait()
        await stack.until("turn.ended")
        await stack.sessions.cancel("s")
        between.opened.set()
        assert (await stack.over(first)).state == "done"
        assert (await stack.over(next_one)).state == "cancelled"
        assert (await stack.over(last)).state == "done"
        started = [event for event in await stack.events() if event["type"] == "turn.started"]
        assert next_one.turn_id not in {event["data"]["turn_id"] for event in started}


async def test_a_cancel_that_is_late_does_not_answer_what_the_next_turn_asks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        stalled, next_one = await stack.say("stall"), await stack.say("permission")
        await stack.until("turn.started")
        late = Gate(monkeypatch, stack.recorder, "open_requests")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stack.sessions.cancel, "s")
            assert (await stack.over(stalled)).state == "cancelled"
            await stack.until("permission.requested")
            late.opened.set()
        asked = await stack.asked()
        allowed = {"outcome": {"outcome": "selected", "optionId": "allow_once"}}
        assert await stack.sessions.answer("s", asked.permission_id, allowed, "me")
        assert (await stack.over(next_one)).state == "done"
        assert "granted" in "".join(await stack.texts("assistant"))


async def test_an_agent_that_ends_its_turn_too_late_is_started_again_for_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its turn ends between the decision to stop it and its end."""
    put_asking(tmp_path, monkeypatch)
    async with running(tmp_path, cancel_grace=0.01) as stack:
        await stack.create(agent="asking")
        ignoring, next_one = await stack.say("work"), await stack.say("read")
        await stack.until("item.delta")
        late = Gate(monkeypatch, stack.recorder, "open_requests")
        stopping = Gate(monkeypatch, stack.recorder, "add_events")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stack.sessions.cancel, "s")
            with anyio.fail_after(TIMEOUT):
                await stopping.reached.wait()
            late.opened.set()
            assert (await stack.over(ignoring)).state == "cancelled"
            stopping.opened.set()
        assert (await stack.over(next_one)).state == "done"


def put_asking(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the agent of asking_agent.py."""
    put_launcher(
        folder / "data", "asking", [sys.executable, str(Path(__file__).with_name("asking_agent.py"))]
    )
    monkeypatch.setenv("XDG_DATA_HOME", str(folder / "data"))


async def test_what_the_agent_asks_of_nobody_is_refused_so_that_its_turn_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_asking(tmp_path, monkeypatch)
    async with running(tmp_path) as stack:
        await stack.create(agent="asking")
        assert (await stack.over(await stack.say("read"))).state == "done"
        (answer,) = await stack.texts("assistant")
        assert "-32601" in answer
        assert "fs/read_text_file" in answer


async def test_what_the_agent_asks_after_a_cancel_is_cancelled_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_asking(tmp_path, monkeypatch)
    async with running(tmp_path) as stack:
        await stack.create(agent="asking")
        turn = await stack.say("work")
        await stack.until("item.delta")
        await stack.sessions.cancel("s")
        assert (await stack.over(turn)).state == "cancelled"
        (answered,) = [event for event in await stack.events() if event["type"] == "permission.resolved"]
        assert answered["data"]["metadata"]["answered_by"] == "cancel"
        assert "cancelled" in "".join(await stack.texts("assistant"))


async def test_what_reads_like_a_question_waits_for_people(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        asking = await stack.say("ask-extension")
        await stack.until("question.requested")
        await stack.sessions.cancel("s")
        assert (await stack.over(asking)).state == "cancelled"
