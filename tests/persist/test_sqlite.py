"""What the SQLite driver does beyond the suite."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from blockbuster import blockbuster_ctx

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import DEFAULT_LIST_LIMIT
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import all_events, make_event, make_session

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def driver(path: Path) -> AsyncIterator[SQLiteSessionPersistDriver]:
    driver = SQLiteSessionPersistDriver(path)
    yield driver
    await driver.close()


async def test_driver_stores_the_envelopes_bytes_as_text(
    driver: SQLiteSessionPersistDriver, path: Path
) -> None:
    payload = '{ "jsonrpc":"2.0", "b":1.0, "a":"\\u00e9 é \\ud800", "a":2 }'.encode()
    await driver.append_events("s", [make_event("e", payload=payload)])
    with closing(sqlite3.connect(path)) as connection:
        row = connection.execute("SELECT typeof(payload_json), payload_json FROM events").fetchone()
    assert row == ("text", payload.decode())
    assert (await all_events(driver, "s"))[0].payload_json == payload


async def test_driver_reads_everything_after_it_was_reopened(path: Path) -> None:
    first = SQLiteSessionPersistDriver(str(path))
    await first.update_session(make_session("s", session_init={"cwd": "/w"}))
    events = [make_event(f"e{number}") for number in range(300)]
    await first.append_events("s", events)
    await first.close()
    second = SQLiteSessionPersistDriver(path)
    assert await second.get_session("s") == make_session("s", session_init={"cwd": "/w"})
    assert await all_events(second, "s") == events
    assert await second.last_event_index("s") == 300
    await second.close()


async def test_closed_driver_leaves_one_file_and_refuses(path: Path) -> None:
    driver = SQLiteSessionPersistDriver(path)
    await driver.append_events("s", [make_event("e")])
    await driver.list_events("s")
    await driver.close()
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208 - one call, in a test
    for call in (driver.append_events("s", [make_event("f")]), driver.get_session("s")):
        with pytest.raises(PersistError, match="is closed"):
            await call


async def test_drivers_are_not_made_until_they_are_used(path: Path) -> None:
    await SQLiteSessionPersistDriver(path).close()
    assert not await anyio.Path(path).exists()


async def test_driver_keeps_to_the_folder_that_a_relative_path_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    driver = SQLiteSessionPersistDriver("here.db")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    await driver.update_session(make_session("s"))
    await driver.close()
    assert await anyio.Path(tmp_path / "here.db").exists()


async def test_driver_never_blocks_the_event_loop(driver: SQLiteSessionPersistDriver) -> None:
    with blockbuster_ctx("sandbox_agent"):
        await driver.update_session(make_session("s"))
        for batch in range(20):
            calls = [driver.append_events("s", [make_event(f"{batch}-{number}")]) for number in range(20)]
            await asyncio.gather(*calls)
        assert len((await driver.list_events("s")).items) == DEFAULT_LIST_LIMIT
        await driver.delete_session("s")
        await driver.close()


async def test_memory_store_is_each_drivers_own() -> None:
    one, other = SQLiteSessionPersistDriver(), SQLiteSessionPersistDriver(":memory:")
    await one.update_session(make_session("s"))
    assert await one.get_session("s") is not None
    assert await other.get_session("s") is None
    await one.close()
    await other.close()


async def test_two_drivers_of_one_file_number_a_session_together(path: Path) -> None:
    drivers = [SQLiteSessionPersistDriver(path), SQLiteSessionPersistDriver(path)]

    async def append(which: int) -> None:
        for number in range(30):
            await drivers[which].append_events("s", [make_event(f"{which}-{number}")])

    async with anyio.create_task_group() as group:
        group.start_soon(append, 0)
        group.start_soon(append, 1)
    for driver in drivers:
        events = await all_events(driver, "s")
        assert [event.event_index for event in events] == list(range(1, 61))
        await driver.close()


async def test_driver_numbers_on_after_another_program_inserted(
    driver: SQLiteSessionPersistDriver, path: Path
) -> None:
    await driver.append_events("s", [make_event("ours")])
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("INSERT INTO events VALUES ('theirs', 2, 's', 1, 'c', 'agent', '{}')")
        connection.commit()
    event = make_event("next")
    await driver.append_events("s", [event])
    assert event.event_index == 3


async def test_retry_after_a_lost_answer_stores_nothing_twice(driver: SQLiteSessionPersistDriver) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await driver.append_events("s", [make_event("a"), make_event("b")])
    retry = [make_event("a"), make_event("b"), make_event("c")]
    await driver.append_events("s", retry)
    assert [event.event_index for event in retry] == [1, 2, 3]
    assert [event.id for event in await all_events(driver, "s")] == ["a", "b", "c"]


async def test_one_callers_bad_event_costs_no_other_caller_its_own(
    driver: SQLiteSessionPersistDriver,
) -> None:
    good = [make_event(f"good-{number}") for number in range(6)]
    calls = [driver.append_events("s", [event]) for event in good]
    calls.insert(3, driver.append_events("s", [make_event("bad", payload=b"\xff not UTF-8")]))
    results = await asyncio.gather(*calls, return_exceptions=True)
    refused = results.pop(3)
    assert isinstance(refused, PersistError)
    assert "can't hold a value, nothing was stored" in str(refused)
    assert results == [None] * 6
    assert [event.event_index for event in good] == [1, 2, 3, 4, 5, 6]
    assert await all_events(driver, "s") == good


async def test_driver_names_what_it_cannot_store(driver: SQLiteSessionPersistDriver) -> None:
    for session, words in (
        (make_session("s", created_at=2**63), "can't hold a value"),
        (make_session("s", agent="\ud800"), "can't hold a value"),
        (make_session("s", session_init={"cwd": object()}), "not JSON"),
    ):
        with pytest.raises(PersistError, match=words):
            await driver.update_session(session)
    assert await driver.get_session("s") is None


async def test_driver_says_which_record_is_damaged(driver: SQLiteSessionPersistDriver, path: Path) -> None:
    await driver.update_session(make_session("s", modes={"a": 1}))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE sessions SET modes_json = '{\"a\":'")
        connection.commit()
    with pytest.raises(PersistError, match="session 's' is damaged") as refusal:
        await driver.get_session("s")
    assert refusal.value.session_id == "s"


async def test_driver_waits_for_a_lock_and_recovers(driver: SQLiteSessionPersistDriver, path: Path) -> None:
    await driver.append_events("s", [make_event("a")])
    await driver.writer.run(lambda c: c.execute("PRAGMA busy_timeout = 50").close(), transaction=False)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        event = make_event("b")
        with pytest.raises(PersistError, match=r"locked by another program.*close the program") as refusal:
            await driver.append_events("s", [event])
        assert refusal.value.session_id == "s"
        # A failed append leaves no trace, on the caller's event neither. Reading goes on.
        assert event.event_index == 0
        assert len(await all_events(driver, "s")) == 1
        other.execute("COMMIT")
    await driver.append_events("s", [event])
    assert event.event_index == 2


async def test_erased_session_leaves_no_byte_in_the_files(
    driver: SQLiteSessionPersistDriver, path: Path
) -> None:
    secret = b"the-secret-of-the-session"
    await driver.update_session(make_session("s", session_init={"cwd": secret.decode()}))
    await driver.update_session(make_session("kept", session_init={"cwd": "kept-value"}))
    for number in range(50):
        payload = b'{"text":"%s"}' % (secret * 40)
        await driver.append_events("s", [make_event(f"e{number}", payload=payload)])
    await driver.delete_session("s")
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert secret not in content
    assert b"kept-value" in content


async def test_listing_reads_no_further_than_its_page(driver: SQLiteSessionPersistDriver) -> None:
    await driver.append_events("s", [make_event(f"e{number}") for number in range(20_000)])

    async def steps(cursor: str | None, limit: int) -> int:
        """How many hundreds of SQLite's instructions a page takes."""
        count = 0

        def tick() -> int:
            nonlocal count
            count += 1
            return 0

        await driver.reader.run(lambda c: c.set_progress_handler(tick, 100))
        page = await driver.list_events("s", limit=limit, cursor=cursor)
        await driver.reader.run(lambda c: c.set_progress_handler(None, 100))
        assert page.items
        return count

    await driver.list_events("s")
    first = await steps(None, DEFAULT_LIST_LIMIT)
    near_the_end = (await driver.list_events("s", limit=DEFAULT_LIST_LIMIT, cursor="19800")).next_cursor
    assert await steps(near_the_end, DEFAULT_LIST_LIMIT) <= 2 * first
