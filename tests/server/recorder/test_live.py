"""What viewers read: from memory, from the store, and over the join of both."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sandbox_agent.errors import ServerSessionNotFoundError
from sandbox_agent.persist.store import SessionRow
from sandbox_agent.server.recorder import RecordedSession, Recorder
from sandbox_agent.server.recorder.published_session import TAIL_BYTES, TailMemory
from sandbox_agent.server.streams.viewers import Viewer

from .parts import Clock, FaultyStore, begin, chunk, read_all, settle, settled, stored

pytestmark = pytest.mark.anyio


async def fill(recorder: Recorder, store: FaultyStore, count: int, text: str = "x" * 400) -> RecordedSession:
    tap = begin(recorder)
    for number in range(0, count, 50):
        tap.received([chunk("N", f"{number} {text}") for _ in range(50)])
        await settle(recorder)
    return await settled(recorder, "N")


@pytest.mark.parametrize("max_bytes", [1, 5_000, 1 << 20])
async def test_a_reader_gets_every_event_once_from_store_and_memory(store: FaultyStore, max_bytes: int):
    async with Recorder(store).run() as recorder:
        live = await fill(recorder, store, 1_000)
        last = live.row.last_sequence
        for cursor in (0, 1, 17, last // 2, last - 3, last - 1, last, last + 50):
            seen = await read_all(live, cursor, max_bytes=max_bytes)
            assert [number for number, _ in seen] == list(range(cursor + 1, last + 1))
            assert {name for _, name in seen} <= {"message"}


async def test_what_memory_shows_is_what_the_store_has(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        live = await fill(recorder, store, 200, "short")
        shown = await live.read(0, "", max_bytes=1 << 30)
    datas = [json.loads(text[6:]) for text in shown.data.decode().splitlines() if text.startswith("data: ")]
    assert datas == await stored(store, "N")


async def test_viewers_who_come_at_any_time_see_the_same_and_end_with_the_session(store: FaultyStore):
    seen: list[list[int]] = [[] for _ in range(20)]
    last = 0

    async def view(live: RecordedSession, number: int) -> None:
        async for data in Viewer(live, 0, ""):
            seen[number] += [int(text[4:]) for text in data.split(b"\n") if text.startswith(b"id: ")]

    with anyio.fail_after(20):
        async with Recorder(store).run() as recorder:
            tap = begin(recorder)
            live = await settled(recorder, "N")
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(view, live, number)
                    tap.received([chunk("N", f"{number} {part}" + "x" * 500) for part in range(100)])
                    if number % 3 == 0:
                        await settle(recorder)
                await settle(recorder)
                last = live.row.last_sequence
                while any(not ids or ids[-1] < last for ids in seen):
                    await anyio.lowlevel.checkpoint()
                await recorder.forget(live)
    assert all(ids == list(range(1, last + 1)) for ids in seen)


async def test_a_reader_behind_retention_is_told_the_gap(store: FaultyStore):
    clock = Clock(1_000)
    async with Recorder(store, clock=clock).run() as recorder:
        tap = begin(recorder)
        tap.received([chunk("N", "old") for _ in range(300)])
        await settle(recorder)
        clock.now = 2_000
        tap.received([chunk("N", "new") for _ in range(20)])
        live = await settled(recorder, "N")
        (lost,) = await recorder.expire(before=1_500)
        first = lost.first_sequence
        assert first == live.row.last_sequence - 19
        assert live.row.first_sequence == first
        seen = await read_all(live)
        assert seen[0] == (first - 1, "gap")
        assert [number for number, _ in seen[1:]] == list(range(first, live.row.last_sequence + 1))
        data = (await live.read(3, "", max_bytes=1)).data
        assert json.loads(data.split(b"data: ")[1]) == {"from": 4, "to": first - 1}
        # What is recorded afterwards does not bring the erased range back.
        tap.received([chunk("N", "more")])
        await settle(recorder)
        row = await store.session("N")
        assert row is not None
        assert row.first_sequence == first


async def test_who_waits_is_woken_by_what_is_stored(store: FaultyStore):
    with anyio.fail_after(10):
        async with Recorder(store).run() as recorder:
            tap = begin(recorder)
            live = await settled(recorder, "N")
            last = live.row.last_sequence
            await live.wait_beyond(last - 1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(live.wait_beyond, last)
                await anyio.wait_all_tasks_blocked()
                live.signal.tick()  # a sign of life is no event
                await anyio.wait_all_tasks_blocked()
                tap.received([chunk("N", "x")])
            assert live.row.last_sequence > last


async def test_tails_are_bounded_in_each_session_and_over_all(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        recorder.registry.tails = TailMemory(3 * TAIL_BYTES)
        sessions: list[RecordedSession] = []
        for number in range(8):
            name = f"n{number}"
            tap = begin(recorder, name, epoch=name)
            tap.received([chunk(name, "x" * 2_000) for _ in range(300)])
            sessions.append(await settled(recorder, name))
        assert 0 < recorder.registry.tails.used <= 3 * TAIL_BYTES
        for live in sessions:
            assert len(await read_all(live)) == live.row.last_sequence


async def test_a_session_that_expires_wholly_ends_its_viewers(store: FaultyStore):
    clock = Clock(1_000)
    with anyio.fail_after(10):
        async with Recorder(store, clock=clock).run() as recorder:
            tap = begin(recorder)
            live = await settled(recorder, "N")
            tap.close()
            await settle(recorder)
            clock.now = 9_000
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(live.wait_beyond, 1_000)
                await anyio.wait_all_tasks_blocked()
                await recorder.expire(before=5_000)
            assert live.finished
            assert await store.session("N") is None
            with pytest.raises(ServerSessionNotFoundError):
                await recorder.open("N")


async def test_recording_goes_on_while_old_events_are_erased(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
):
    begun, go_on = anyio.Event(), anyio.Event()
    expire = store.expire

    async def paused(**options: Any) -> Sequence[SessionRow]:
        begun.set()
        await go_on.wait()
        return await expire(**options)

    monkeypatch.setattr(store, "expire", paused)
    with anyio.fail_after(10):
        async with Recorder(store, clock=Clock(1_000)).run() as recorder:
            tap = begin(recorder)
            before = (await settled(recorder, "N")).row.last_sequence
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(recorder.expire, before=500))
                await begun.wait()
                tap.received([chunk("N", "meanwhile")])
                assert (await settled(recorder, "N")).row.last_sequence > before
                go_on.set()


async def test_a_session_that_lost_all_stays_while_its_connection_lives(store: FaultyStore):
    clock = Clock(1_000)
    with anyio.fail_after(10):
        async with Recorder(store, clock=clock).run() as recorder:
            tap = begin(recorder)
            last = (await settled(recorder, "N")).row.last_sequence
            clock.now = 9_000
            await recorder.expire(before=5_000)
            tap.received([chunk("N", "still here")])
            live = await settled(recorder, "N")
            assert not live.finished
            assert live.row.first_sequence == last + 1
            assert [number for number, _ in await read_all(live)][1:] == list(
                range(last + 1, live.row.last_sequence + 1)
            )
