"""Clocks that jump: the log stays in order, what is due still happens, nothing is shown twice."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from sandbox_agent.engine.sse import SseEvent
from tests.chaos.chats import Chat, JsonObject, user_texts
from tests.server.talk import client_of
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

HOUR = 3600
DAY = 24 * HOUR
YEAR = 365 * DAY

# Every process with this on its path has a wall clock that is off by what a file says.
SITE = """
import mmap, os, struct, time
with open(os.environ["CLOCK_FILE"], "rb") as file:
    page = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
true_ns = time.time_ns
time.time_ns = lambda: true_ns() + struct.unpack("<q", page[:8])[0] * 10**9
time.time = lambda: time.time_ns() / 1e9
"""


class JumpingClock:
    """The wall clock of a server."""

    def __init__(self, file: mmap.mmap) -> None:
        self._file = file

    def jump(self, seconds: int) -> None:
        """Set it to so many seconds after the true time."""
        self._file[:8] = struct.pack("<q", seconds)


@contextmanager
def jumping_server(folder: Path, *options: str) -> Generator[tuple[ServerProcess, JumpingClock]]:
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE)
    clock = folder / "clock"
    clock.write_bytes(bytes(8))
    env = {"PYTHONPATH": str(site), "CLOCK_FILE": str(clock)}
    server = our_server(folder, "--store", f"sqlite:{folder}/store.db", *options, env=env)
    with clock.open("r+b") as file, mmap.mmap(file.fileno(), 8) as page, server:
        yield server, JumpingClock(page)


def check_times(events: list[JsonObject]) -> None:
    """Check that time only goes back where the clock was set back by more than a minute."""
    times = [datetime.fromisoformat(event["time"]) for event in events]
    for before, after in pairwise(times):
        assert after >= before or before - after > timedelta(minutes=1)


async def test_the_log_stays_in_order_while_the_clock_jumps(tmp_path: Path) -> None:
    with jumping_server(tmp_path) as (server, clock), anyio.fail_after(60):
        async with client_of(server) as client:
            chat = Chat(client, "jumpy")
            await chat.create()
            said: list[str] = []
            turns: list[JsonObject] = []
            seen: list[SseEvent] = []

            async def watch() -> None:
                async with chat.stream() as stream:
                    while (event := await stream.next()) is not None:
                        seen.append(event)
                        if json.loads(event.data)["type"] == "session.ended":
                            return

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch)
                for number, at in enumerate([0, -HOUR, HOUR, -YEAR, 0, -100 * YEAR, 2 * YEAR, -DAY]):
                    clock.jump(at)
                    said.append(f"echo {number}")
                    events = await chat.turn(said[-1], key=f"key-{number}")
                    assert events[-1]["data"]["metadata"]["stop_reason"] == "end_turn"
                    # amid a turn, too
                    said.append("stream 5 5")
                    turn_id = await chat.say(said[-1], key=f"amid-{number}")
                    clock.jump(at - HOUR)
                    assert await chat.say(said[-1], key=f"amid-{number}") == turn_id
                turns = (await chat.info())["turns"]
                assert (await client.post(f"{chat.path}/terminate")).is_success
            truth = await chat.events()
            assert [json.loads(event.data) for event in seen] == truth
            assert [event.id for event in seen] == [str(event["sequence"]) for event in truth]
            check_times(truth)
            assert len({event["time"][:4] for event in truth}) > 1  # it did jump
            # the last was cut off by the end of the session, or never began
            assert user_texts(truth)[: len(said) - 1] == said[:-1]
            assert len(turns) == len(said)
            for turn in turns:
                if "endedAt" in turn:
                    assert turn["startedAt"] <= turn["endedAt"]


async def test_a_session_whose_clock_was_ahead_returns_to_the_real_time(tmp_path: Path) -> None:
    with jumping_server(tmp_path) as (server, clock), anyio.fail_after(60):
        async with client_of(server) as client:
            chat = Chat(client, "ahead")
            clock.jump(10 * YEAR)
            await chat.create()
            await chat.turn("echo one")
            assert is_now((await chat.events())[-1]["time"], off=10 * YEAR)
            clock.jump(0)
            await chat.turn("echo two")
            assert is_now((await chat.events())[-1]["time"])
            clock.jump(-30)  # a small step does not show
            events = await chat.turn("echo three")
            assert is_now(events[-1]["time"])
            await Chat(client, "newer").create()
            sessions = (await client.get("/v1/sessions")).json()["sessions"]
            assert [is_now(session["updatedAt"]) for session in sessions] == [True, True]


def is_now(time: str | int, off: int = 0) -> bool:
    """Return whether a time is within a minute of now, by a clock that is off by so many seconds."""
    if isinstance(time, int):
        time = datetime.fromtimestamp(time / 1000, UTC).isoformat()
    return abs(datetime.fromisoformat(time) - datetime.now(UTC) - timedelta(seconds=off)) < timedelta(
        minutes=1
    )


async def test_a_restart_in_the_past_goes_on_behind_what_was_there(tmp_path: Path) -> None:
    with jumping_server(tmp_path) as (server, clock), anyio.fail_after(60):
        async with client_of(server) as client:
            chat = Chat(client, "s-0")
            await chat.create()
            await chat.turn("echo one", key="k1")
            count = (await chat.info())["eventCount"]
            await chat.say("stall", key="k2")
            await chat.until("turn.started", after=count)
            before = await chat.events()
        server.kill()
        clock.jump(-YEAR)
        server.start()
        async with client_of(server) as client:
            chat = Chat(client, "s-0")
            events = await chat.turn("echo two", key="k3")
            assert events[-1]["type"] == "turn.ended"
            truth = await chat.events()
            assert truth[: len(before)] == before
            check_times(truth)
            assert user_texts(truth) == ["echo one", "stall", "echo two"]
            for number in range(1, 6):  # each made earlier than the one before
                clock.jump(-YEAR - number * DAY)
                await Chat(client, f"s-{number}").create()
            names: list[str] = []
            cursor: str | None = None
            while True:
                query = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
                page = (await client.get("/v1/sessions", params=query)).json()
                names += [each["sessionId"] for each in page["sessions"]]
                cursor = page.get("nextCursor")
                if cursor is None:
                    break
            assert sorted(names) == [f"s-{number}" for number in range(6)]
            years = [int((await Chat(client, name).events())[0]["time"][:4]) for name in ("s-1", "s-0")]
            assert years[0] < years[1]
            found = (await client.get("/v1/search", params={"q": "two"})).json()["hits"]
            assert {hit["sessionId"] for hit in found} == {"s-0"}


async def test_a_permission_expires_also_when_the_clock_was_set_back(tmp_path: Path) -> None:
    with jumping_server(tmp_path) as (server, clock), anyio.fail_after(30):
        async with client_of(server) as client:
            chat = Chat(client, "expiring")
            await chat.create(permissionTimeoutSeconds=1)
            await chat.say("permission")
            await chat.until("permission.requested")
            clock.jump(-DAY)
            resolved = (await chat.until("permission.resolved"))["data"]
            assert resolved["status"] == "reject"
            assert resolved["metadata"]["answered_by"] == "expiry"
            await chat.until("turn.ended")


async def test_no_agent_runs_for_less_than_no_time(tmp_path: Path) -> None:
    with jumping_server(tmp_path) as (server, clock), anyio.fail_after(30):
        async with client_of(server) as client:
            await Chat(client, "running").create()
            clock.jump(-DAY)
            status = (await client.get("/v1/agents/mock")).json()["serverStatus"]
            assert status["status"] == "running"
            assert 0 <= status["uptimeMs"] < HOUR * 1000


async def test_a_start_with_a_clock_far_ahead_erases_nothing(tmp_path: Path) -> None:
    with jumping_server(tmp_path, "--retain-days", "30") as (server, clock), anyio.fail_after(60):
        async with client_of(server) as client:
            chat = Chat(client, "kept")
            await chat.create()
            await chat.turn("echo one")
            events = await chat.events()
        server.stop()
        clock.jump(10 * YEAR)
        server.start()
        async with client_of(server) as client:
            while "the clock is ahead of the newest event" not in server.log.read_text():
                await client.get("/v1/health")
            kept = await Chat(client, "kept").events()
            assert kept[: len(events)] == events
            # What came after the jump does not make the clock right.
            await Chat(client, "later").create()
            assert (await Chat(client, "kept").events())[: len(events)] == events
