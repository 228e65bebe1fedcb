"""A store that refuses or stalls, a server that dies, sessions that are deleted while they are busy."""

import asyncio
import logging
from functools import partial
from pathlib import Path

import anyio
import pytest

from sandbox_agent.engine.route import Router
from sandbox_agent.errors import (
    PersistError,
    ServerSessionNotFoundError,
    SessionAlreadyExistsError,
)
from sandbox_agent.persist.store import Changes
from sandbox_agent.server.recorder import Recorder

from .parts import (
    FaultyStore,
    ask,
    begin,
    chunk,
    managed_row,
    open_store,
    prompt,
    read_all,
    settle,
    settled,
    stored,
    turn_row,
    types,
    update,
)

pytestmark = pytest.mark.anyio


async def refuse(store: FaultyStore) -> None:
    store.refused.clear()
    store.refusal = "disk full"


async def test_a_store_that_refuses_loses_nothing_and_its_sessions_are_told(store: FaultyStore):
    with anyio.fail_after(20):
        async with Recorder(store).run() as recorder:
            tap = begin(recorder)
            live = await settled(recorder, "N")
            shown = live.row.last_sequence
            await refuse(store)
            for number in range(300):
                tap.received([chunk("N", f"{number} ")])
            await store.refused.wait()
            assert recorder.degraded == "disk full"
            assert live.row.last_sequence == shown  # nobody sees what is not stored
            tap.received([chunk("N", "while it refuses")])
            store.refusal = None
            await live.wait_beyond(shown + 300)
            await settle(recorder)
            assert recorder.degraded is None
    events = await stored(store, "N")
    texts = [event["data"]["delta"] for event in events if event["type"] == "item.delta"]
    assert texts == [f"{number} " for number in range(300)] + ["while it refuses"]
    (error,) = [event for event in events if event["type"] == "error"]
    assert error["data"]["code"] == "store_degraded"
    assert error["data"]["details"]["seconds"] >= 0.5


async def test_writers_are_told_when_the_store_refuses(store: FaultyStore):
    with anyio.fail_after(20):
        async with Recorder(store).run() as recorder:
            live = await recorder.create(managed_row())
            await refuse(store)
            with pytest.raises(PersistError, match="disk full"):
                await recorder.update(live, title="kept for later")
            assert live.row.title is None
            for call in (
                lambda: recorder.add_events(live, lambda p, now: p.error(now, message="x")),
                lambda: recorder.flush(),
                lambda: recorder.forget(live),
            ):
                with pytest.raises(PersistError, match="disk full"):
                    await call()
            with pytest.raises(PersistError, match="disk full"):
                await recorder.create(managed_row("second"))
            store.refusal = None
            await live.wait_beyond(live.row.last_sequence)
            await settle(recorder)
            assert live.row.title == "kept for later"
            await recorder.create(managed_row("second"))
    assert types(await stored(store, "managed")) == ["session.started", "error"]


async def test_the_queue_is_bounded_and_those_who_fill_it_wait(store: FaultyStore):
    with anyio.fail_after(20):
        async with Recorder(store, max_bytes=10_000).run() as recorder:
            tap = begin(recorder)
            await settle(recorder)
            store.gate.clear()
            while not recorder.over_limit:
                tap.received([chunk("N", "x" * 500)])
                await asyncio.sleep(0)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(recorder.wait_below_limit)
                await anyio.wait_all_tasks_blocked()
                assert recorder.over_limit
                store.gate.set()
            assert not recorder.over_limit


async def test_one_commit_is_in_flight_and_the_next_gathers_meanwhile(store: FaultyStore):
    with anyio.fail_after(20):
        async with Recorder(store).run() as recorder:
            tap = begin(recorder)
            await settle(recorder)
            store.sizes.clear()
            store.entered.clear()
            store.gate.clear()
            tap.received([chunk("N", "first")])
            await store.entered.wait()
            for _ in range(100):
                tap.received([chunk("N", "more")])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(settle, recorder)  # so that they are not waiting for others to come
                await anyio.wait_all_tasks_blocked()
                store.gate.set()
    assert store.sizes == [1, 100]


