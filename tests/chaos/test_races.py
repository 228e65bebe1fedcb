"""Two who answer, a cancel at the end of a turn, a delete amid one: one outcome, and it goes on."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest

from tests.chaos.chats import Chat, JsonObject, user_texts
from tests.server.talk import client_of
from tests.support.effort import repeats
from tests.support.servers import ServerProcess, our_server

pytestmark = [pytest.mark.anyio, pytest.mark.loops]

ROUNDS = repeats(15, 60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    with our_server(folder, "--store", f"sqlite:{folder}/store.db") as running:
        yield running


@asynccontextmanager
async def chatting(server: ServerProcess, name: str) -> AsyncGenerator[Chat]:
    async with client_of(server) as client:
        chat = Chat(client, name)
        await chat.create()
        yield chat
        assert (await client.delete(chat.path)).is_success


def kinds(events: list[JsonObject]) -> Counter[str]:
    return Counter(event["type"] for event in events)


async def test_of_two_clients_that_answer_one_permission_exactly_one_wins(server: ServerProcess) -> None:
    rng = random.Random(7)
    async with chatting(server, "asked") as chat, client_of(server) as other:
        statuses: list[int] = []

        async def reply(client: httpx2.AsyncClient, name: str, asked: str, answer: str) -> None:
            path = f"{chat.path}/permissions/{asked}/reply"
            headers = {"sandbox-agent-client": name}
            response = await client.post(path, json={"reply": answer}, headers=headers)
            statuses.append(response.status_code)
            if response.status_code == 409:
                problem = response.json()
                assert problem["answeredBy"] in {"one", "two"} - {name}
                assert problem["answered"] in {"accept", "reject"}
            else:
                winners.append((name, answer))

        with anyio.fail_after(60):
            for number in range(ROUNDS):
                after = (await chat.info())["eventCount"]
                winners: list[tuple[str, str]] = []
                await chat.say("permission")
                asked = (await chat.until("permission.requested", after))["data"]["permission_id"]
                answers = [(chat.client, "one", asked, "once"), (other, "two", asked, "reject")]
                rng.shuffle(answers)
                async with anyio.create_task_group() as tasks:
                    for each in answers:
                        tasks.start_soon(reply, *each)
                await chat.until("turn.ended", after)
                assert Counter(statuses) == {204: number + 1, 409: number + 1}
                events = (await chat.events())[after:]
                resolved = [each["data"] for each in events if each["type"] == "permission.resolved"]
                assert [each["permission_id"] for each in resolved] == [asked]
                [(name, answer)] = winners
                assert resolved[0]["status"] == {"once": "accept", "reject": "reject"}[answer]
                assert resolved[0]["metadata"]["answered_by"] == name
            assert (await chat.client.get("/v1/permissions")).json() == {"permissions": []}


async def test_a_cancel_that_races_the_end_of_a_turn_leaves_one_end(server: ServerProcess) -> None:
    seed = time.time_ns() % 1_000_000
    print(f"seed {seed}")
    rng = random.Random(seed)
    ends: Counter[str] = Counter()
    async with chatting(server, "raced") as chat:
        with anyio.fail_after(60):
            for number in range(ROUNDS):
                after = (await chat.info())["eventCount"]
                text = rng.choice(["sleep 0.01", "stream 3 3", "echo short", "burst 50 50", "permission"])
                trigger = rng.choice(["", "turn.started", "item.started", "item.completed"])

                async def cancel(after: int = after, trigger: str = trigger) -> None:
                    if trigger:
                        await chat.until(trigger, after)
                    await anyio.sleep(rng.uniform(0, 0.015))  # the race is meant
                    assert (await chat.client.post(f"{chat.path}/cancel")).status_code == 204

                if text == "permission":
                    trigger = "permission.requested"
                turn_id = ""
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(cancel, after, trigger)
                    turn_id = await chat.say(text, f"race-{number}")
                following = await chat.turn(f"echo after {number}")
                assert following[-1]["data"]["metadata"]["stop_reason"] == "end_turn"
                events = (await chat.events())[after:]
                mine = [
                    each["data"]
                    for each in events
                    if each["type"] == "turn.ended" and each["data"]["turn_id"] == turn_id
                ]
                assert len(mine) == 1
                counted = kinds(events)
                assert counted["permission.requested"] == counted["permission.resolved"]
                turns = {turn["turnId"]: turn["state"] for turn in (await chat.info())["turns"]}
                assert turns[turn_id] in ("done", "cancelled")
                assert list(turns.values())[-1] == "done"
                ends[turns[turn_id]] += 1
            texts = user_texts(await chat.events())
            assert [text for text in texts if text.startswith("echo after")] == [
                f"echo after {number}" for number in range(ROUNDS)
            ]
    print(dict(ends))
    assert ends["done"]
    assert ends["cancelled"]


async def test_a_delete_during_a_turn_leaves_nothing_and_frees_the_name(server: ServerProcess) -> None:
    rng = random.Random(3)
    async with client_of(server) as client:
        for number in range(repeats(4, 12)):
            chat = Chat(client, "deleted")
            text = ("stall", "burst 20000 50", "permission", "stream 500 2", "deaf", "tool")[number % 6]
            ended: list[str] = []

            async def follow(chat: Chat = chat, ended: list[str] = ended) -> None:
                async with chat.stream() as stream:
                    sequence = 0
                    while (event := await stream.next()) is not None:
                        sequence += 1
                        assert json.loads(event.data)["sequence"] == sequence
                ended.append("stream")

            async def speak(chat: Chat = chat, text: str = text, ended: list[str] = ended) -> None:
                await chat.turn(text)
                ended.append("turn")

            with anyio.fail_after(30):
                await chat.create(title=f"number {number}")
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(follow)
                    tasks.start_soon(speak)
                    await chat.until(rng.choice(["turn.started", "item.started", "item.completed"]), after=1)
                    queued = await chat.post("messages", "echo queued unfindable")
                    assert queued.status_code == 204
                    assert (await client.delete(chat.path)).status_code == 204
                assert sorted(ended) == ["stream", "turn"]
                for path in ("", "/events", "/events/sse", "/export"):
                    gone = await client.get(f"{chat.path}{path}")
                    assert gone.status_code == 404, path
                assert (await chat.post("messages", "echo lost")).status_code == 404
                assert (await client.delete(chat.path)).status_code == 404
                sessions = (await client.get("/v1/sessions")).json()["sessions"]
                assert [each for each in sessions if each["sessionId"] == chat.id] == []
                hits = (await client.get("/v1/search", params={"q": "unfindable"})).json()["hits"]
                assert hits == []
                asked = (await client.get("/v1/permissions")).json()["permissions"]
                assert [each for each in asked if each["sessionId"] == chat.id] == []
                # the name is free, and its log is a new one
                await chat.create(title="another")
                assert (await chat.info())["title"] == "another"
                again = await chat.turn("echo anew")
                assert again[-1]["type"] == "turn.ended"
                assert user_texts(await chat.events()) == ["echo anew"]
                assert (await client.delete(chat.path)).status_code == 204
        # no agent is left behind
        listed = (await client.get("/v1/acp")).json()["servers"]
        assert listed == []
