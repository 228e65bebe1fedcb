"""Questions of the agent: offered, asked, answered in every way, declined."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from sandbox_agent import InMemorySessionPersistDriver, InvalidRequestError, QuestionRequest, SandboxAgent
from tests.client.checks import all_events, said
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio

RED = '"action":"accept","content":{"color":"#f00"}'


async def test_an_agent_asks_only_in_a_session_that_takes_questions(sdk: SandboxAgent) -> None:
    silent = await sdk.create_session(agent="mock")
    asking = await sdk.create_session(agent="mock", question_policy=lambda _: "Red")
    other = await sdk.create_session(agent="mock", question_policy="ask")
    for session, expected in ((silent, "the client does not answer questions"), (asking, RED)):
        with anyio.fail_after(10):
            await session.prompt("question")
        assert expected in said(await all_events(sdk, session))
    assert asking.last_connection_id == other.last_connection_id != silent.last_connection_id


async def test_a_listener_receives_the_question_with_its_fields(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", question_policy="ask")
    seen: list[QuestionRequest] = []

    def listener(question: QuestionRequest) -> object:
        seen.append(question)
        assert session.pending_questions() == [question]
        return session.respond_question(question.id, {"sizes": ["S", "L"], "color": "Blue"})

    session.on_question(listener)
    with anyio.fail_after(10):
        await session.prompt("question")
    assert '{"color":"#00f","sizes":["S","L"]}' in said(await all_events(sdk, session))
    (question,) = seen
    assert (question.session_id, question.message) == (session.id, "What shall I paint?")
    assert question.agent_session_id == session.agent_session_id
    assert [(field.name, field.kind, field.required) for field in question.fields] == [
        ("color", "choice", True),
        ("sizes", "multi_choice", False),
        ("note", "text", False),
    ]
    assert session.pending_questions() == []


async def _choose(_question: QuestionRequest) -> dict[str, Any]:
    return {"color": "#f00"}


def _return(answers: Any) -> Callable[[QuestionRequest], Any]:
    return lambda _: answers


def _fail(_question: QuestionRequest) -> str:
    raise RuntimeError("no idea")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (_choose, RED),
        (_return(["Red"]), RED),
        (_return(None), '{"action":"decline"}'),
        (_fail, '{"action":"decline"}'),
    ],
)
async def test_a_policy_answers_without_a_listener(sdk: SandboxAgent, policy: Any, expected: str) -> None:
    session = await sdk.create_session(agent="mock", question_policy=policy)
    with anyio.fail_after(10):
        await session.prompt("question")
    assert expected in said(await all_events(sdk, session))


async def test_answers_that_do_not_match_leave_the_question_open(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", question_policy="ask")
    asked = asyncio.Event()
    session.on_question(lambda _: asked.set())
    with anyio.fail_after(10):
        turn = asyncio.create_task(session.prompt("question"))
        await asked.wait()
        (question,) = session.pending_questions()
        with pytest.raises(InvalidRequestError, match="no answer for color"):
            await session.respond_question(question.id, {"note": "x"})
        await session.respond_question(question.id, None)
        await turn
    assert '{"action":"decline"}' in said(await all_events(sdk, session))


async def test_a_cancelled_turn_cancels_its_question(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", question_policy="ask")
    asked = asyncio.Event()
    session.on_question(lambda _: asked.set())
    with anyio.fail_after(10):
        turn = asyncio.create_task(session.prompt("question"))
        await asked.wait()
        await session.cancel()
        assert (await turn).stop_reason == "cancelled"
    answers = [event.payload.get("result") for event in await all_events(sdk, session)]
    assert {"action": "cancel"} in answers
    assert session.pending_questions() == []


async def test_a_question_waits_for_a_listener_that_comes_later(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", question_policy="ask")
    with anyio.fail_after(10):
        turn = asyncio.create_task(session.prompt("question"))
        async for event in session.events():
            if event.payload.get("method") == "elicitation/create":
                break
        session.on_question(lambda question: session.respond_question(question.id, "Red"))
        await turn
    assert RED in said(await all_events(sdk, session))


async def test_questions_of_an_extension_are_questions(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", question_policy=lambda _: "blue")
    other = await sdk.create_session(agent="mock")
    with anyio.fail_after(10):
        await session.prompt("ask-extension")
        await other.prompt("ask-extension")
    assert '"answers":["blue"]' in said(await all_events(sdk, session))
    assert "-32601" in said(await all_events(sdk, other))


@pytest.mark.parametrize("prompt", ["elicit", "elicit stranger"])
async def test_a_question_without_a_listener_or_a_policy_is_declined(sdk: SandboxAgent, prompt: str) -> None:
    session = await sdk.create_session(agent="claude")
    with anyio.fail_after(10):
        await session.prompt(prompt)
    assert '"action": "decline"' in said(await all_events(sdk, session))


async def test_a_question_of_a_sub_agent_goes_to_its_parent(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude", question_policy=lambda _: {})
    with anyio.fail_after(10):
        await session.prompt("elicit stranger")
    assert '"action": "accept"' in said(await all_events(sdk, session))


async def test_a_handler_answers_instead_of_the_session(sdk: SandboxAgent) -> None:
    sdk.on_request("elicitation/create", lambda _: {"action": "accept", "content": {"by": "handler"}})
    session = await sdk.create_session(agent="mock", question_policy=lambda _: "Red")
    with anyio.fail_after(10):
        await session.prompt("question")
    assert '{"by":"handler"}' in said(await all_events(sdk, session))


async def test_a_session_that_takes_questions_does_so_in_the_next_program(
    shared_server: ServerProcess,
) -> None:
    driver = InMemorySessionPersistDriver()
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session_id = (await sdk.create_session(agent="mock", question_policy=lambda _: None)).id
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.resume_session(session_id)
        session.on_question(lambda question: session.respond_question(question.id, "Red"))
        with anyio.fail_after(10):
            await session.prompt("question")
        assert RED in said(await all_events(sdk, session))


async def test_an_unknown_policy_is_refused(sdk: SandboxAgent) -> None:
    policy: Any = "always"
    with pytest.raises(ValueError, match='question_policy must be "ask" or a function'):
        await sdk.create_session(agent="mock", question_policy=policy)


async def test_a_policy_whose_answers_do_not_fit_raises_in_the_prompt(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", question_policy=_return({"note": "no color"}))
    with anyio.fail_after(20), pytest.raises(InvalidRequestError):
        await session.prompt("question")
    assert '{"action":"decline"}' in said(await all_events(sdk, session))


async def test_a_question_in_the_stream_is_typed_and_is_answered_by_its_id(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", question_policy="ask")
    with anyio.fail_after(20):
        async for event in session.stream("question"):
            if isinstance(event.update, QuestionRequest):
                assert event.update == session.pending_questions()[0]
                assert event.update.fields[0].options[0].label == "Red"
                await session.respond_question(event.update.id, ["Red"])
    assert RED in said(await all_events(sdk, session))
