"""The SQLite driver's index of texts: made by searches, erased with its sessions, right whatever happens."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.driver_searching import chunk, prompt, said
from sandbox_agent.testing.drivers import make_session

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def driver(path: Path) -> AsyncIterator[SQLiteSessionPersistDriver]:
    driver = SQLiteSessionPersistDriver(path)
    yield driver
    await driver.close()


async def tell(driver: SQLiteSessionPersistDriver, session_id: str, *payloads: bytes) -> None:
    await driver.update_session(make_session(session_id))
    await driver.append_events(session_id, said(session_id, *payloads))


async def found(driver: SQLiteSessionPersistDriver, query: str, **options: Any) -> list[tuple[str, int]]:
    return sorted((hit.session_id, hit.sequence) for hit in await driver.search_events(query, **options))


def content(path: Path) -> bytes:
    return b"".join(file.read_bytes() for file in path.parent.iterdir())


async def test_erased_session_leaves_no_word_in_the_files_though_it_was_searched(
    driver: SQLiteSessionPersistDriver, path: Path
) -> None:
    for number in range(30):
        await tell(driver, f"s{number}", prompt(f"common secret{number}x", "words " * 50), chunk("more"))
    assert len(await driver.search_events("common", limit=1_000)) == 30
    assert b"secret7x" in content(path)
    await driver.delete_session("s7")
    assert b"secret7x" not in content(path)
    assert b"secret8x" in content(path)
    assert await found(driver, "secret7x") == []
    # The index is filled anew, from what is left.
    assert len(await driver.search_events("common", limit=1_000)) == 29
    assert b"secret7x" not in content(path)


async def test_deleting_keeps_the_index_where_the_session_is_not_in_it(
    driver: SQLiteSessionPersistDriver, path: Path
) -> None:
    await tell(driver, "kept", prompt("needle"))
    assert await found(driver, "needle") == [("kept", 1)]
    await tell(driver, "later", prompt("needle"))
    await driver.delete_session("later")
    await driver.delete_session("nobody")
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT rowid FROM session_texts_index('needle')").fetchall()
    assert len(rows) == 1


async def test_index_is_filled_a_little_at_a_time_and_new_texts_come_in_between(
    driver: SQLiteSessionPersistDriver,
) -> None:
    for number in range(12):
        await tell(driver, f"s{number}", *(prompt(f"needle {'x' * 20_000} n{n}") for n in range(20)))
    assert len(await driver.search_events("needle", limit=10_000)) == 240
    await driver.delete_session("s3")

    async def search() -> None:
        assert len(await driver.search_events("needle", limit=10_000)) >= 220

    async def append() -> None:
        for number in range(20):
            await tell(driver, "new", prompt(f"needle new{number}"))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(search)
            group.start_soon(append)
    assert len(await driver.search_events("needle", limit=10_000)) == 240
    assert await found(driver, "n19 needle", session_id="s3") == []
    assert await found(driver, "new7") == [("new", 8)]


async def test_two_objects_that_search_at_once_index_every_text_once(path: Path) -> None:
    drivers = [SQLiteSessionPersistDriver(path) for _ in range(2)]
    for number in range(8):
        await tell(drivers[0], f"s{number}", *(prompt(f"needle n{n}") for n in range(300)))
    results: list[int] = []

    async def search(which: int) -> None:
        results.append(len(await drivers[which].search_events("n17")))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for which in (0, 1, 0, 1):
                group.start_soon(search, which)
    for driver in drivers:
        assert len(await driver.search_events("needle", limit=10_000)) == 2_400
        assert await found(driver, "n17") == [(f"s{number}", 18) for number in range(8)]
        await driver.close()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT count(*) FROM session_texts").fetchone() == (2_400,)
        connection.execute("INSERT INTO session_texts_index (session_texts_index) VALUES ('integrity-check')")


@pytest.mark.parametrize("length", [999, 1_000, 1_001, 2_000, 2_003])
async def test_history_that_is_folded_in_slices_gives_whole_texts(
    driver: SQLiteSessionPersistDriver, length: int
) -> None:
    await tell(driver, "s", prompt("begin"), *(chunk(f"w{n} ") for n in range(length - 1)))
    assert await found(driver, f'begin w{length - 2} "w0 w1"') == []
    assert await found(driver, f'w{length - 2} "w0 w1" w500') == [("s", 2)]
    await tell(driver, "s", chunk("last"))
    assert await found(driver, "last w0") == [("s", 2)]


async def test_search_goes_on_from_where_the_last_one_was(
    driver: SQLiteSessionPersistDriver, path: Path
) -> None:
    await tell(driver, "s", *(prompt(f"needle n{n}") for n in range(500)))
    await driver.search_events("needle")
    with closing(sqlite3.connect(path)) as connection:
        before = connection.execute("SELECT id FROM session_texts ORDER BY id").fetchall()
    await tell(driver, "s", prompt("another needle"))
    assert await found(driver, "another") == [("s", 501)]
    with closing(sqlite3.connect(path)) as connection:
        after = connection.execute("SELECT id FROM session_texts ORDER BY id").fetchall()
    assert set(before) < set(after)
    assert len(after) == 501


def delete_by_an_older_release(connection: sqlite3.Connection) -> None:
    connection.execute("DELETE FROM events WHERE session_id = 's'")
    connection.execute("DELETE FROM sessions WHERE id = 's'")


def drop_index(connection: sqlite3.Connection) -> None:
    connection.execute("DROP TABLE session_texts_index")
    connection.execute("UPDATE session_texts_state SET filled_from = ?", (2**62,))


def break_off(connection: sqlite3.Connection) -> None:
    """Leave what a search leaves that was killed while it filled the index."""
    drop_index(connection)
    connection.execute(
        "CREATE VIRTUAL TABLE session_texts_index "
        "USING fts5(text, content='session_texts', content_rowid='id')"
    )
    connection.execute(
        "INSERT INTO session_texts_index (rowid, text) "
        "SELECT id, text FROM session_texts ORDER BY id DESC LIMIT 1"
    )
    connection.execute("UPDATE session_texts_state SET filled_from = (SELECT MAX(id) FROM session_texts)")


@pytest.mark.parametrize("change", [delete_by_an_older_release, drop_index, break_off])
async def test_search_is_right_after_what_others_did_to_the_file(
    change: Callable[[sqlite3.Connection], None], driver: SQLiteSessionPersistDriver, path: Path
) -> None:
    await tell(driver, "s", prompt("needle one"), prompt("needle two"))
    await tell(driver, "kept", prompt("needle kept"))
    assert len(await driver.search_events("needle")) == 3
    with closing(sqlite3.connect(path)) as connection:
        change(connection)
        connection.commit()
    expected = [("kept", 1)] if change is delete_by_an_older_release else [("kept", 1), ("s", 1), ("s", 2)]
    assert await found(driver, "needle") == expected
    # Made anew, with as many events as it had: nothing of the old one is found.
    if change is delete_by_an_older_release:
        await driver.update_session(make_session("s"))
        assert await found(driver, "needle") == [("kept", 1)]
        await tell(driver, "s", prompt("hay"), prompt("stack"))
        assert await found(driver, "needle") == [("kept", 1)]
        assert await found(driver, "stack") == [("s", 2)]


async def test_absurd_times_are_no_error(driver: SQLiteSessionPersistDriver) -> None:
    await driver.update_session(make_session("s"))
    for time in (0, -5, 2**62, -(2**62), 1):
        await driver.append_events("s", said("s", prompt("needle"), prompt("needle"), time=time))
    hits = await driver.search_events("needle")
    assert sorted(hit.sequence for hit in hits) == list(range(1, 11))
    assert [hit.sequence for hit in hits[:2]] == [6, 5]
