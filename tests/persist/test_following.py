"""Following sessions: what other processes write, slow readers, failing stores, and what it costs."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import Collection, Mapping
from contextlib import aclosing, closing
from pathlib import Path

import anyio
import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.actor import StateSessionPersistDriver
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.follow import Following, Mark
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import make_event

pytestmark = pytest.mark.anyio

PROGRAM = Path(__file__).parent / "programs" / "writer.py"


async def test_follower_sees_what_another_process_appends(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    driver = SQLiteSessionPersistDriver(path)
    await driver.append_events("s", [make_event("first")])
    seen: list[int] = []
    begun = anyio.Event()

    async def follow() -> None:
        async with aclosing(driver.follow_events("s")) as events:
            async for event in events:
                seen.append(event.event_index)
                begun.set()
                if len(seen) == 121:
                    return

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(follow)
            await begun.wait()
            await anyio.run_process([sys.executable, str(PROGRAM), str(path), "s", "other", "40"])
    await driver.close()
    assert seen == list(range(1, 122))


async def test_driver_asks_the_file_only_while_somebody_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "store.db")
    asked: list[anyio.Event] = []
    marks = driver.marks

    async def counted(session_ids: Collection[str], /) -> Mapping[str, Mark]:
        asked.append(anyio.Event())
        for event in asked:
            event.set()
        return await marks(session_ids)

    monkeypatch.setattr(driver, "marks", counted)
    await driver.append_events("s", [make_event("e")])
    assert asked == []
    with anyio.fail_after(20):
        async with aclosing(driver.follow_events("s")) as events:
            assert (await anext(events)).id == "e"
            waiting = anyio.Event()
            asked.append(waiting)
            await waiting.wait()
    count = len(asked)
    for number in range(20):
        await driver.append_events("s", [make_event(f"e{number}")])
    assert len(asked) == count
    await driver.close()


async def test_event_that_a_cancelled_caller_stored_is_told(tmp_path: Path) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "store.db")
    await driver.append_events("s", [make_event("first")])
    with anyio.fail_after(20):
        async with aclosing(driver.follow_events("s")) as events:
            assert (await anext(events)).id == "first"
            with anyio.CancelScope() as scope:
                scope.cancel()
                await driver.append_events("s", [make_event("second")])
            assert (await anext(events)).id == "second"
    await driver.close()


async def test_follower_is_told_when_the_store_fails_and_another_one_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    driver = SQLiteSessionPersistDriver(path)
    await driver.append_events("s", [make_event("first")])
    with anyio.fail_after(20):
        async with aclosing(driver.follow_events("s")) as events:
            assert (await anext(events)).id == "first"
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("ALTER TABLE events RENAME TO elsewhere")
                connection.commit()
            with pytest.raises(PersistError):
                await anext(events)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("ALTER TABLE elsewhere RENAME TO events")
            connection.commit()
        async with aclosing(driver.follow_events("s")) as events:
            assert (await anext(events)).id == "first"
            await driver.append_events("s", [make_event("second")])
            assert (await anext(events)).id == "second"
    await driver.close()


async def test_slow_follower_gets_everything_though_its_backlog_was_given_up(tmp_path: Path) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "store.db")
    await driver.append_events("s", [make_event("e0")])
    with anyio.fail_after(60):
        async with aclosing(driver.follow_events("s")) as events:
            seen = [(await anext(events)).event_index]
            # More than a backlog holds, while the reader does something else.
            for batch in range(24):
                await driver.append_events("s", [make_event(f"{batch}-{n}") for n in range(1_000)])
            while len(seen) < 24_001:
                seen.append((await anext(events)).event_index)
    await driver.close()
    assert seen == list(range(1, 24_002))


async def test_followers_of_a_closed_driver_are_gone(tmp_path: Path) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "store.db")
    await driver.append_events("s", [make_event("e")])
    await driver.close()
    with pytest.raises(PersistError, match="is closed"):
        async for _ in driver.follow_events("s"):
            pass


async def test_what_was_stored_just_before_a_deletion_is_still_told() -> None:
    driver = InMemorySessionPersistDriver()
    await driver.append_events("s", [make_event("a")])
    with anyio.fail_after(20):
        async with aclosing(driver.follow_events("s")) as events:
            assert (await anext(events)).id == "a"
            await driver.append_events("s", [make_event("b")])
            await driver.delete_session("s")
            assert [event.id async for event in events] == ["b"]


async def test_a_burst_beyond_what_memory_keeps_is_told_to_who_follows() -> None:
    driver = InMemorySessionPersistDriver(max_events_per_session=3)
    await driver.append_events("s", [make_event("first")])
    with anyio.fail_after(20):
        async with aclosing(driver.follow_events("s")) as events:
            assert (await anext(events)).id == "first"
            await driver.append_events("s", [make_event(f"e{n}") for n in range(100)])
            assert [(await anext(events)).event_index for _ in range(100)] == list(range(2, 102))


async def test_fifty_followers_cost_no_reading_beyond_their_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = InMemorySessionPersistDriver()
    await driver.append_events("s", [make_event("e0")])
    reads: list[str] = []
    list_events = driver.list_events

    async def counted(session_id: str, /, **options: object) -> object:
        reads.append(session_id)
        return await list_events(session_id)

    monkeypatch.setattr(driver, "list_events", counted)
    following = Following(driver)
    monkeypatch.setattr(driver, "_following", following)
    told: list[int] = []

    async def follow() -> None:
        async with aclosing(driver.follow_events("s")) as events:
            async for event in events:
                told.append(event.event_index)
                if event.event_index == 21:
                    return

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(follow)
            while len(told) < 50:
                await anyio.lowlevel.checkpoint()
            for number in range(20):
                await driver.append_events("s", [make_event(f"n{number}")])
    assert len(reads) == 50
    assert sorted(told) == sorted(list(range(1, 22)) * 50)


def test_followers_of_several_event_loops_are_all_told(tmp_path: Path) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "store.db")
    begun, seen = threading.Event(), list[str]()

    async def follow() -> None:
        async with aclosing(driver.follow_events("s")) as events:
            async for event in events:
                seen.append(event.id)
                begun.set()
                if event.id == "second":
                    return

    async def main() -> None:
        await driver.append_events("s", [make_event("first")])
        other = threading.Thread(target=asyncio.run, args=(follow(),))
        other.start()
        try:
            await anyio.to_thread.run_sync(begun.wait, 20)
            with anyio.fail_after(20):
                async with aclosing(driver.follow_events("s")) as events:
                    assert (await anext(events)).id == "first"
                    await driver.append_events("s", [make_event("second")])
                    assert (await anext(events)).id == "second"
        finally:
            await anyio.to_thread.run_sync(other.join, 20)
        assert not other.is_alive()
        await driver.close()

    asyncio.run(main())
    assert seen == ["first", "second"]


def test_followers_of_several_event_loops_are_told_what_another_driver_stores(tmp_path: Path) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "store.db")
    other = SQLiteSessionPersistDriver(tmp_path / "store.db")
    begun, seen = threading.Barrier(2, timeout=20), dict[str, list[str]]()

    async def follow(name: str) -> None:
        told = seen[name] = []
        with anyio.fail_after(20):
            async with aclosing(driver.follow_events("s")) as events:
                async for event in events:
                    told.append(event.id)
                    if len(told) == 1:
                        await anyio.to_thread.run_sync(begun.wait)
                        if name == "here":
                            for number in range(2, 21):
                                await other.append_events("s", [make_event(str(number))])
                    if len(told) == 20:
                        return

    async def main() -> None:
        await other.append_events("s", [make_event("1")])
        there = threading.Thread(target=asyncio.run, args=(follow("there"),))
        there.start()
        try:
            await follow("here")
        finally:
            await anyio.to_thread.run_sync(there.join, 20)
        await driver.close()
        await other.close()

    asyncio.run(main())
    assert seen["here"] == seen["there"] == [str(number) for number in range(1, 21)]


async def test_idle_file_is_asked_a_few_times_a_second_however_many_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "store.db")
    other = SQLiteSessionPersistDriver(tmp_path / "store.db")
    await other.append_events("s", [make_event("first")])
    asked: list[float] = []
    marks = driver.marks

    async def counted(session_ids: Collection[str], /) -> Mapping[str, Mark]:
        asked.append(anyio.current_time())
        return await marks(session_ids)

    followers_told = count = 0
    idle = 0.0
    told = anyio.Event()

    async def follow() -> None:
        nonlocal followers_told
        async with aclosing(driver.follow_events("s")) as events:
            async for event in events:
                followers_told += 1
                if followers_told == 100:
                    told.set()
                if event.id == "last":
                    return

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(follow)
            while followers_told < 50:
                await anyio.lowlevel.checkpoint()
            monkeypatch.setattr(driver, "marks", counted)
            begun = anyio.current_time()
            await anyio.sleep(1)
            idle, count = anyio.current_time() - begun, len(asked)
            await other.append_events("s", [make_event("last")])
            await told.wait()
    assert 1 <= count <= idle / 0.5 + 10
    await driver.close()
    await other.close()


@pytest.mark.parametrize("name", [":memory:", ""])
async def test_store_without_a_name_is_followed_and_read(name: str) -> None:
    driver = SQLiteSessionPersistDriver(name)
    await driver.append_events("s", [make_event("first")])
    with anyio.fail_after(20):
        async with aclosing(driver.follow_events("s")) as events:
            assert (await anext(events)).id == "first"
            await driver.append_events("s", [make_event("second")])
            assert (await anext(events)).id == "second"
    await driver.close()


async def test_what_another_driver_stores_is_told_where_the_path_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "elsewhere" / "store.db")
    driver, other = SQLiteSessionPersistDriver(link), SQLiteSessionPersistDriver(link)
    await driver.append_events("s", [make_event("first")])
    with anyio.fail_after(20):
        async with aclosing(driver.follow_events("s")) as events:
            assert (await anext(events)).id == "first"
            await other.append_events("s", [make_event("second")])
            assert (await anext(events)).id == "second"
    await driver.close()
    await other.close()


async def test_follower_that_is_just_beginning_ends_when_the_driver_is_closed(tmp_path: Path) -> None:
    for driver in (SQLiteSessionPersistDriver(tmp_path / "store.db"), StateSessionPersistDriver({})):
        await driver.append_events("s", [make_event("first")])
        for turns in range(8):
            seen: list[str] = []

            async def follow(driver: SessionPersistDriver = driver, seen: list[str] = seen) -> None:
                async with aclosing(driver.follow_events("s")) as events:
                    async for event in events:
                        seen.append(event.id)

            with anyio.fail_after(20):
                async with anyio.create_task_group() as group:
                    for number in range(20):
                        group.start_soon(driver.append_events, "s", [make_event(f"{turns}-{number}")])
                    group.start_soon(follow)
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    group.start_soon(driver.close)
            if isinstance(driver, SQLiteSessionPersistDriver):
                driver = SQLiteSessionPersistDriver(tmp_path / "store.db")
        await driver.close()
