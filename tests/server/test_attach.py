"""``GET /v1/acp/{id}?attach=NAME``: a stream in place of another client."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.engine.feed import EVERYTHING, SENT
from sandbox_agent.errors import ConflictError, InvalidRequestError
from sandbox_agent.server.agents.clients import GONE_SECONDS, MAX_KEYS, Clients
from sandbox_agent.server.client_names import check_client_name
from tests.server.talk import Stream, Talk, envelope, talk
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio


def named(talking: Talk, name: str) -> Talk:
    """Return another client of the same connection."""
    client = Talk(talking.client, talking.path.rpartition("/")[2], name)
    client.session_id = talking.session_id
    return client


async def send(client: Talk, name: str, body: Any, **headers: str) -> httpx2.Response:
    """POST an envelope of a named client with headers."""
    sent = {"content-type": "application/json", "sandbox-agent-client": name, **headers}
    return await client.client.post(client.path, content=json.dumps(body).encode(), headers=sent)


@asynccontextmanager
async def attached(client: Talk, name: str, **query: str) -> AsyncGenerator[Stream]:
    """Open a stream with a query; it must be accepted."""
    headers = {"accept": "text/event-stream", "sandbox-agent-client": name}
    async with client.client.stream("GET", client.path, params=query, headers=headers) as response:
        assert response.status_code == 200
        yield Stream(response)


async def test_the_stream_has_what_all_clients_sent_and_their_responses_in_order(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    with anyio.fail_after(60):
        async with talk(server, fresh()) as talking:
            prompt = envelope("session/prompt", talking.prompting("echo one"), 70)
            await send(talking, "ann", prompt, **{"idempotency-key": "the-prompt"})
            keys = "the-prompt,never-sent"
            async with attached(talking, "bob", attach="ann", take_over="true", keys=keys) as stream:
                first = await stream.next()
                assert first is not None
                assert first.event == "attached"
                state = json.loads(first.data)
                assert state["unsent"] == ["never-sent"]
                await stream.until('"id":70,"result"')
            kinds = [event.event for event in stream.events]
            assert kinds.count("sent") == 1
            sent = json.loads(stream.events[kinds.index("sent")].data)
            assert sent == {"client": "ann", "idempotencyKey": "the-prompt", "envelope": prompt}
            assert stream.ids[1:] == list(range(1, len(stream.ids)))
            assert state["lastSequence"] == stream.ids[-1]
            # The client itself sees none of that, and neither does anybody else.
            async with named(talking, "ann").stream() as own:
                await own.until('"id":70')
            assert {event.event for event in own.events} == {"message"}


async def test_the_place_of_a_client_that_is_there_is_taken_only_on_purpose(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    with anyio.fail_after(60):
        async with talk(server, fresh()) as talking, attached(talking, "ann", holder="ann's process"):
            query = {"attach": "ann"}
            refused = await talking.client.get(talking.path, params=query)
            assert refused.status_code == 409
            problem = refused.json()
            assert (problem["holder"], problem["connected"]) == ("ann's process", True)
            async with attached(talking, "bob", attach="ann", take_over="true"):
                pass
            async with attached(talking, "bob", attach="ann", holder="ann's process"):
                pass
            async with attached(talking, "bob", attach="carl"):
                pass
            invalid = await talking.client.get(talking.path, params={"attach": "ann", "take_over": "perhaps"})
            assert invalid.status_code == 400


async def test_a_named_client_has_one_stream(server: ServerProcess, fresh: Callable[[], str]) -> None:
    with anyio.fail_after(60):
        async with talk(server, fresh()) as talking:
            ann = named(talking, "ann")
            async with ann.stream() as older, ann.stream() as newer:
                await older.rest()  # it ends
                await talking.prompt("echo one")
                await newer.until("agent_message_chunk")
            async with talking.stream() as one, talking.stream() as other:  # clients without a name
                await talking.prompt("echo two")
                for stream in (one, other):
                    await stream.until("two")


async def test_a_connection_that_another_client_reads_is_not_deleted_if_that_is_asked(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    with anyio.fail_after(60):
        async with talk(server, fresh()) as talking:
            unused, headers = {"if_unused": "true"}, {"sandbox-agent-client": "ann"}
            async with named(talking, "ann").stream(), named(talking, "bob").stream():
                kept = await talking.client.delete(talking.path, params=unused, headers=headers)
                assert kept.status_code == 409
            async with named(talking, "ann").stream():
                while True:
                    answer = await talking.client.delete(talking.path, params=unused, headers=headers)
                    if answer.status_code == 204:
                        break  # the server has noticed that bob has left
            assert (await talking.client.get(talking.path)).status_code == 404


@pytest.mark.parametrize("name", [SENT, EVERYTHING])
def test_no_client_has_the_name_of_an_audience(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="printable"):
        check_client_name(name)


class _Stream:
    left = False

    def leave(self) -> None:
        self.left = True


def test_the_place_of_a_client_is_kept_for_a_while() -> None:
    now = 0.0
    clients = Clients(lambda: now)
    clients.require_gone("ann", None)  # it was never there
    with clients.reading("ann", "a process", _Stream()):
        now += 1000
        with pytest.raises(ConflictError, match="a process"):
            clients.require_gone("ann", None)
        clients.require_gone("ann", "a process")
    now += GONE_SECONDS - 0.1
    with pytest.raises(ConflictError) as gone:
        clients.require_gone("ann", "another one")
    assert gone.value.extensions["goneForMs"] == round((GONE_SECONDS - 0.1) * 1000)
    assert gone.value.extensions["connected"] is False
    now += 0.1
    clients.require_gone("ann", "another one")


def test_a_newer_stream_of_a_name_closes_the_older_one() -> None:
    clients, older, newer = Clients(), _Stream(), _Stream()
    with clients.reading("ann", None, older), clients.reading("ann", None, newer):
        assert (older.left, newer.left) == (True, False)
    older = _Stream()
    with clients.reading(UNNAMED, None, older), clients.reading(UNNAMED, None, newer):
        assert not older.left


def test_the_newest_keys_are_known() -> None:
    clients = Clients()
    for number in range(MAX_KEYS + 1):
        clients.sent(f"key-{number}")
    assert clients.unsent(["key-0", "key-1", f"key-{MAX_KEYS}"]) == ["key-0"]
