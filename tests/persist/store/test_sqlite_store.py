"""What is committed is read back, on pages of any size, from any place."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from sandbox_agent.persist.store import (
    Changes,
)
from sandbox_agent.testing.drivers import make_event, make_session
from tests.persist.store.making import (
    filled,
    opened,
    sequences,
    session,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    return tmp_path / "store.db" if request.param == "file" else ":memory:"


async def test_keys_are_never_used_again_even_after_deletes_and_restarts(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        assert [await store.next_key(), await store.next_key()] == [1, 2]
        await store.commit(Changes(sessions=[session(2)]))
        await store.delete(2)
    async with opened(tmp_path / "store.db") as store:
        assert await store.next_key() == 3


async def test_store_shares_its_file_with_the_driver_of_an_sdk(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    driver = SQLiteSessionPersistDriver(path)
    await driver.update_session(make_session("s"))
    await driver.append_events("s", [make_event("e", "s")])
    async with opened(path) as store:
        await store.commit(filled(1, 3, text="word"))
        assert await sequences(store) == [1, 2, 3]
    assert await driver.last_event_index("s") == 1
    await driver.close()


async def test_commit_says_so_and_stores_nothing_while_another_program_holds_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_agent.persist.sqlite.thread.BUSY_TIMEOUT", 0.05)
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await store.commit(filled(1, 3))
        with closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(PersistError, match=r"locked by another program.*close the program"):
                await store.commit(filled(1, 9))
            assert await sequences(store) == [1, 2, 3]  # reading goes on
            holder.execute("ROLLBACK")
        await store.commit(filled(1, 9))
        assert await sequences(store) == list(range(1, 10))


async def test_store_of_ten_thousand_sessions_pages_through_them_by_key(tmp_path: Path) -> None:
    """How long it takes is the benchmark's; here: no page reads more than itself."""
    async with opened(tmp_path / "store.db") as store:
        await store.commit(Changes(sessions=[session(key) for key in range(1, 10_001)]))
        page, cursor = await store.sessions(limit=100, cursor="5000")
        assert [row.key for row in page] == list(range(4999, 4899, -1))
        assert cursor == "4900"
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM store_sessions WHERE key < 5 AND NOT deleted ORDER BY key DESC"
        ).fetchall()
        assert "USING INTEGER PRIMARY KEY" in plan[0][3]


async def test_closed_store_says_so(tmp_path: Path) -> None:
    writer = SQLiteThread(tmp_path / "store.db")
    store = SQLiteSessionStore(writer, writer)
    await store.open()
    await writer.close()
    with pytest.raises(PersistError, match="is closed"):
        await store.commit(filled())
