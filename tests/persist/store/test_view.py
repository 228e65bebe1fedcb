"""The server's store, seen through the SDK's interface, beside the server that writes it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.redis.ledger import RedisSessionStore
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.persist.store import Changes, EnvelopeRow, EventRow, SessionStore, TextRow
from sandbox_agent.persist.store.view import (
    StoreDriver,
    postgres_store_driver,
    redis_store_driver,
    sqlite_store_driver,
)
from sandbox_agent.testing.drivers import all_events, all_sessions, make_event, make_session
from tests.persist.store.making import TIME, envelope, filled, opened, session
from tests.persist.store.test_postgres import opened as opened_postgres

pytestmark = pytest.mark.anyio


class Place(NamedTuple):
    """How the server opens a store, and how it is looked at."""

    server: AbstractAsyncContextManager[SessionStore]
    driver: Any


@asynccontextmanager
async def opened_redis(url: str) -> AsyncGenerator[RedisSessionStore]:
    store = RedisSessionStore(url, namespace="mine")
    try:
        await store.open()
        yield store
    finally:
        await store.close()


@pytest.fixture(params=["sqlite", "postgres", "redis"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "sqlite":
        path = tmp_path / "store.db"
        return Place(opened(path), lambda: sqlite_store_driver(path))
    if request.param == "postgres":
        dsn: str = request.getfixturevalue("postgres_dsn")
        return Place(opened_postgres(dsn), lambda: postgres_store_driver(dsn, namespace="mine"))
    url: str = request.getfixturevalue("redis_url")
    return Place(opened_redis(url), lambda: redis_store_driver(url, namespace="mine"))


@asynccontextmanager
async def seen(place: Place) -> AsyncGenerator[tuple[SessionStore, StoreDriver]]:
    async with place.server as store:
        await store.commit(Changes())
        driver: StoreDriver = place.driver()
        assert driver is not None
        try:
            yield store, driver
        finally:
            await driver.close()
            await driver.close()


async def test_view_shows_sessions_and_envelopes_while_the_server_writes(place: Place) -> None:
    async with seen(place) as (store, driver):
        assert (await driver.list_sessions()).items == []
        assert await driver.get_session("session-1") is None
        assert (await driver.list_events("session-1")).items == []
        assert await driver.last_event_index("session-1") == 0
        await store.commit(filled(1, 25, native_session_id="n", directory="/w", server_id="c"))
        record = await driver.get_session("session-1")
        assert record is not None
        assert (record.agent, record.agent_session_id, record.last_connection_id) == ("claude", "n", "c")
        assert (record.created_at, record.destroyed_at) == (TIME, None)
        assert record.session_init == {"cwd": "/w", "mcpServers": []}
        for limit in (1, 7, 25, 100):
            events = await all_events(driver, "session-1", limit=limit)
            assert [event.event_index for event in events] == list(range(1, 26))
        assert len({event.id for event in events}) == 25
        assert events[4].payload_json == envelope(5).data
        assert (events[4].created_at, events[4].sender, events[4].connection_id) == (
            TIME + 5,
            "agent",
            "epoch",
        )
        await store.commit(
            Changes(sessions=[session(1, last_envelope=26, ended=True)], envelopes=[envelope(26)])
        )
        assert [one.event_index for one in await driver.tail_events("session-1", limit=2)] == [25, 26]
        assert await driver.last_event_index("session-1") == 26
        after = await driver.list_events("session-1", cursor=driver.cursor_after(24))
        assert [one.event_index for one in after.items] == [25, 26]
        assert [one.event_index for one in (await driver.list_events("session-1", cursor="24")).items] == [
            25,
            26,
        ]
        ended = await driver.get_session("session-1")
        assert ended is not None
        assert ended.destroyed_at == TIME


async def test_view_lists_sessions_oldest_first(place: Place) -> None:
    async with seen(place) as (store, driver):
        rows = [session(key, created_at=TIME + key % 5) for key in range(1, 24)]
        await store.commit(Changes(sessions=rows))
        expected = sorted((row.created_at, row.session_id) for row in rows)
        for limit in (1, 4, 23, 100):
            records = await all_sessions(driver, limit=limit)
            assert [(one.created_at, one.id) for one in records] == expected
        assert len((await driver.list_sessions(cursor="stranger")).items) == 23
        assert [one.id for one in (await driver.list_sessions(cursor="22")).items] == [expected[-1][1]]


async def test_view_finds_what_was_said_at_its_event(place: Place) -> None:
    async with seen(place) as (store, driver):
        for key in (1, 2):
            events = [EventRow(key, n, TIME + n + key, "item.completed", 10 * n, b"{}") for n in (1, 2)]
            texts = [TextRow(key, n, TIME + n + key, f"word number{n}") for n in (1, 2)]
            await store.commit(Changes(sessions=[session(key)], events=events, texts=texts))
        hits = await driver.search_events("WORD")
        assert (hits[0].session_id, hits[0].sequence) == ("session-2", 20)
        assert sorted((hit.session_id, hit.sequence) for hit in hits) == [
            ("session-1", 10),
            ("session-1", 20),
            ("session-2", 10),
            ("session-2", 20),
        ]
        (hit,) = await driver.search_events("number1", session_id="session-1")
        assert (hit.sequence, hit.snippet) == (10, "word [number1]")


async def test_view_writes_nothing(place: Place) -> None:
    async with seen(place) as (store, driver):
        await store.commit(filled(1, 3))
        calls = (
            lambda: driver.update_session(make_session("session-1")),
            lambda: driver.save_session(make_session("session-1")),
            lambda: driver.insert_event("session-1", make_event("e", "session-1")),
            lambda: driver.append_events("session-1", [make_event("e", "session-1")]),
            lambda: driver.claim_session("session-1"),
            lambda: driver.delete_session("session-1"),
        )
        for call in calls:
            with pytest.raises(PersistError, match="server's own"):
                await call()
        assert await driver.last_event_index("session-1") == 3
        await store.commit(filled(1, 4))


async def test_view_shows_what_is_no_json_as_a_line_that_is(place: Place) -> None:
    async with seen(place) as (store, driver):
        row = EnvelopeRow(1, 1, TIME, "agent", "epoch", b"\xff no JSON")
        await store.commit(Changes(sessions=[session(last_envelope=1)], envelopes=[row]))
        (event,) = await all_events(driver, "session-1")
        assert event.payload["params"] == {"raw": "\ufffd no JSON"}


async def test_file_that_is_no_servers_store_has_no_view(tmp_path: Path) -> None:
    assert sqlite_store_driver(tmp_path / "none.db") is None
    assert sqlite_store_driver(tmp_path) is None
    (tmp_path / "text").write_text("no database, however long the text in this file may be" * 100)
    assert sqlite_store_driver(tmp_path / "text") is None
    path = tmp_path / "sdk.db"
    driver = SQLiteSessionPersistDriver(path)
    await driver.update_session(make_session("s"))
    await driver.close()
    assert sqlite_store_driver(path) is None
    async with opened(path):
        assert sqlite_store_driver(path) is None  # it holds the sessions of an SDK, too
    assert not (tmp_path / "none.db").exists()


async def test_view_of_a_database_without_that_namespace_says_so(postgres_dsn: str) -> None:
    driver = postgres_store_driver(postgres_dsn, namespace="mine")
    with pytest.raises(PersistError, match="holds no server's store"):
        await driver.list_sessions()
    async with opened_postgres(postgres_dsn):
        other = postgres_store_driver(postgres_dsn, namespace="other")
        with pytest.raises(PersistError, match="no namespace 'other'"):
            await other.list_sessions()
        await other.close()
        assert (await driver.list_sessions()).items == []  # it was made meanwhile
    await driver.close()
