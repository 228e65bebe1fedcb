"""Streams of server sessions over connections that break: each event once, or an error that says why not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import anyio
import httpx2
import pytest

from sandbox_agent import (
    ConflictError,
    ConnectionLostError,
    GoneError,
    SandboxAgent,
    SandboxAgentError,
    ServerSessionNotFoundError,
    StreamError,
    TokenInvalidError,
)
from sandbox_agent.client.server_sessions import calls, streams
from sandbox_agent.engine.sse import encode_event, encode_messages
from tests.client.scripted_sessions import ScriptedSessions, event, gap, messages, problem

pytestmark = pytest.mark.anyio

SECONDS = 20
ENDED = {"reason": "terminated", "terminated_by": "daemon"}


@pytest.fixture
def server() -> ScriptedSessions:
    return ScriptedSessions()


@pytest.fixture
async def sdk(server: ScriptedSessions) -> AsyncIterator[SandboxAgent]:
    async with SandboxAgent.connect(transport=server) as client:
        yield client


async def read(
    sdk: SandboxAgent, *, offset: int = 0, until: int | None = None, allow_gaps: bool = False
) -> list[int]:
    """Return the sequences that a stream gives, to its end or to that one."""
    seen: list[int] = []
    with anyio.fail_after(SECONDS):
        async for got in sdk.sessions.stream_events("s", offset=offset, allow_gaps=allow_gaps):
            seen.append(got.sequence)
            if got.sequence == until:
                break
    return seen


async def test_a_stream_goes_on_behind_the_last_event_when_it_breaks(
    sdk: SandboxAgent, server: ScriptedSessions
) -> None:
    server.stream(messages(1, 3), httpx2.ReadError("cut"))
    server.stream(messages(4, 5))
    server.stream(messages(6, 7))
    assert await read(sdk, until=7) == [1, 2, 3, 4, 5, 6, 7]
    assert server.asked == ["0", "3", "5"]


@pytest.mark.parametrize("steady", [True, False])
async def test_a_quiet_stream_that_is_cut_again_and_again_goes_on_if_it_lasts(
    sdk: SandboxAgent, server: ScriptedSessions, monkeypatch: pytest.MonkeyPatch, steady: bool
) -> None:
    """As by a proxy that cuts streams after a minute, also where the server's comments are received."""
    monkeypatch.setattr(
        calls, "UNREACHABLE_FOR", -1.0
    )  # two losses without progress between them are too many
    monkeypatch.setattr(streams, "STEADY_SECONDS", 0.0 if steady else 600.0)
    for _ in range(3):
        server.stream(b": keep-alive\n\n", httpx2.ReadError("cut"))
    server.stream(messages(1, 2))
    if steady:
        assert await read(sdk, until=2) == [1, 2]
    else:
        with pytest.raises(ConnectionLostError, match="cut"):
            await read(sdk, until=2)


async def test_an_event_that_comes_again_is_given_once(sdk: SandboxAgent, server: ScriptedSessions) -> None:
    server.stream(messages(1, 3), messages(2, 4), httpx2.ReadError("cut"))
    server.stream(messages(3, 6))
    assert await read(sdk, until=6) == [1, 2, 3, 4, 5, 6]


async def test_an_event_that_is_cut_in_two_is_not_given_by_halves(
    sdk: SandboxAgent, server: ScriptedSessions
) -> None:
    whole = messages(1, 2)
    server.stream(whole[:-20], httpx2.ReadError("cut"))
    server.stream(messages(2, 2))
    assert await read(sdk, until=2) == [1, 2]


async def test_a_hole_that_nobody_announced_is_read_again(
    sdk: SandboxAgent, server: ScriptedSessions
) -> None:
    server.stream(messages(1, 2), messages(4, 5))
    server.stream(messages(3, 5))
    assert await read(sdk, until=5) == [1, 2, 3, 4, 5]
    assert server.asked == ["0", "2"]


async def test_a_gap_is_an_error_that_says_what_is_missing(
    sdk: SandboxAgent, server: ScriptedSessions
) -> None:
    server.stream(gap(1, 9), messages(10, 12))
    with pytest.raises(GoneError, match="events 1 to 9 are gone") as caught:
        await read(sdk)
    assert caught.value.extensions == {"missingFrom": 1, "missingTo": 9, "firstSequence": 10}


