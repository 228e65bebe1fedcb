"""The server is killed again and again under load: whoever watches holds the same log in the end."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

import anyio
import httpx2
import pytest

from sandbox_agent import SandboxAgent
from sandbox_agent.engine.sse import SseDecoder
from sandbox_agent.wire.universal import encode_event
from tests.chaos.chats import Chat, JsonObject, Life, user_texts
from tests.server.talk import client_of
from tests.support.effort import SOAK, repeats
from tests.support.servers import our_server, put_launcher

SECONDS = 240 * max(1, SOAK)
KILLS = repeats(4, 20)
SESSIONS = 8
# How often a polling viewer asks.
POLL_SECONDS = 0.05

pytestmark = [pytest.mark.anyio, pytest.mark.loops, pytest.mark.timeout(65 + SECONDS)]


class Crowd:
    """Counts what the viewers see, so that the server can be killed at a chosen point of the run."""

    def __init__(self) -> None:
        self.seen = 0
        self._due: tuple[int, anyio.Event] | None = None

    def note(self) -> None:
        self.seen += 1
        if self._due is not None and self.seen >= self._due[0]:
            self._due[1].set()

    async def further(self, events: int) -> None:
        """Return when the viewers have seen so many events more."""
        if events:
            due = anyio.Event()
            self._due = (self.seen + events, due)
            await due.wait()


class Watch:
    """One viewer: what it has seen, and the event that it ends behind."""

    def __init__(self, chat: Chat, life: Life, crowd: Crowd) -> None:
        self.chat = chat
        self.events: list[JsonObject] = []
        self._life = life
        self._crowd = crowd

    @property
    def over(self) -> bool:
        return bool(self.events) and self.events[-1]["type"] == "session.ended"

    def take(self, event: JsonObject) -> None:
        """A viewer must get what follows what it has, and nothing else."""
        assert event["sequence"] == len(self.events) + 1, (self.chat.id, len(self.events), event)
        self.events.append(event)
        self._crowd.note()

    async def poll(self, rounds: int = sys.maxsize) -> None:
        while not self.over and rounds:
            rounds -= 1
            response = await self._life.persist(self._page)
            assert response.status_code == 200, response.text
            for event in response.json()["events"]:
                self.take(event)
            await anyio.sleep(POLL_SECONDS)

    async def _page(self) -> httpx2.Response:
        query = {"offset": len(self.events), "limit": 500}
        return await self.chat.client.get(f"{self.chat.path}/events", params=query)

    async def stream(self, events: int = sys.maxsize) -> None:
        """Follow the stream for so many events."""
        target = len(self.events) + events
        while not self.over and len(self.events) < target:
            await self._life.up()
            try:
                async with self.chat.stream(after=len(self.events)) as stream:
                    while not self.over and len(self.events) < target and (event := await stream.next()):
                        assert (event.event, event.id) == ("message", str(len(self.events) + 1))
                        self.take(json.loads(event.data))
            except httpx2.TransportError:
                pass

    async def hop(self) -> None:
        """Poll and stream in turns."""
        while not self.over:
            await self.poll(rounds=3)
            await self.stream(events=100)

    async def sdk(self) -> None:
        async with SandboxAgent.connect(base_url=self._life.server.url) as sdk:
            async for event in sdk.sessions.stream_events(self.chat.id):
                self.take(json.loads(encode_event(event)))


class Writer:
    """Says one thing after the other, each until it is acknowledged."""

    def __init__(self, chat: Chat, life: Life, rng: random.Random) -> None:
        self.chat = chat
        self.said: list[tuple[str, str]] = []
        self._life = life
        self._rng = rng

    async def run(self, over: anyio.Event) -> None:
        while not over.is_set():
            for _ in range(self._rng.randrange(4)):
                await self._say("messages")
            await self._say("messages/stream")  # returns behind all of them: the queue stays short

    async def _say(self, what: str) -> None:
        number = len(self.said)
        name = f"{self.chat.id} {number}"
        texts = (
            f"echo {name}",
            f"tool {name}",
            f"thought {name}",
            f"burst {200 + number} 60",
            "burst 9 9000",
        )
        text = self._rng.choice((*texts, "stream 20 5", "sleep 0.05", "plan", "permission"))
        key = f"{self.chat.id}-{number}"
        response = await self._life.persist(lambda: self.chat.post(what, text, key))
        assert response.is_success, (response.status_code, response.text)
        turn_id = response.headers["sandbox-agent-turn"]
        self.said.append((text, turn_id))
        if what == "messages/stream":
            self._check_turn(response.content, turn_id)
        elif self._rng.random() < 0.3:
            again = await self._life.persist(lambda: self.chat.post(what, text, key))
            assert again.headers["sandbox-agent-turn"] == turn_id

    def _check_turn(self, body: bytes, turn_id: str) -> None:
        events: list[JsonObject] = [json.loads(event.data) for event in SseDecoder().feed(body)]
        assert (events[0]["type"], events[-1]["type"]) == ("turn.started", "turn.ended")
        assert {events[0]["data"]["turn_id"], events[-1]["data"]["turn_id"]} == {turn_id}


class Answerer:
    """Answers whatever any agent asks, out of the inbox."""

    def __init__(self, client: httpx2.AsyncClient, life: Life) -> None:
        self.answered = 0
        self._client = client
        self._life = life

    async def run(self, scope: anyio.CancelScope) -> None:
        with scope:
            await self._run()

    async def _run(self) -> None:
        while True:
            inbox = await self._life.persist(lambda: self._client.get("/v1/permissions"))
            for asked in inbox.json()["permissions"]:
                await self._answer(
                    f"/v1/sessions/{asked['sessionId']}/permissions/{asked['permissionId']}/reply"
                )
            await anyio.sleep(POLL_SECONDS)

    async def _answer(self, path: str) -> None:
        answer = await self._life.persist(lambda: self._client.post(path, json={"reply": "once"}))
        # 409: nobody waits for it any more, or an earlier try got through before the server died
        assert answer.status_code in (204, 409), answer.text
        self.answered += answer.status_code == 204


def check_asks(events: list[JsonObject]) -> None:
    """All that was asked is answered or given up, once, and nothing else is."""
    asks = {"requested": Counter[str](), "resolved": Counter[str]()}
    for event in events:
        what, _, how = event["type"].partition(".")
        if what == "permission":
            asks[how][event["data"]["permission_id"]] += 1
    assert asks["requested"] == asks["resolved"]
    assert set(asks["requested"].values()) <= {1}


async def kill_again_and_again(life: Life, crowd: Crowd, rng: random.Random) -> None:
    for _ in range(KILLS):
        await crowd.further(rng.choice([0, 1, rng.randrange(300), rng.randrange(4000), rng.randrange(9000)]))
        await life.kill()
        if rng.random() < 0.25:
            await die_at_start(life, rng)
        await life.start()


async def die_at_start(life: Life, rng: random.Random) -> None:
    """Kill it while it starts: what it then does to its store is cut off too."""

    async def start() -> None:
        with contextlib.suppress(RuntimeError):
            await anyio.to_thread.run_sync(life.server.start)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(start)
        await anyio.sleep(rng.uniform(0.15, 0.4))
        await anyio.to_thread.run_sync(life.server.kill)


def check_turns(events: list[JsonObject], said: list[tuple[str, str]]) -> Counter[str]:
    """Every message is there once, in order, and its turn began once and ended once behind that."""
    assert user_texts(events) == [text for text, _ in said]
    turns = [turn_id for _, turn_id in said]
    started = [event["data"]["turn_id"] for event in events if event["type"] == "turn.started"]
    ended = [event["data"] for event in events if event["type"] == "turn.ended"]
    assert started == turns
    assert [data["turn_id"] for data in ended] == turns
    return Counter(data["metadata"]["stop_reason"] for data in ended)


@pytest.mark.soak
async def test_all_viewers_hold_the_same_log_however_often_the_server_is_killed(tmp_path: Path) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or time.time_ns() % 1_000_000)
    print(f"CHAOS_SEED={seed}")
    rng = random.Random(seed)
    prompts = tmp_path / "prompts.log"
    state = tmp_path / "state"
    state.mkdir()
    # Half of the agents keep their sessions and load them again, and tell what they were sent.
    script = (
        f"tee -a {prompts} | SANDBOX_AGENT_MOCK_STATE={state} {sys.executable} -m sandbox_agent.agents.mock"
    )
    put_launcher(tmp_path / "data", "claude", ["sh", "-c", script])
    crowd = Crowd()
    with our_server(tmp_path, "--store", f"sqlite:{tmp_path}/store.db") as server:
        life = Life(server)
        async with client_of(server) as client:
            chats = [Chat(client, f"chat-{number}") for number in range(SESSIONS)]
            watches = [[Watch(chat, life, crowd) for _ in range(3)] for chat in chats]
            writers = [Writer(chat, life, random.Random(rng.random())) for chat in chats]
            answerer, answering = Answerer(client, life), anyio.CancelScope()
            over = anyio.Event()
            with anyio.fail_after(SECONDS):
                for number, chat in enumerate(chats):
                    await chat.create(agent=("mock", "claude")[number % 2])
                async with anyio.create_task_group() as viewers:
                    for number, (poller, streamer, third) in enumerate(watches):
                        viewers.start_soon(poller.poll)
                        viewers.start_soon(streamer.stream)
                        viewers.start_soon(third.hop if number < SESSIONS // 2 else third.sdk)
                    async with anyio.create_task_group() as writing:
                        viewers.start_soon(answerer.run, answering)
                        for writer in writers:
                            writing.start_soon(writer.run, over)
                        await kill_again_and_again(life, crowd, rng)
                        over.set()
                    answering.cancel()
                    for chat in chats:
                        assert (await client.post(f"{chat.path}/terminate")).is_success
                assert (await client.get("/v1/permissions")).json() == {"permissions": []}
                reasons: Counter[str] = Counter()
                for chat, watching, writer in zip(chats, watches, writers, strict=True):
                    truth = await chat.events()
                    for watch in watching:
                        assert watch.events == truth
                    check_asks(truth)
                    reasons += check_turns(truth, writer.said)
                    turns = (await chat.info())["turns"]
                    assert {turn["state"] for turn in turns} <= {"done", "interrupted"}
    print(f"{crowd.seen} events seen; turns: {dict(reasons)}; {answerer.answered} permissions given")
    assert "goes on without what was open" not in (tmp_path / "server.log").read_text()
    assert reasons["interrupted"] >= KILLS // 4  # it was busy
    assert reasons["end_turn"] >= KILLS
    assert set(reasons) == {"interrupted", "end_turn"}
    sent = Counter(
        message["id"]
        for line in prompts.read_text().splitlines()
        if '"session/prompt"' in line and (message := json.loads(line))["id"]
    )
    assert sent
    assert [turn_id for turn_id, times in sent.items() if times > 1] == []
