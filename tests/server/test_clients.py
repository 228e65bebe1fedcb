"""Many clients on one connection: equal ids, one permission, a client that goes away."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from sandbox_agent.server.client_names import RESERVED
from tests.server.talk import Talk, client_of, envelope, talk
from tests.support.servers import ServerProcess, put_launcher

pytestmark = pytest.mark.anyio


def again(talking: Talk, name: str = "") -> Talk:
    """Return another client of the same connection and session, its ids from 1 again."""
    other = Talk(talking.client, talking.path.rpartition("/")[2], name)
    other.session_id = talking.session_id
    return other


@pytest.mark.parametrize("names", [("", ""), ("ann", "bob"), ("ann", "ann"), ("", "ann")])
async def test_clients_with_the_same_ids_at_once_each_get_their_own_answer(
    server: ServerProcess, fresh: Callable[[], str], names: tuple[str, str]
) -> None:
    async with talk(server, fresh()) as talking:
        clients = [again(talking, name) for name in names * 8]
        answers: dict[int, Any] = {}

        async def ask(index: int) -> None:
            cwd = f"/{index}"
            await clients[index].request("session/new", {"cwd": cwd, "mcpServers": []})
            answer = await clients[index].request("session/list", {"cwd": cwd})
            answers[index] = [each["cwd"] for each in answer["result"]["sessions"]]

        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                for index in range(len(clients)):
                    tasks.start_soon(ask, index)
        assert answers == {index: [f"/{index}"] for index in range(len(clients))}


async def test_a_permission_goes_to_everyone_and_the_first_answer_wins(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        readers = [talking, again(talking, "ann"), again(talking, "bob")]
        async with readers[0].stream() as one, readers[1].stream() as two, readers[2].stream() as three:
            prompt = talking.start("permission")
            asked = [await stream.until("session/request_permission") for stream in (one, two, three)]
            assert asked[0] == asked[1] == asked[2]
            request_id = asked[0]["id"]

            def reply(option: str) -> dict[str, Any]:
                outcome = {"outcome": "selected", "optionId": option}
                return {"jsonrpc": "2.0", "id": request_id, "result": {"outcome": outcome}}

            first = await readers[1].post(reply("allow_once"))
            second = await readers[0].post(reply("reject_once"))
            assert (first.status_code, second.status_code) == (202, 202)
            assert (first.content, second.content) == (b"", b"")
            assert (await prompt).json()["result"]["stopReason"] == "end_turn"
            await one.until("end_turn")
            assert "Permission granted (allow_once)" in one.texts
            assert "rejected" not in one.texts


async def test_an_answer_to_an_extension_request_reaches_the_agent(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking, talking.stream() as stream:
        prompt = talking.start("ask-extension")
        asked = await stream.until("_mock/question")
        error = {"code": -32601, "message": "no such method"}
        await talking.post({"jsonrpc": "2.0", "id": asked["id"], "error": error})
        await prompt
        await stream.until("end_turn")
        assert "The client refused" in stream.texts


async def test_a_client_that_goes_away_leaves_its_turn_running_and_finds_the_answer_in_the_feed(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        async with client_of(server) as leaving:
            other = Talk(leaving, talking.path.rpartition("/")[2])
            other.session_id, other.next_id = talking.session_id, 50
            async with talking.stream() as stream:
                prompt = other.start("permission")
                asked = await stream.until("session/request_permission")
                prompt.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await prompt
        async with talking.stream(stream.ids[-1]) as stream:
            outcome = {"outcome": "selected", "optionId": "allow_once"}
            await talking.post({"jsonrpc": "2.0", "id": asked["id"], "result": {"outcome": outcome}})
            answer = await stream.until("stopReason")
        assert answer == {"jsonrpc": "2.0", "id": 50, "result": {"stopReason": "end_turn"}}


async def test_a_cancel_ends_the_turn_of_another_client(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking, talking.stream() as stream:
        prompt = talking.start("stall")
        # the session list answers while the turn runs: the agent has taken the prompt before it
        await again(talking, "ann").request("session/list", {})
        response = await talking.post(envelope("session/cancel", {"sessionId": talking.session_id}))
        assert response.status_code == 202
        assert (await prompt).json()["result"]["stopReason"] == "cancelled"
        await stream.until("cancelled")


async def test_pi_gets_a_number_for_its_version_and_a_list_of_servers(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    script = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True); "
    script += 'print("{\\"id\\":%d,\\"result\\":{}}" % (2 if "session/new" in line else 1), flush=True)'
    put_launcher(server.log.parent / "data", "pi", [sys.executable, "-c", script])
    async with talk(server, fresh(), open_=False) as talking:
        await talking.post(envelope("initialize", {"protocolVersion": "1.0", "x": [1]}, 1), agent="pi")
        await talking.post(envelope("session/new", {"cwd": "/"}, 2))
        async with talking.stream() as stream:
            assert (await stream.until("initialize"))["params"] == {"protocolVersion": 1, "x": [1]}
            assert (await stream.until("session/new"))["params"] == {"cwd": "/", "mcpServers": []}


@pytest.mark.parametrize("name", [*sorted(RESERVED), "n" * 257])
async def test_nobody_speaks_in_the_servers_own_name(
    server: ServerProcess, fresh: Callable[[], str], name: str
) -> None:
    async with talk(server, fresh()) as talking:  # its agent lives: the short way is open
        headers = {"sandbox-agent-client": name}
        posted = await talking.client.post(talking.path, json={"id": 9, "result": {}}, headers=headers)
        assert posted.status_code == 400
        assert (name if name in RESERVED else "257 characters") in posted.json()["detail"]
        streamed = await talking.client.get(talking.path, headers={**headers, "accept": "text/event-stream"})
        assert streamed.status_code == 400
        await talking.prompt("echo still here")


async def test_a_client_that_leaves_an_agent_to_another_one_has_no_stream_any_more(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    """A proxy may hold its stream open, and the other client's own end must end the agent."""
    async with talk(server, fresh()) as talking:
        ann, bob = again(talking, "ann"), again(talking, "bob")

        async def leave(name: str) -> int:
            headers = {"sandbox-agent-client": name}
            answer = await talking.client.delete(talking.path, params={"if_unused": "true"}, headers=headers)
            return answer.status_code

        with anyio.fail_after(60):
            async with ann.stream() as one, bob.stream():
                assert await leave("ann") == 409
                await one.rest()
                assert await leave("bob") == 204