async def test_a_gap_is_passed_over_by_who_allows_it(sdk: SandboxAgent, server: ScriptedSessions) -> None:
    server.stream(gap(4, 9), messages(10, 12))
    assert await read(sdk, offset=3, until=12, allow_gaps=True) == [10, 11, 12]


async def test_a_stream_of_another_session_of_that_name_is_an_error(
    sdk: SandboxAgent, server: ScriptedSessions
) -> None:
    reset = encode_event("reset", b'{"lastEventId":8,"lastSequence":2}', event_id=0)
    server.stream(reset, messages(1, 2))
    with pytest.raises(GoneError, match="has no event 8") as caught:
        await read(sdk, offset=8)
    assert caught.value.extensions == {"lastSequence": 2}


@pytest.mark.parametrize(
    ("status", "name", "error"),
    [
        (401, "token_invalid", TokenInvalidError),
        (404, "session_not_found", ServerSessionNotFoundError),
        (410, "gone", GoneError),
    ],
)
async def test_a_refusal_is_raised_as_what_it_is(
    sdk: SandboxAgent, server: ScriptedSessions, status: int, name: str, error: type[SandboxAgentError]
) -> None:
    server.stream(messages(1, 1))
    server.answer(problem(status, name))
    with pytest.raises(error, match=f"it is {name}"):
        await read(sdk)


async def test_a_bad_gateway_is_waited_out(sdk: SandboxAgent, server: ScriptedSessions) -> None:
    server.answer(httpx2.Response(502, text="bad gateway"))
    server.answer(problem(502, "stream_error"))
    server.stream(messages(1, 1))
    assert await read(sdk, until=1) == [1]


async def test_a_stream_ends_behind_the_end_of_the_session(
    sdk: SandboxAgent, server: ScriptedSessions
) -> None:
    server.stream(messages(1, 2), encode_messages(3, [event(3, "session.ended", **ENDED)]))
    assert await read(sdk) == [1, 2, 3]


async def test_a_stream_of_a_session_that_has_ended_ends_where_its_events_end(
    sdk: SandboxAgent, server: ScriptedSessions
) -> None:
    server.info |= {"ended": True, "eventCount": 5}
    server.stream(messages(4, 5))
    assert await read(sdk, offset=3) == [4, 5]
    assert await read(sdk, offset=5) == []
    assert len(server.requests) == 1


async def test_a_stream_of_a_session_that_is_gone_ends_with_an_error(
    sdk: SandboxAgent, server: ScriptedSessions
) -> None:
    server.stream(messages(1, 2))
    stream = sdk.sessions.stream_events("s")
    assert (await anext(stream)).sequence == 1
    server.exists = False
    assert (await anext(stream)).sequence == 2
    with anyio.fail_after(SECONDS), pytest.raises(ServerSessionNotFoundError):
        await anext(stream)


async def test_an_answer_that_is_no_event_is_an_error(sdk: SandboxAgent, server: ScriptedSessions) -> None:
    server.stream(encode_messages(1, [b'{"hello": 1}']))
    with pytest.raises(SandboxAgentError, match="is that a sandbox-agent server"):
        await read(sdk)


async def test_a_negative_offset_is_refused(sdk: SandboxAgent) -> None:
    with pytest.raises(ValueError, match="offset is negative"):
        await read(sdk, offset=-1)


def turn(first: int, *, ended: bool) -> bytes:
    """Return the events of a turn."""
    lines = [
        event(first, "turn.started", phase="started", turn_id="turn_a"),
        event(first + 1),
        event(first + 2, "turn.ended", phase="ended", turn_id="turn_a"),
    ]
    return encode_messages(first, lines if ended else lines[:-1])


async def test_a_turn_is_sent_under_one_key_until_it_ended(
    sdk: SandboxAgent, server: ScriptedSessions
) -> None:
    server.answer(httpx2.ReadError("the answer is lost"))
    server.stream(turn(7, ended=False), httpx2.ReadError("cut"), turn="turn_a")
    server.stream(turn(7, ended=True), turn="turn_a")
    with anyio.fail_after(SECONDS):
        seen = [got.sequence async for got in sdk.sessions.stream_turn("s", "hello")]
    assert seen == [7, 8, 9]
    assert len({request.headers["Idempotency-Key"] for request in server.requests}) == 1
    assert [json.loads(request.content) for request in server.requests] == [{"message": "hello"}] * 3


