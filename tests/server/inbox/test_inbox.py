"""The inbox over a real store: who answers first, and what the others are told."""

from __future__ import annotations

import anyio
import pytest

from sandbox_agent.errors import (
    ConflictError,
    InvalidRequestError,
    NotFoundError,
    ServerSessionNotFoundError,
)
from sandbox_agent.persist.store import Changes
from sandbox_agent.server.permissions.inbox import Inbox

from .stored import Answered, ask, question, session_row, store_in_memory

pytestmark = pytest.mark.anyio


async def test_the_inbox_lists_what_waits_with_what_is_asked():
    async with store_in_memory() as store:
        row = session_row()
        first = await ask(store, row, {"kind": "edit"}, expires_at=9000)
        second = await question(
            store, row, "elicitation/create", {"message": "Well?", "requestedSchema": {"properties": {}}}
        )
        pending = await Inbox(store, Answered(store)).pending()
    assert [(each.permission_id, each.kind, each.action) for each in pending] == [
        (first.permission_id, "permission", "Write"),
        (second.permission_id, "question", "Well?"),
    ]
    assert pending[0].session_id == "s"
    assert pending[0].expires_at == 9000
    assert pending[0].metadata["kind"] == "edit"
    assert pending[1].metadata["prompt"] == "Well?"


async def test_a_permission_is_answered_with_the_option_of_the_reply():
    async with store_in_memory() as store:
        row, answers = session_row(), Answered(store)
        asked = await ask(store, row)
        await Inbox(store, answers).reply_permission("s", asked.permission_id, "always", by="ann")
        assert await Inbox(store, answers).pending() == []
    assert answers.results == [
        (asked.permission_id, {"outcome": {"outcome": "selected", "optionId": "ever"}}, "ann")
    ]


async def test_the_second_of_two_answers_is_told_who_was_first_and_how():
    async with store_in_memory() as store:
        row, answers = session_row(), Answered(store)
        asked = await ask(store, row)
        inbox = Inbox(store, answers)
        await inbox.reply_permission("s", asked.permission_id, "once", by="ann")
        with pytest.raises(ConflictError, match="by 'ann' with 'once'") as caught:
            await inbox.reply_permission("s", asked.permission_id, "reject", by="bob")
    assert caught.value.extensions == {"answeredBy": "ann", "answered": "accept", "answeredAt": 5}


async def test_who_answers_after_the_turn_is_not_told_that_somebody_rejected():
    async with store_in_memory() as store:
        asked = await ask(store, session_row())
        asked.answered, asked.answered_at = "reject", 7  # as the recorder leaves it: by nobody
        await store.commit(Changes(permissions=[asked]))
        with pytest.raises(
            ConflictError, match="rejected, or its turn has ended: it is not pending any more"
        ):
            await Inbox(store, Answered(store)).reply_permission("s", asked.permission_id, "once", by="bob")


async def test_one_of_many_answers_at_once_wins():
    async with store_in_memory() as store:
        row, answers = session_row(), Answered(store)
        asked = await ask(store, row)
        inbox = Inbox(store, answers)
        refused: list[str] = []

        async def reply(name: str) -> None:
            try:
                await inbox.reply_permission("s", asked.permission_id, "once", by=name)
            except ConflictError:
                refused.append(name)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(reply, f"client-{number}")
    assert len(answers.results) == 1
    assert len(refused) == 19


async def test_a_reply_that_is_not_offered_is_refused_with_those_that_are():
    async with store_in_memory() as store:
        row, answers = session_row(), Answered(store)
        asked = await ask(store, row, options=[{"optionId": "y", "name": "Y", "kind": "allow_once"}])
        with pytest.raises(InvalidRequestError) as caught:
            await Inbox(store, answers).reply_permission("s", asked.permission_id, "reject", by="")
    assert caught.value.extensions == {"availableReplies": ["once"]}
    assert answers.results == []


async def test_what_is_not_there_is_not_found():
    async with store_in_memory() as store:
        row = session_row()
        asked = await ask(store, row)
        inbox = Inbox(store, Answered(store))
        with pytest.raises(ServerSessionNotFoundError):
            await inbox.reply_permission("other", asked.permission_id, "once", by="")
        with pytest.raises(NotFoundError):
            await inbox.reply_permission("s", "nothing", "once", by="")
        with pytest.raises(NotFoundError):
            await inbox.reject_question("s", asked.permission_id, by="")


async def test_a_question_is_answered_by_the_schema_that_the_agent_sent():
    schema = {"properties": {"colour": {"oneOf": [{"const": "#f00", "title": "Red"}]}}}
    async with store_in_memory() as store:
        row, answers = session_row(), Answered(store)
        asked = await question(store, row, "elicitation/create", {"message": "?", "requestedSchema": schema})
        await Inbox(store, answers).reply_question("s", asked.permission_id, [["Red"]], by="")
    assert answers.results[0][1] == {"action": "accept", "content": {"colour": "#f00"}}


async def test_a_question_is_rejected_in_the_words_of_its_method():
    async with store_in_memory() as store:
        row, answers = session_row(), Answered(store)
        first = await question(store, row, "elicitation/create", {"message": "?"})
        second = await question(store, row, "cursor/ask_question", {"question": "?"})
        inbox = Inbox(store, answers)
        await inbox.reject_question("s", first.permission_id, by="")
        await inbox.reject_question("s", second.permission_id, by="")
    assert answers.results[0][1] == {"action": "decline"}
    assert answers.results[1][1]["outcome"]["outcome"] == "skipped"
