"""Answers by policy and by expiry, over a real store; time is the event loop's."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from sandbox_agent.server.permissions import automatic as watcher_module
from sandbox_agent.server.permissions.automatic import Watcher
from sandbox_agent.wire.sessions import PermissionRule

from .stored import Answered, Live, ask, question, session_row, store_in_memory

pytestmark = pytest.mark.anyio


class Noted(Answered):
    """Says when it has an answer."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.come = anyio.Event()
        self.failing = 0

    async def answer(self, session_id: str, permission_id: str, result: dict[str, Any], by: str) -> bool:
        if self.failing:
            self.failing -= 1
            raise RuntimeError("not now")
        won = await super().answer(session_id, permission_id, result, by)
        self.come.set()
        return won


async def test_a_policy_answers_as_soon_as_the_request_is_stored():
    async with store_in_memory() as store:
        row, answers = session_row(permission_mode="allow"), Noted(store)
        async with Watcher(store, answers).run() as watcher:
            asked = await ask(store, row)
            watcher.on_stored(Live(row), asked)
            with anyio.fail_after(10):
                await answers.come.wait()
    assert answers.results == [
        (asked.permission_id, {"outcome": {"outcome": "selected", "optionId": "yes"}}, "policy")
    ]


async def test_a_rule_knows_the_files_of_a_calls_diffs():
    rules = [PermissionRule(reply="reject", path="/etc/**"), PermissionRule(reply="allow", path="/work/**")]
    call = {
        "locations": [{"path": "/work/a"}],
        "content": [{"type": "diff", "path": "/etc/passwd", "newText": "x"}],
    }
    async with store_in_memory() as store:
        row, answers = session_row(permission_rules=rules), Noted(store)
        async with Watcher(store, answers).run() as watcher:
            watcher.on_stored(Live(row), await ask(store, row, call))
            with anyio.fail_after(10):
                await answers.come.wait()
    assert answers.results[0][1]["outcome"]["optionId"] == "no"


async def test_a_request_that_nobody_answers_in_time_is_rejected():
    async with store_in_memory() as store:
        row, answers = session_row(permission_timeout_seconds=0.05), Noted(store)
        now = time.time_ns() // 1_000_000
        asked = await ask(store, row, expires_at=now + 50)
        asked.requested_at = now
        async with Watcher(store, answers).run() as watcher:
            watcher.on_stored(Live(row), asked)
            watcher.on_stored(Live(row), asked)
            with anyio.fail_after(10):
                await answers.come.wait()
            assert watcher.pending == 0
    assert [(result["outcome"]["optionId"], by) for _, result, by in answers.results] == [("no", "expiry")]


async def test_a_request_of_before_a_restart_expires_too():
    async with store_in_memory() as store:
        row, answers = session_row(permission_timeout_seconds=1.0), Noted(store)
        await ask(store, row, expires_at=2000)  # 1970: long ago
        async with Watcher(store, answers).run():
            with anyio.fail_after(10):
                await answers.come.wait()
    assert answers.results[0][2] == "expiry"


async def test_a_wall_clock_that_jumped_back_keeps_no_request_longer_than_its_time():
    async with store_in_memory() as store:
        row, answers = session_row(), Noted(store)
        now = time.time_ns() // 1_000_000
        async with Watcher(store, answers).run() as watcher:
            asked = await ask(store, row, expires_at=now + 86_400_050)
            asked.requested_at = now + 86_400_000  # asked tomorrow, by a clock that was wrong
            watcher.on_stored(Live(row), asked)
            with anyio.fail_after(10):
                await answers.come.wait()
    assert answers.results[0][2] == "expiry"


async def test_an_answered_request_has_no_timer_any_more():
    async with store_in_memory() as store:
        row, answers = session_row(), Noted(store)
        async with Watcher(store, answers).run() as watcher:
            for _ in range(100):
                asked = await ask(store, row, expires_at=2**60)
                watcher.on_stored(Live(row), asked)
                assert watcher.pending == 1
                asked.answered = "accept"
                watcher.on_stored(Live(row), asked)
                assert watcher.pending == 0


async def test_an_answer_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watcher_module, "RETRY_SECONDS", 0.01)
    async with store_in_memory() as store:
        row, answers = session_row(permission_mode="reject"), Noted(store)
        answers.failing = 2
        async with Watcher(store, answers).run() as watcher:
            watcher.on_stored(Live(row), await ask(store, row))
            with anyio.fail_after(10):
                await answers.come.wait()
    assert answers.results[0][1]["outcome"]["optionId"] == "no"


async def test_a_policy_leaves_questions_to_people_and_their_expiry_declines_them():
    async with store_in_memory() as store:
        row, answers = session_row(permission_mode="allow"), Noted(store)
        asked = await question(store, row, "elicitation/create", {"message": "?"})
        async with Watcher(store, answers).run() as watcher:
            watcher.on_stored(Live(row), asked)
            await anyio.wait_all_tasks_blocked()
            assert answers.results == []
            asked.expires_at = asked.requested_at + 1
            watcher.on_stored(Live(row), asked)
            with anyio.fail_after(10):
                await answers.come.wait()
    assert answers.results[0][1:] == ({"action": "decline"}, "expiry")


async def test_who_comes_after_the_end_is_not_heard():
    async with store_in_memory() as store:
        row, answers = session_row(permission_mode="allow"), Noted(store)
        asked = await ask(store, row)
        async with Watcher(store, answers).run() as watcher:
            pass
        watcher.on_stored(Live(row), asked)
        assert answers.results == []
