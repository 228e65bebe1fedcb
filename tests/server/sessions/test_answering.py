"""Answers to what agents ask: the first one goes through, and is written down."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.errors import ConflictError, NotFoundError
from sandbox_agent.wire.jsonrpc import dumps, read_head
from tests.server.sessions.stack import running

pytestmark = pytest.mark.anyio


def selected(option: str) -> dict[str, object]:
    """Return a permission's result."""
    return {"outcome": {"outcome": "selected", "optionId": option}}


async def test_an_answer_reaches_the_agent_and_is_written_down(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        turn = await stack.say("permission")
        asked = await stack.asked()
        assert await stack.sessions.answer("s", asked.permission_id, selected("allow_once"), "anna")
        assert (await stack.over(turn)).state == "done"
        row = await stack.store.permission(asked.key, asked.permission_id)
        assert row is not None
        assert (row.answered, row.answered_by) == ("accept", "anna")
        assert "Permission granted (allow_once)" in "".join(await stack.texts("assistant"))


async def test_the_first_of_many_answers_wins_and_the_others_are_told(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        turn = await stack.say("permission")
        asked = await stack.asked()
        won: list[str] = []
        lost: list[str] = []

        async def answer(by: str, option: str) -> None:
            first = await stack.sessions.answer("s", asked.permission_id, selected(option), by)
            (won if first else lost).append(by)

        async with anyio.create_task_group() as tasks:
            for number in range(6):
                tasks.start_soon(answer, f"c{number}", "allow_once" if number % 2 else "reject_once")
        await stack.over(turn)
        row = await stack.store.permission(asked.key, asked.permission_id)
        assert row is not None
        assert won == [row.answered_by]
        assert len(lost) == 5
        assert (await stack.types()).count("permission.resolved") == 1
        assert not await stack.sessions.answer("s", asked.permission_id, selected("allow_once"), "late")


async def test_an_answer_over_acp_is_first_too(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        turn = await stack.say("permission")
        asked = await stack.asked()
        (connection,) = stack.bridge.live()
        line = b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (asked.request_id, dumps(selected("reject_once")))
        await connection.send(UNNAMED, read_head(line), line)
        assert not await stack.sessions.answer("s", asked.permission_id, selected("allow_once"), "anna")
        await stack.over(turn)
        row = await stack.store.permission(asked.key, asked.permission_id)
        assert row is not None
        assert row.answered == "reject"


async def test_an_answer_to_nothing_or_to_an_agent_that_is_gone_says_so(tmp_path: Path) -> None:
    async with running(tmp_path) as stack:
        await stack.create()
        with pytest.raises(NotFoundError):
            await stack.sessions.answer("s", "perm_1", selected("allow_once"), "anna")
        await stack.say("permission")
        asked = await stack.asked()
        await stack.bridge.close()
        try:
            first = await stack.sessions.answer("s", asked.permission_id, selected("allow_once"), "anna")
        except ConflictError:
            first = False
        assert not first
