"""The output of a process: read in parts, followed, bounded, and never lost in silence."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import anyio
import pytest

from sandbox_agent.engine.sse import SseDecoder
from sandbox_agent.server.processes.log import (
    ENTRY_BYTES,
    Follower,
    ProcessLog,
    encode_logs,
)
from tests.server.processes.talk import Talk, output
from tests.server.processes.test_processes import problem

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
COUNTER = "i=0; while [ $i -lt {count} ]; do i=$((i+1)); echo $i; read line; done"


async def counting(talk: Talk, count: int) -> str:
    """Return a process that has printed the numbers up to ``count``, each as an entry of its own."""
    created = await talk.shell(COUNTER.format(count=count) + "; sleep 600")
    for number in range(1, count + 1):
        await talk.printed(created["id"], f"{number}\n")
        await talk.input(created["id"], "\n")
    return created["id"]


def sequences(entries: list[dict[str, Any]]) -> list[int]:
    """Return the sequences of entries."""
    return [entry["sequence"] for entry in entries]


async def test_a_log_is_read_from_its_beginning_its_end_or_a_sequence(talk: Talk) -> None:
    process_id = await counting(talk, 5)
    for params, expected in (
        ({}, [1, 2, 3, 4, 5]),
        ({"since": 0}, [1, 2, 3, 4, 5]),
        ({"since": 3}, [4, 5]),
        ({"since": 99}, []),
        ({"tail": 2}, [4, 5]),
        ({"tail": 0}, []),
        ({"tail": 99}, [1, 2, 3, 4, 5]),
        ({"tail": 3, "since": 4}, [5]),
        ({"stream": "stdout", "tail": 1}, [5]),
        ({"stream": "stderr"}, []),
        ({"stream": "pty"}, []),
    ):
        logs = await talk.logs(process_id, **params)
        assert (params, sequences(logs["entries"])) == (params, expected)
        assert "gap" not in logs
    path = f"/v1/processes/{process_id}/logs"
    for name, value in (("tail", "x"), ("tail", "-1"), ("since", "x"), ("stream", "x"), ("follow", "maybe")):
        assert problem(await talk.client.get(path, params={name: value})) == (400, "invalid_request")
    await talk.signal(process_id, "kill")


async def test_a_follower_gets_what_was_there_and_what_comes_and_how_it_ends(talk: Talk) -> None:
    process_id = await counting(talk, 3)
    async with talk.follow(process_id) as stream:
        first = [await stream.next() for _ in range(3)]
        assert [event and (event.event, event.id) for event in first] == [("log", 1), ("log", 2), ("log", 3)]
        await talk.signal(process_id, "kill")
        (last,) = await stream.rest()
    assert (last.event, last.id, last.data) == ("exit", None, await talk.get(process_id))
    for last_event_id, params, expected in (
        (2, {}, [3]),
        (None, {"since": 1}, [2, 3]),
        (2, {"since": 1}, [3]),
        (1, {"since": 2}, [3]),
        (None, {"tail": 1}, [3]),
        (3, {}, []),
        (None, {"stream": "stderr"}, []),
    ):
        async with talk.follow(process_id, last_event_id, **params) as stream:
            *logged, last = await stream.rest()
        assert [event.id for event in logged] == expected
        assert last.event == "exit"
    answer = await talk.client.get(
        f"/v1/processes/{process_id}/logs", params={"follow": "true"}, headers={"last-event-id": "x"}
    )
    assert problem(answer) == (400, "invalid_request")


async def test_a_full_log_drops_the_oldest_says_so_and_does_not_stop_the_process(talk: Talk) -> None:
    await talk.configure(maxLogBytesPerProcess=MIB)
    created = await talk.shell("seq -w 0 999999; echo done >&2")  # 7 MB
    assert (await talk.ended(created["id"]))["exitCode"] == 0
    logs = await talk.logs(created["id"])
    first = logs["entries"][0]["sequence"]
    assert logs["gap"] == {"from": 1, "to": first - 1}
    assert sequences(logs["entries"]) == [*range(first, first + len(logs["entries"]))]
    kept = output([entry for entry in logs["entries"] if entry["stream"] == "stdout"])
    assert MIB / 2 < len(kept) <= MIB
    assert "".join(f"{number:06}\n" for number in range(1_000_000)).encode().endswith(kept)
    assert (await talk.logs(created["id"], since=2))["gap"] == {"from": 3, "to": first - 1}
    assert "gap" not in await talk.logs(created["id"], since=first)
    assert "gap" not in await talk.logs(created["id"], tail=1)
    async with talk.follow(created["id"], 1) as stream:
        gap, *logged, last = await stream.rest()
    assert (gap.event, gap.id, gap.data) == ("gap", first - 1, {"from": 2, "to": first - 1})
    assert [event.data for event in logged] == logs["entries"]
    assert last.event == "exit"


async def test_a_follower_that_lags_gets_the_range_that_it_missed(talk: Talk) -> None:
    await talk.configure(maxLogBytesPerProcess=MIB)
    created = await talk.shell("read line; yes | head -c 60000000; echo end >&2; read line")
    async with talk.follow(created["id"]) as stream:
        await talk.input(created["id"], "\n")
        await talk.printed(created["id"], "end\n")  # while the follower does not read
        await talk.signal(created["id"], "kill")
        *events, last = await stream.rest()
    assert last.event == "exit"
    assert "gap" in {event.event for event in events}
    cursor = 0
    for event in events:
        is_gap = event.event == "gap"
        assert (event.data["from"] if is_gap else event.data["sequence"]) == cursor + 1
        cursor = event.data["to"] if is_gap else event.data["sequence"]
        assert event.id == cursor
    assert b"end\n" in [output([event.data]) for event in events if event.event == "log"]


async def test_a_follower_that_keeps_up_loses_nothing(talk: Talk) -> None:
    """It receives each part before the next is printed: ten times what the log keeps."""
    await talk.configure(maxLogBytesPerProcess=MIB)
    created = await talk.shell("while read line; do seq -w 1 100000; done")
    part = "".join(f"{number:06}\n" for number in range(1, 100_001)).encode()
    async with talk.follow(created["id"]) as stream:
        for _ in range(15):
            await talk.input(created["id"], "\n")
            text = b""
            while len(text) < len(part):
                event = await stream.next()
                assert event is not None
                assert event.event == "log"
                text += output([event.data])
            assert text == part
    await talk.signal(created["id"], "kill")
    assert (await talk.logs(created["id"]))["gap"]["from"] == 1


async def test_a_large_log_is_read_as_a_whole(talk: Talk) -> None:
    created = await talk.shell("head -c 9000000 /dev/urandom | tee /dev/stderr | md5sum >&2")
    await talk.ended(created["id"])
    logs = await talk.logs(created["id"])
    data = output(logs["entries"])
    assert len(data) > 9_000_000


async def test_streams_end_when_the_client_leaves(talk: Talk) -> None:
    created = await talk.create("cat")
    for _ in range(3):
        async with talk.follow(created["id"]):
            pass
    with anyio.fail_after(10):
        await talk.signal(created["id"], "kill")


# the log by itself


def events_of(data: bytes) -> list[tuple[str, str | None, Any]]:
    """Return events with their data."""
    return [(found.event, found.id, json.loads(found.data)) for found in SseDecoder().feed(data)]


def test_entries_are_numbered_and_dropped_by_their_bytes() -> None:
    log = ProcessLog(lambda: 10)
    for number in range(6):
        log.append("stdout", b"%d.." % number)
    assert (log.first, log.last, log.size) == (4, 6, 9)
    assert [entry.data for entry in log.after(0)] == [b"3..", b"4..", b"5.."]
    assert [entry.data for entry in log.after(4)] == [b"4..", b"5.."]
    assert log.after(6) == log.after(99) == []


def test_a_smaller_limit_counts_for_what_comes_next() -> None:
    limit = 100
    log = ProcessLog(lambda: limit)
    log.append("stdout", b"x" * 90)
    limit = 10
    log.append("stdout", b"y" * 5)
    assert (log.first, log.size) == (2, 5)


def test_a_large_piece_becomes_entries_of_which_the_newest_are_kept() -> None:
    log = ProcessLog(lambda: 2 * ENTRY_BYTES)
    log.append("stdout", b"a" * ENTRY_BYTES + b"b" * ENTRY_BYTES + b"c" * ENTRY_BYTES)
    assert [entry.data[:1] for entry in log.after(0)] == [b"b", b"c"]
    small = ProcessLog(lambda: 4)
    small.append("stdout", b"0123456789ab")
    assert [entry.data for entry in small.after(0)] == [b"89ab"]


def test_small_entries_are_limited_in_number() -> None:
    """An entry takes more memory than the byte in it."""
    log = ProcessLog(lambda: 64_000)
    for _ in range(5000):
        log.append("stdout", b"x")
    assert (log.last, log.first, log.size) == (5000, 4001, 1000)
    assert len(vars(log)["_entries"]) < 5000


def test_the_tail_counts_the_entries_of_a_stream() -> None:
    log = ProcessLog(lambda: 1000)
    for number in range(10):
        log.append("stderr" if number % 3 else "stdout", b"x")  # stdout: 1, 4, 7, 10
    assert [log.tail(count, "stdout") for count in (0, 1, 2, 4, 5)] == [10, 9, 6, 0, 0]
    assert [log.tail(count, "combined") for count in (0, 1, 10, 2**62)] == [10, 9, 0, 0]
    assert log.tail(1, "pty") == 0


async def test_a_follower_ends_once_with_the_process() -> None:
    log = ProcessLog(lambda: 100)
    log.append("stdout", b"hi")
    follower = Follower(log, lambda: b"{}")
    part = await follower.read(0, "stdout", max_bytes=1)
    assert [event[:2] for event in events_of(part.data)] == [("log", "1")]
    assert await follower.read(1, "stdout", max_bytes=1) == (b"", 1)
    log.signal.close()
    part = await follower.read(1, "stdout", max_bytes=1)
    assert events_of(part.data) == [("exit", None, {})]
    assert follower.finished
    assert await follower.read(part.cursor, "stdout", max_bytes=1) == (b"", part.cursor)


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_written_and_read_every_sequence_is_an_entry_or_in_a_gap(seed: int) -> None:
    chance = random.Random(seed)
    log = ProcessLog(lambda: 200)
    cursor, written = 0, b""
    received: dict[int, bytes] = {}
    missed: set[int] = set()
    for _ in range(300):
        for _ in range(chance.randrange(4)):
            data = bytes(chance.randrange(256) for _ in range(chance.randrange(1, 30)))
            written += data
            log.append("stdout", data)
        if chance.random() < 0.3:
            part = log.read(cursor, "combined")
            for event, event_id, found in events_of(part.data):
                assert event_id is not None
                if event == "gap":
                    missed |= {*range(found["from"], found["to"] + 1)}
                else:
                    assert int(event_id) == found["sequence"]
                    received[int(event_id)] = base64.b64decode(found["data"])
            cursor = part.cursor
    assert {*received} | missed == {*range(1, cursor + 1)}
    assert not {*received} & missed
    kept = b"".join(entry.data for entry in log.after(0))
    assert written.endswith(kept)
    document = b"".join(encode_logs(b"[", log.first, log.after(0), "combined", b"]"))
    assert b"".join(base64.b64decode(entry["data"]) for entry in json.loads(document)) == kept
