"""Permission requests: asked, answered in every way, cancelled."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast

import anyio
import pytest

from sandbox_agent import (
    InMemorySessionPersistDriver,
    PermissionPolicy,
    PermissionRequest,
    SandboxAgent,
    SandboxAgentError,
    Session,
    SessionEvent,
    UnsupportedPermissionReplyError,
)
from sandbox_agent.client.permissions import PermissionBroker
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.engine.permissions import PermissionReply
from sandbox_agent.wire.requests import read_permission
from tests.client.checks import all_events, methods, said
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio


async def outcome(sdk: SandboxAgent, session: Session, prompt: str = "permission") -> str:
    """Return what the mock says of the answer that it got."""
    with anyio.fail_after(10):
        await session.prompt(prompt)
    return said(await all_events(sdk, session))


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("once", "Permission granted (allow_once)"),
        ("always", "Permission granted (allow_always)"),
        ("reject", "Permission rejected (reject_once)"),
    ],
)
async def test_a_listener_answers_by_reply(sdk: SandboxAgent, reply: PermissionReply, expected: str) -> None:
    session = await sdk.create_session(agent="mock")
    seen: list[PermissionRequest] = []

    def listener(request: PermissionRequest) -> object:
        seen.append(request)
        return session.respond_permission(request.id, reply)

    session.on_permission_request(listener)
    assert (await outcome(sdk, session)).startswith(expected)
    (request,) = seen
    assert request.session_id == session.id
    assert request.agent_session_id == session.agent_session_id
    assert request.tool_call["title"] == "Write hello.txt"
    assert request.available_replies == ["once", "always", "reject"]
    assert [option["kind"] for option in request.options] == ["allow_once", "allow_always", "reject_once"]
    assert request.raw_request["sessionId"] == session.agent_session_id


async def test_a_listener_that_only_starts_the_answer_has_answered(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")

    def listener(request: PermissionRequest) -> None:
        session.respond_permission(request.id, "once")

    session.on_permission_request(listener)
    assert "granted" in await outcome(sdk, session)


async def test_a_coroutine_function_may_answer(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")

    async def listener(request: PermissionRequest) -> None:
        await session.raw_respond_permission(
            request.id, {"outcome": {"outcome": "selected", "optionId": "reject_once"}}
        )

    session.on_permission_request(listener)
    assert "rejected (reject_once)" in await outcome(sdk, session)


async def test_request_and_answer_are_in_the_history_in_their_place(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", permission_policy="allow_once")
    await session.prompt("permission")
    events = await all_events(sdk, session)
    asked = next(event for event in events if event.payload.get("method") == "session/request_permission")
    answer = events[asked.event_index]
    assert answer.sender == "client"
    assert answer.payload["id"] == asked.payload["id"]
    assert answer.payload["result"]["outcome"]["optionId"] == "allow_once"


async def test_a_listener_sees_the_request_after_the_events_before_it(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    order: list[str] = []
    session.on_event(lambda event: order.extend(methods([event])))

    def listener(request: PermissionRequest) -> object:
        order.append("asked")
        return session.respond_permission(request.id, "once")

    session.on_permission_request(listener)
    await session.prompt("permission")
    assert order.index("asked") > order.index("session/request_permission")


async def test_without_a_listener_a_request_is_cancelled(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    assert "Permission cancelled" in await outcome(sdk, session)


async def test_a_listener_that_unsubscribed_is_not_asked(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    unsubscribe = session.on_permission_request(lambda request: pytest.fail("asked"))
    unsubscribe()
    assert "Permission cancelled" in await outcome(sdk, session)


def _once(_request: PermissionRequest) -> PermissionReply:
    return "once"


async def _reject(_request: PermissionRequest) -> PermissionReply:
    return "reject"


def _broken(_request: PermissionRequest) -> PermissionReply:
    raise RuntimeError("broken policy")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("allow_once", "granted (allow_once)"),
        ("allow_always", "granted (allow_always)"),
        ("reject", "rejected (reject_once)"),
        (_once, "granted (allow_once)"),
        (_reject, "rejected (reject_once)"),
        (_broken, "cancelled"),
    ],
)
async def test_a_policy_answers_when_there_is_no_listener(
    sdk: SandboxAgent, policy: PermissionPolicy, expected: str
) -> None:
    session = await sdk.create_session(agent="mock", permission_policy=policy)
    assert expected in await outcome(sdk, session)


async def test_a_listener_goes_before_the_policy(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", permission_policy="allow_once")
    session.on_permission_request(lambda request: session.respond_permission(request.id, "reject"))
    assert "rejected" in await outcome(sdk, session)


async def test_ask_waits_for_a_listener_that_comes_later(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", permission_policy="ask")
    with anyio.fail_after(10):
        turn = session.stream("permission")
        async for event in turn:
            if event.payload.get("method") == "session/request_permission":
                break
        session.on_permission_request(lambda request: session.respond_permission(request.id, "once"))
        async for _ in turn:
            pass
    assert "granted" in said(await all_events(sdk, session))


async def test_many_requests_at_once_each_get_their_own_answer(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    replies: list[PermissionReply] = ["once", "reject", "always"]
    session.on_permission_request(lambda request: session.respond_permission(request.id, replies.pop(0)))
    text = await outcome(sdk, session, "permission 3")
    assert [part.split(")")[0] for part in text.split("(")[1:]] == [
        "allow_once",
        "reject_once",
        "allow_always",
    ]


async def test_a_reply_without_an_option_is_refused_and_the_request_stays_open(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude")
    refused: list[UnsupportedPermissionReplyError] = []

    def listener(request: PermissionRequest) -> object:
        for reply in ("once", "reject"):
            with pytest.raises(UnsupportedPermissionReplyError) as caught:
                session.respond_permission(request.id, reply)
            refused.append(caught.value)
        return session.respond_permission(request.id, "always")

    session.on_permission_request(listener)
    assert '"optionId": "a"' in await outcome(sdk, session, "ask 7")
    assert [error.available_replies for error in refused] == [["always"], ["always"]]


@pytest.mark.parametrize("raw_id", [0, "0", "a5a9a8ff-7ad4-4c4b-9a10-2f2f5f9a31a4", 3, -1])
async def test_ids_of_the_agents_own_space_come_back_as_they_were(sdk: SandboxAgent, raw_id: object) -> None:
    session = await sdk.create_session(agent="claude", permission_policy="allow_always")
    assert '"selected"' in await outcome(sdk, session, f"ask {json.dumps(raw_id)}")
    answers = [event.payload for event in await all_events(sdk, session) if event.sender == "client"]
    assert answers[-1]["id"] == raw_id


async def test_cancel_cancels_what_is_open(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", permission_policy="ask")
    asked = asyncio.Event()
    requests: list[PermissionRequest] = []

    def listener(request: PermissionRequest) -> None:
        requests.append(request)
        asked.set()

    session.on_permission_request(listener)
    with anyio.fail_after(10):
        turn = asyncio.create_task(session.prompt("permission"))
        await asked.wait()
        await session.cancel()
        assert (await turn).stop_reason == "cancelled"
    payloads: list[dict[str, Any]] = [event.payload for event in await all_events(sdk, session)]
    assert {"outcome": {"outcome": "cancelled"}} in [payload.get("result") for payload in payloads]
    with pytest.raises(SandboxAgentError, match="is not open"):
        session.respond_permission(requests[0].id, "once")


async def test_an_answer_to_nothing_is_refused(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    with pytest.raises(SandboxAgentError, match="'nothing' is not open"):
        session.respond_permission("nothing", "once")


async def test_a_listener_that_raises_leaves_the_request_to_the_next(
    sdk: SandboxAgent, caplog: pytest.LogCaptureFixture
) -> None:
    session = await sdk.create_session(agent="mock")

    def broken(_request: PermissionRequest) -> None:
        raise RuntimeError("broken listener")

    session.on_permission_request(broken)
    session.on_permission_request(lambda request: session.respond_permission(request.id, "once"))
    assert "granted" in await outcome(sdk, session)
    assert "broken listener" in caplog.text


async def test_a_request_of_a_sub_agent_belongs_to_the_session_whose_turn_runs(sdk: SandboxAgent) -> None:
    """A sub-agent has a session id that the client never made."""
    session = await sdk.create_session(agent="claude", permission_policy="always")
    idle = await sdk.create_session(agent="claude", permission_policy="reject")
    seen: list[str] = []
    idle.on_permission_request(lambda request: seen.append(request.id))
    assert '"optionId": "a"' in await outcome(sdk, session, "stranger")
    assert seen == []


async def test_a_request_of_a_sub_agent_goes_to_the_parent_that_it_names(sdk: SandboxAgent) -> None:
    parent = await sdk.create_session(agent="claude", permission_policy="reject")
    other = await sdk.create_session(agent="claude")
    requests: list[PermissionRequest] = []

    def listener(request: PermissionRequest) -> object:
        requests.append(request)
        return parent.respond_permission(request.id, "always")

    parent.on_permission_request(listener)
    assert '"optionId": "a"' in await outcome(sdk, other, f"child of {parent.agent_session_id}")
    (request,) = requests
    assert (request.session_id, request.agent_session_id) == (parent.id, "sub-3")


async def test_no_policy_allows_a_sub_agent_whose_parent_is_uncertain(sdk: SandboxAgent) -> None:
    one = await sdk.create_session(agent="claude", permission_mode="allow", permission_policy="always")
    two = await sdk.create_session(agent="claude", permission_mode="allow", permission_policy="always")
    with anyio.fail_after(30):
        running = asyncio.create_task(one.prompt("hold 2"))
        async for event in one.events():
            if event.payload.get("method") == "session/prompt":
                break
        assert '"cancelled"' in await outcome(sdk, two, "stranger")
        await two.prompt("hold 2")
        await running


@pytest.mark.parametrize("settings", [{"permission_mode": "allow"}, {"permission_policy": "allow"}])
async def test_a_request_that_cannot_be_allowed_is_not_left_open(
    sdk: SandboxAgent, settings: dict[str, Any]
) -> None:
    session = await sdk.create_session(agent="claude", **settings)
    assert '"cancelled"' in await outcome(sdk, session, "ask without allowing")
    listened = await sdk.create_session(agent="claude", **settings)
    listened.on_permission_request(lambda request: listened.respond_permission(request.id, "reject"))
    assert '"optionId": "n"' in await outcome(sdk, listened, "ask without allowing")


async def test_other_requests_of_the_agent_are_refused(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="claude")
    assert "-32601" in await outcome(sdk, session, "read a file")


async def test_other_requests_go_to_their_handler(sdk: SandboxAgent) -> None:
    sdk.on_request("fs/read_text_file", lambda params: {"content": f"of {params['path']}"})
    session = await sdk.create_session(agent="claude")
    assert '"content": "of /x"' in await outcome(sdk, session, "read a file")


async def test_a_handler_that_raises_is_an_error_for_the_agent(sdk: SandboxAgent) -> None:
    async def handler(params: dict[str, Any]) -> object:
        raise RuntimeError(f"no {params['path']}")

    sdk.on_request("fs/read_text_file", handler)
    session = await sdk.create_session(agent="claude")
    assert "no /x" in await outcome(sdk, session, "read a file")


async def test_dispose_cancels_what_is_open(shared_server: ServerProcess) -> None:
    driver = InMemorySessionPersistDriver()
    sdk = await SandboxAgent.connect(base_url=shared_server.url, persist=driver)
    session = await sdk.create_session(agent="mock")
    asked = asyncio.Event()
    session.on_permission_request(lambda _request: asked.set())
    turn = asyncio.create_task(session.prompt("permission"))
    with anyio.fail_after(10):
        await asked.wait()
        await sdk.dispose()
        await asyncio.wait({turn})
    turn.exception()
    payloads = [event.payload for event in await all_events(sdk, session)]
    assert {"outcome": {"outcome": "cancelled"}} in [payload.get("result") for payload in payloads]


async def test_a_policy_that_does_not_exist_is_refused(sdk: SandboxAgent) -> None:
    with pytest.raises(ValueError, match="allow_once"):
        await sdk.create_session(agent="mock", permission_policy=cast("PermissionPolicy", "permit"))
    session = await sdk.create_session(agent="mock")
    with pytest.raises(ValueError, match="allow_once"):
        session.permission_policy = cast("PermissionPolicy", "yes")


@pytest.mark.parametrize("params", [{}, {"options": 5, "toolCall": "x"}, {"options": [1, None]}])
async def test_a_request_that_breaks_the_protocol_is_answered_all_the_same(params: dict[str, Any]) -> None:
    answers: list[object] = []

    async def respond(result: object) -> None:
        answers.append(result)

    payload = {"jsonrpc": "2.0", "id": 1, "method": "session/request_permission", "params": params}
    event = SessionEvent("e", 1, "s", 2, "c", "agent", json.dumps(payload).encode())
    broker = PermissionBroker("s", TaskOwner())
    await broker.open(broker.add(read_permission(event), respond))
    assert answers == [{"outcome": {"outcome": "cancelled"}}]


@pytest.mark.parametrize("returned", [True, None, "yes", {"outcome": "allow"}])
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_policy_that_returns_no_reply_raises_in_the_prompt(
    sdk: SandboxAgent, returned: Any, is_async: bool
) -> None:
    async def policy(_request: PermissionRequest) -> Any:
        return returned

    def sync_policy(_request: PermissionRequest) -> Any:
        return returned

    session = await sdk.create_session(agent="mock", permission_policy=policy if is_async else sync_policy)
    with anyio.fail_after(20):
        with pytest.raises(TypeError, match=r'returned .*: return "once", "always" or "reject"'):
            await session.prompt("permission")
        assert "cancelled" in said(await all_events(sdk, session))
        session.permission_policy = "once"
        assert (await session.prompt("permission")).stop_reason == "end_turn"


async def test_a_wrong_answer_that_comes_after_its_turn_fails_no_other_prompt(sdk: SandboxAgent) -> None:
    asked, release, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def policy(_request: PermissionRequest) -> Any:
        asked.set()
        await release.wait()
        asyncio.get_running_loop().call_soon(answered.set)

    session = await sdk.create_session(agent="mock", permission_policy=policy)
    with anyio.fail_after(20):
        turn = asyncio.create_task(session.prompt("permission"))
        await asked.wait()
        await session.cancel()
        assert (await turn).stop_reason == "cancelled"
        release.set()
        await answered.wait()
        assert (await session.prompt("echo next")).stop_reason == "end_turn"


@pytest.mark.parametrize("is_async", [False, True])
async def test_a_listener_that_returns_a_reply_raises_in_the_prompt(
    sdk: SandboxAgent, is_async: bool
) -> None:
    session = await sdk.create_session(agent="mock")

    async def listener(_request: PermissionRequest) -> str:
        return "once"

    session.on_permission_request(listener if is_async else lambda _: "once")
    with anyio.fail_after(20), pytest.raises(TypeError, match=r'respond_permission\(request.id, "once"\)'):
        await session.prompt("permission")


async def test_a_listener_may_return_anything_else(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")

    def listener(request: PermissionRequest) -> str:
        session.respond_permission(request.id, "once")
        return "once"

    session.on_permission_request(listener)
    session.on_permission_request(lambda request: request.id)
    assert (await outcome(sdk, session)).startswith("Permission granted")


async def test_a_request_in_the_stream_is_typed_and_is_answered_by_its_id(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock", permission_policy="ask")
    seen: list[PermissionRequest] = []
    with anyio.fail_after(20):
        async for event in session.stream("permission"):
            if isinstance(event.update, PermissionRequest):
                assert [request.id for request in session.pending_permissions()] == [event.update.id]
                seen.append(event.update)
                await session.respond_permission(event.update.id, "once")
    (request,) = seen
    assert (request.tool_call.title, request.tool_call["kind"]) == ("Write hello.txt", "edit")
    assert request.options[0].kind == "allow_once"
    assert request.session_id == session.id
    assert session.pending_permissions() == []
    assert "Permission granted (allow_once)" in said(await all_events(sdk, session))


async def test_a_request_that_the_stream_answers_is_not_delivered_again(sdk: SandboxAgent) -> None:
    """The event is visible before its request is delivered: listeners and the policy come after it."""
    session = await sdk.create_session(agent="mock", permission_policy="reject")

    def answer(event: SessionEvent) -> None:
        if isinstance(event.update, PermissionRequest):
            session.respond_permission(event.update.id, "always")

    session.on_event(answer)
    assert "Permission granted (allow_always)" in await outcome(sdk, session)
