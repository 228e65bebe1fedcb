"""The turns of connections that send much: a round has a limited time, and small requests do not wait."""

from __future__ import annotations

import asyncio

import pytest

from sandbox_agent.server.http import turns
from sandbox_agent.server.http.turns import (
    DISCARDED_CHUNKS,
    MAX_DISCARDING,
    ROUND_SECONDS,
    SMALL_BYTES,
    Turns,
)

pytestmark = pytest.mark.anyio


class Clock:
    """Replaces the module's time: it moves while work is done."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


async def test_large_chunks_wait_for_their_turn_and_small_ones_do_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, shared = Clock(), Turns()
    monkeypatch.setattr(turns, "time", clock)
    done: list[str] = []

    def work(name: str) -> None:
        clock.now += ROUND_SECONDS / 2
        done.append(name)

    def send(name: str, size: int) -> bool:
        return shared.run(size, lambda: work(name))

    assert [send(f"large {number}", SMALL_BYTES + 1) for number in range(6)] == [True] * 2 + [False] * 4
    assert send("small", SMALL_BYTES)
    assert done == ["large 0", "large 1", "small"]
    await asyncio.sleep(0)  # the next round
    assert done[3:] == ["large 2", "large 3"]
    assert not send("large 6", SMALL_BYTES + 1)  # behind those that wait
    await asyncio.sleep(0)
    assert done[5:] == ["large 4", "large 5"]
    await asyncio.sleep(0)
    assert done[7:] == ["large 6"]
    await asyncio.sleep(0)
    assert send("large 7", SMALL_BYTES + 1)  # at once: no other one waits


async def test_work_that_fails_does_not_stop_the_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, shared = Clock(), Turns()
    monkeypatch.setattr(turns, "time", clock)
    done: list[str] = []
    failed: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context["exception"]))

    def use_up() -> None:
        clock.now += ROUND_SECONDS

    def fail() -> None:
        raise ZeroDivisionError

    assert shared.run(SMALL_BYTES + 1, use_up)
    assert not shared.run(SMALL_BYTES + 1, fail)
    assert not shared.run(SMALL_BYTES + 1, lambda: done.append("next"))
    await asyncio.sleep(0)
    assert done == []
    await asyncio.sleep(0)
    assert done == ["next"]
    assert [type(error) for error in failed] == [ZeroDivisionError]


class Body:
    """A connection that sends the body of a refused request, without end."""

    def __init__(self, shared: Turns) -> None:
        self.shared, self.chunks, self.dropped = shared, 0, False
        shared.discard(self)

    def read_on(self) -> None:
        self.chunks += 1
        self.shared.discard(self)

    def drop(self) -> None:
        self.dropped = True


async def test_a_round_reads_little_of_bodies_that_are_not_used() -> None:
    shared = Turns()
    bodies = [Body(shared) for _ in range(DISCARDED_CHUNKS * 2)]
    for number in range(1, 5):  # they take turns
        await asyncio.sleep(0)
        assert sum(body.chunks for body in bodies) == DISCARDED_CHUNKS * number
    assert {body.chunks for body in bodies} == {2}
    shared.end_discarding(bodies[0])
    for _ in range(4):
        await asyncio.sleep(0)
    assert bodies[0].chunks == 2
    assert min(body.chunks for body in bodies[1:]) >= 4


async def test_the_oldest_of_too_many_bodies_that_are_not_used_is_dropped() -> None:
    shared = Turns()
    bodies = [Body(shared) for _ in range(MAX_DISCARDING + 2)]
    assert [body.dropped for body in bodies] == [True] * 2 + [False] * MAX_DISCARDING
    await asyncio.sleep(0)
    assert not any(body.chunks for body in bodies[:2])