async def test_a_turn_ends_where_the_server_says_that_it_is_over(
    sdk: SandboxAgent, server: ScriptedSessions
) -> None:
    server.info["turns"] = [
        {"turnId": "turn_a", "state": "failed", "createdAt": 0, "idempotencyKey": "k", "error": "no agent"}
    ]
    server.stream(turn="turn_a")
    with anyio.fail_after(SECONDS):
        assert [got async for got in sdk.sessions.stream_turn("s", "hello", idempotency_key="k")] == []


async def test_a_message_is_sent_under_one_key_until_it_is_answered(
    sdk: SandboxAgent, server: ScriptedSessions
) -> None:
    server.answer(httpx2.ReadError("the answer is lost"))
    server.answer(problem(502, "stream_error"))
    server.answer(httpx2.Response(204, headers={"Sandbox-Agent-Turn": "turn_a"}))
    with anyio.fail_after(SECONDS):
        assert await sdk.sessions.post_message("s", [{"type": "text", "text": "hello"}]) == "turn_a"
    assert len(server.requests) == 3
    assert len({request.headers["Idempotency-Key"] for request in server.requests}) == 1


async def test_a_message_that_is_refused_is_sent_once(sdk: SandboxAgent, server: ScriptedSessions) -> None:
    server.answer(problem(409, "conflict"))
    with pytest.raises(ConflictError):
        await sdk.sessions.post_message("s", "hello", idempotency_key="k")
    assert [request.headers["Idempotency-Key"] for request in server.requests] == ["k"]


async def test_what_may_do_harm_twice_is_sent_once(sdk: SandboxAgent, server: ScriptedSessions) -> None:
    server.answer(httpx2.ReadError("the answer is lost"))
    with pytest.raises(ConnectionLostError):
        await sdk.sessions.cancel("s")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "lost", [httpx2.ReadError("the answer is lost"), httpx2.Response(504, text="<html>")]
)
async def test_what_takes_effect_once_is_sent_again(
    sdk: SandboxAgent, server: ScriptedSessions, lost: httpx2.Response | Exception
) -> None:
    server.answer(lost)
    server.answer(httpx2.Response(200, json={"healthy": True, "sessionId": "s"}))
    created = await sdk.sessions.create("s", agent="mock")
    assert created.session_id == "s"
    server.answer(lost)
    server.answer(problem(404, "session_not_found"))  # the first try has deleted it
    await sdk.sessions.delete("s")
    server.answer(lost)
    server.answer(problem(409, "conflict", answeredBy="ann"))
    await sdk.sessions.reply_permission("s", "p", "once", by="ann")
    server.answer(lost)
    server.answer(problem(409, "conflict", answeredBy="bob"))
    with pytest.raises(ConflictError):
        await sdk.sessions.reply_permission("s", "p", "once", by="ann")
    server.answer(problem(404, "session_not_found"))
    with pytest.raises(ServerSessionNotFoundError):
        await sdk.sessions.delete("s")
    assert len(server.requests) == 9


async def test_an_error_of_the_server_itself_is_raised_by_what_takes_effect_once(
    sdk: SandboxAgent, server: ScriptedSessions
) -> None:
    server.answer(problem(502, "stream_error"))
    with pytest.raises(StreamError):
        await sdk.sessions.create("s", agent="mock")
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_a_cancellation_that_was_not_processed_is_sent_again(
    sdk: SandboxAgent, server: ScriptedSessions, status: int
) -> None:
    server.answer(httpx2.Response(status, text="<html>"))
    server.answer(httpx2.Response(204))
    await sdk.sessions.cancel("s")
    assert len(server.requests) == 2


async def test_who_does_not_wait_for_health_is_told_at_once_that_nobody_listens() -> None:
    async with SandboxAgent.connect(base_url="http://127.0.0.1:9", skip_health_check=True) as sdk:
        with anyio.fail_after(SECONDS), pytest.raises(ConnectionLostError):
            await sdk.sessions.post_message("s", "hello")


async def test_a_stream_ends_with_an_error_when_the_client_is_disposed(server: ScriptedSessions) -> None:
    sdk = await SandboxAgent.connect(transport=server)
    server.stream(messages(1, 1), httpx2.ReadError("cut"))
    stream = sdk.sessions.stream_events("s")
    assert (await anext(stream)).sequence == 1
    await sdk.dispose()
    with anyio.fail_after(SECONDS), pytest.raises(SandboxAgentError, match="disposed"):
        await anext(stream)