async def test_what_is_queued_at_the_end_is_stored(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        tap = begin(recorder)
        tap.received([chunk("N", str(number)) for number in range(5_000)])
    assert types(await stored(store, "N")).count("item.delta") == 5_000


async def test_what_is_queued_is_stored_when_the_server_is_cancelled(store: FaultyStore):
    async def serve() -> None:
        async with Recorder(store).run() as recorder:
            tap = begin(recorder)
            tap.received([chunk("N", str(number)) for number in range(5_000)])
            scope.cancel()
            await anyio.sleep_forever()

    with anyio.fail_after(20), anyio.CancelScope() as scope:
        await serve()
    assert types(await stored(store, "N")).count("item.delta") == 5_000


async def test_a_store_that_refuses_at_the_end_is_not_waited_for_and_the_loss_is_counted(
    store: FaultyStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sandbox_agent.server.recorder.recorder.REFUSED_SECONDS", 0.05)
    with anyio.fail_after(5), caplog.at_level(logging.ERROR):
        async with Recorder(store).run() as recorder:
            tap = begin(recorder)
            await settle(recorder)
            await refuse(store)
            tap.received([chunk("N", "a"), chunk("N", "b")])
            await store.refused.wait()
            tap.received([chunk("N", "c")])
    assert "3 envelopes are lost" in caplog.text


async def test_a_store_that_stalls_at_the_end_is_not_waited_for(
    store: FaultyStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sandbox_agent.server.recorder.recorder.STALLED_SECONDS", 0.05)
    with anyio.fail_after(5):
        async with Recorder(store).run() as recorder:
            tap = begin(recorder)
            await settle(recorder)
            store.gate.clear()
            tap.received([chunk("N", "a")])
    assert "1 envelopes are lost" in caplog.text


async def test_what_was_open_when_the_server_died_is_closed_when_its_session_is_opened(tmp_path: Path):
    path = tmp_path / "s.db"
    async with open_store(path) as store, Recorder(store).run() as recorder:
        live = await recorder.create(managed_row(native_session_id="M"))
        await store.commit(Changes(turns=[turn_row(live.row, "turn_a")]))
        tap = recorder.tap("e1", "s", "mock")
        tap.bind(live)
        tap.sent(b'{"id":"l","method":"session/load","params":{"sessionId":"M"}}', "")
        tap.received([b'{"id":"l","result":null}'])
        tap.sent(prompt("M", "turn_a"), "")
        tap.received([ask("M", 0), chunk("M", "unfinished")])
        other = begin(recorder, epoch="e2")
        other.sent(prompt("N", 2), "")
        other.received([ask("N", 0), chunk("N", "unfinished")])
        await settle(recorder)
        before = {name: await stored(store, name) for name in ("N", "managed")}
    async with open_store(path) as store:
        async with Recorder(store).run() as recorder:
            # All at once: it is loaded once, and all see it whole.
            async with anyio.create_task_group() as tasks:
                for _ in range(10):
                    tasks.start_soon(recorder.open, "N")
                tasks.start_soon(recorder.open, "managed")
            assert store.loads == 2
            for name in ("N", "managed"):
                live = await recorder.open(name)
                after = await stored(store, name)
                assert after[: len(before[name])] == before[name]
                closing = after[len(before[name]) :]
                assert "permission.resolved" in types(closing)
                assert "item.completed" in types(closing)
                assert closing[-1]["data"]["metadata"] == {
                    "stop_reason": "interrupted",
                    "reason": "server_restarted",
                }
                assert live.row.last_sequence == len(after)
                (turn,) = await store.turns(live.row.key, limit=5)
                assert (turn.state, turn.error) == ("interrupted", "server_restarted")
            assert await store.open_turns() == []
            assert await store.pending_permissions(limit=5) == []
        # And never again.
        async with Recorder(store).run() as recorder:
            assert (await recorder.open("N")).row.last_sequence == len(await stored(store, "N"))


@pytest.mark.parametrize("damage", ["none", "garbage", "version"])
async def test_a_session_goes_on_in_sequence_whatever_became_of_its_snapshot(store: FaultyStore, damage: str):
    async with Recorder(store).run() as recorder:
        tap = begin(recorder)
        tap.sent(prompt("N", 2), "")
        tap.received([chunk("N", str(number)) for number in range(2_500)])
        live = await settled(recorder, "N")
        await recorder.add_events(live, lambda p, now: p.error(now, message="no envelope tells of it"))
        tap.received([chunk("N", "after")])
        await settle(recorder)
        snapshot = await store.snapshot(live.row.key)
        assert snapshot is not None
        assert snapshot.envelope >= 2_000
    if damage != "none":
        snapshot.data = b"{" if damage == "garbage" else snapshot.data.replace(b'"version":1', b'"version":9')
        snapshot.envelope += 1
        await store.commit(Changes(snapshots=[snapshot]))
    async with Recorder(store).run() as recorder:
        live = await recorder.open("N")
        events = await stored(store, "N")
        assert events[-1]["type"] == "turn.ended"
        assert (await store.turns(live.row.key, limit=1))[0].state == "interrupted"
        if damage == "none":
            assert "item.completed" in types(events[-3:])
        assert len({event["event_id"] for event in events}) == len(events)


async def test_a_forgotten_session_ends_its_viewers_and_who_goes_on_with_it_makes_a_new_one(
    store: FaultyStore,
):
    with anyio.fail_after(10):
        async with Recorder(store).run() as recorder:
            tap = begin(recorder)
            tap.sent(prompt("N", 2), "")
            live = await settled(recorder, "N")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(live.wait_beyond, 1_000)
                await anyio.wait_all_tasks_blocked()
                tap.received([chunk("N", "before")])
                await recorder.delete(live)
            assert live.finished
            assert (await live.read(0, "", max_bytes=1)).data == b""
            assert await store.session("N") is None
            with pytest.raises(ServerSessionNotFoundError):
                await recorder.open("N")
            with pytest.raises(ServerSessionNotFoundError):
                await recorder.update(live, title="x")
            await recorder.forget(live)
            tap.received([chunk("N", "after")])
            await settle(recorder)
            row = await store.session("N")
            assert row is not None
            assert row.key != live.row.key
            assert types(await stored(store, "N")).count("item.delta") == 1


async def test_events_between_the_forgetting_and_the_delete_do_not_come_back(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        tap = begin(recorder)
        live = await settled(recorder, "N")
        await recorder.forget(live)
        tap.received([chunk("N", "too late")])
        await settle(recorder)
        await store.delete(live.row.key)
        assert await store.session("N") is None
        rows, _ = await store.sessions(limit=5)
        assert [(row.session_id, row.native_session_id) for row in rows] == [("N-2", "N")]


async def test_a_name_is_given_once(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        outcomes: list[str] = []

        async def create() -> None:
            try:
                await recorder.create(managed_row("same"))
                outcomes.append("made")
            except SessionAlreadyExistsError:
                outcomes.append("exists")

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(create)
    assert sorted(outcomes) == ["exists"] * 4 + ["made"]


async def test_sessions_that_nobody_uses_do_not_stay_in_memory(store: FaultyStore):
    async with Recorder(store).run() as recorder:
        for number in range(300):
            tap = begin(recorder, f"n{number}", epoch=f"e{number}")
            tap.received([chunk(f"n{number}", "x")])
            tap.close()
            del tap
        await settle(recorder)
        assert len(recorder.sessions) <= 70
        held = await recorder.open("n0")
        for number in range(1, 300):
            await recorder.open(f"n{number}")
        assert len(recorder.sessions) <= 70
        assert await recorder.open("n0") is held
        assert len(await read_all(held)) == held.row.last_sequence


async def test_an_agent_that_makes_sessions_for_ever_gets_a_bounded_number(
    store: FaultyStore, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sandbox_agent.server.recorder.worker.Router", partial(Router, max_sessions=50))
    with anyio.fail_after(60):
        async with Recorder(store).run() as recorder:
            tap = recorder.tap("e", "s", "mock")
            tap.received([chunk(f"n{number}", "x") for number in range(200)])
            tap.received([update("n3", sessionUpdate="session_info_update", title="known")])
            await settle(recorder)
            assert len(recorder.sessions) == 50
            row = await store.session("n3")
            assert row is not None
            assert row.title == "known"
    assert len((await store.sessions(limit=100))[0]) == 50
