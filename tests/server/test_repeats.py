"""A client sends an envelope again because a proxy lost the answer: the agent receives it once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import anyio
import httpx2
import pytest

from sandbox_agent.server.agents import repeats
from sandbox_agent.wire.jsonrpc import read_head
from tests.server.talk import Talk, envelope, talk
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio

ASYNC = {"prefer": "respond-async"}


class Named(Talk):
    """A client with a name."""

    def __init__(self, talking: Talk, name: str = "ann") -> None:
        super().__init__(talking.client, talking.path.rpartition("/")[2], name)
        self.session_id = talking.session_id

    async def send(self, body: Any, **headers: str) -> httpx2.Response:
        """POST a body with headers."""
        sent = {"content-type": "application/json", **self._headers, **headers}
        return await self.client.post(self.path, content=json.dumps(body).encode(), headers=sent)

    def prompt_of(self, text: str, request_id: int) -> dict[str, Any]:
        """Return the envelope of a prompt."""
        return envelope("session/prompt", self.prompting(text), request_id)


async def test_a_repeated_request_returns_the_response_and_the_agent_receives_it_once(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        ann = Named(talking)
        body = ann.prompt_of("count me", 7)
        first = await ann.send(body)
        again = await ann.send(body)
        assert first.status_code == again.status_code == 200
        assert first.json() == again.json()
        async with ann.stream() as stream:
            await ann.send(ann.prompt_of("the end", 8))
            await stream.until('"id":8')
        assert stream.texts.count("count me") == 1


async def test_a_repeated_request_joins_the_one_that_is_pending(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        ann = Named(talking)
        body = ann.prompt_of("permission", 7)
        responses: list[httpx2.Response] = []

        async def send() -> None:
            responses.append(await ann.send(body))

        with anyio.fail_after(60):
            async with ann.stream() as stream, anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                asked = await stream.until("session/request_permission")
                tasks.start_soon(send)
                accepted = await ann.send(body, **ASYNC)  # answered after the two above were received
                assert accepted.status_code == 202
                outcome = {"outcome": "selected", "optionId": "allow_once"}
                await ann.send({"jsonrpc": "2.0", "id": asked["id"], "result": {"outcome": outcome}})
        assert [response.json()["result"]["stopReason"] for response in responses] == ["end_turn"] * 2


async def test_a_request_that_prefers_it_is_answered_at_once_and_its_response_is_in_the_stream(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        ann = Named(talking)
        async with ann.stream() as stream:
            accepted = await ann.send(ann.prompt_of("hello", 7), prefer="foo; wait=5, Respond-Async")
            assert (accepted.status_code, accepted.content) == (202, b"")
            assert accepted.headers["preference-applied"] == "respond-async"
            with anyio.fail_after(60):
                response = await stream.until('"id":7')
        assert response["result"]["stopReason"] == "end_turn"
        # It is the same request: without the preference the response is returned.
        assert (await ann.send(ann.prompt_of("hello", 7))).json() == response


@pytest.mark.parametrize("prefer", ["respond-async, wait=60", 'Wait = "60"; x, respond-async, wait=0'])
async def test_a_request_that_may_wait_is_answered_with_a_response_that_arrives_in_time(
    server: ServerProcess, fresh: Callable[[], str], prefer: str
) -> None:
    async with talk(server, fresh()) as talking:
        ann = Named(talking)
        for _ in range(2):  # a repetition, too
            answered = await ann.send(ann.prompt_of("hello", 7), prefer=prefer)
            assert answered.json()["result"]["stopReason"] == "end_turn"
            assert answered.headers["preference-applied"] == "wait=60"


async def test_a_request_that_waits_in_vain_is_answered_with_202_and_its_response_is_in_the_stream(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        ann = Named(talking)
        with anyio.fail_after(60):
            async with ann.stream() as stream:
                accepted = await ann.send(ann.prompt_of("permission", 7), prefer="respond-async, wait=1")
                assert (accepted.status_code, accepted.content) == (202, b"")
                assert accepted.headers["preference-applied"] == "respond-async, wait=1"
                await ann.send(envelope("session/cancel", {"sessionId": ann.session_id}))
                assert (await stream.until('"id":7'))["result"]["stopReason"] == "cancelled"


@pytest.mark.parametrize(
    "prefer", ["respond-async, wait=-1", "respond-async, wait", "respond-async, wait=1.5"]
)
async def test_a_wait_that_is_no_number_of_seconds_is_ignored(
    server: ServerProcess, fresh: Callable[[], str], prefer: str
) -> None:
    async with talk(server, fresh()) as talking:
        ann = Named(talking)
        accepted = await ann.send(ann.prompt_of("permission", 7), prefer=prefer)
        assert (accepted.status_code, accepted.headers["preference-applied"]) == (202, "respond-async")


async def test_requests_that_differ_are_different_requests(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        ann, bob, unnamed = Named(talking), Named(talking, "bob"), Named(talking, "")
        async with ann.stream() as stream:
            for client, text in (
                (ann, "one"),
                (ann, "two"),
                (bob, "one"),
                (unnamed, "one"),
                (unnamed, "one"),
            ):
                assert (await client.send(client.prompt_of(text, 7))).status_code == 200
            await ann.send(ann.prompt_of("the end", 8))
            await stream.until('"id":8')
        assert stream.texts.count("one") == 4
        assert stream.texts.count("two") == 1


async def test_a_notification_with_a_key_is_sent_once(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    """A session/cancel that is sent again must not end a later turn."""
    async with talk(server, fresh()) as talking:
        ann = Named(talking)
        cancel = envelope("session/cancel", {"sessionId": ann.session_id})
        async with ann.stream() as stream:
            await ann.send(ann.prompt_of("permission", 7), **ASYNC)
            await stream.until("session/request_permission")
            assert (await ann.send(cancel, **{"idempotency-key": "k"})).status_code == 202
            assert (await stream.until('"id":7'))["result"]["stopReason"] == "cancelled"
            await ann.send(ann.prompt_of("permission", 8), **ASYNC)
            asked = await stream.until("session/request_permission")
            assert (await ann.send(cancel, **{"idempotency-key": "k"})).status_code == 202
            outcome = {"outcome": "selected", "optionId": "allow_once"}
            await ann.send({"jsonrpc": "2.0", "id": asked["id"], "result": {"outcome": outcome}})
            assert (await stream.until('"id":8'))["result"]["stopReason"] == "end_turn"


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_an_invalid_key_is_refused(server: ServerProcess, fresh: Callable[[], str], key: str) -> None:
    async with talk(server, fresh()) as talking:
        ann = Named(talking)
        cancel = envelope("session/cancel", {"sessionId": ann.session_id})
        response = await ann.send(cancel, **{"idempotency-key": key})
        assert response.status_code == 400
        assert "Idempotency-Key" in response.json()["detail"]


async def test_a_request_that_a_dead_agent_did_not_answer_fails_each_time(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        ann = Named(talking)
        body = ann.prompt_of("die 3", 7)
        statuses = [(await ann.send(body)).status_code for _ in range(2)]
        assert statuses[0] == statuses[1] >= 400


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "MAX_ENVELOPES", 3)
    monkeypatch.setattr(repeats, "MAX_RESPONSE_BYTES", 10)
    known = repeats.Repeats()
    identities: list[bytes] = []
    for number in range(5):
        line = json.dumps(envelope("m", None, number)).encode()
        identity = repeats.identify("ann", read_head(line), line, None)
        assert identity is not None
        identities.append(identity)
        response: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        submitted = [response]

        async def submit(submitted: list[asyncio.Future[bytes]] = submitted) -> asyncio.Future[bytes]:
            return submitted.pop()

        for _ in range(2):  # the second joins the first
            assert await known.deliver(identity, submit) is response
        response.set_result(b"12345678"[: 4 + number % 2])
        await asyncio.sleep(0)  # the response's callbacks run
    assert [known.is_closed(identity) for identity in identities] == [False, False, True, True, True]
    assert [known.response(identity) for identity in identities[2:]] == [None, b"12345", b"1234"]
