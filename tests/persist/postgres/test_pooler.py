"""Behind a pool that gives each transaction another connection (pgbouncer), everything works."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver
from sandbox_agent.testing.drivers import SessionPersistDriverSuite, all_events, make_event
from tests.support.pooler import TransactionPooler
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.anyio

_asyncpg: Any = importlib.import_module("asyncpg")


@pytest.fixture(scope="module")
def database() -> Iterator[tuple[int, str]]:
    """The port of a server, and a database of it."""
    with PostgresServer(trusting=True) as server:
        yield server.port, urlsplit(server.create_database()).path.removeprefix("/")


@pytest.fixture
async def pooler(database: tuple[int, str]) -> AsyncIterator[TransactionPooler]:
    async with TransactionPooler(*database) as pooler:
        yield pooler


@pytest.fixture
def dsn(pooler: TransactionPooler, database: tuple[int, str]) -> str:
    return f"postgresql://postgres@127.0.0.1:{pooler.port}/{database[1]}"


@pytest.fixture
def schema() -> str:
    return f"s{secrets.token_hex(6)}"


class TestPostgresDriverBehindATransactionPooler(SessionPersistDriverSuite):
    """It finds out by itself."""

    @pytest.fixture
    async def driver(self, dsn: str, schema: str) -> AsyncIterator[PostgresSessionPersistDriver]:
        driver = PostgresSessionPersistDriver(dsn, schema=schema)
        yield driver
        await driver.close()

    @pytest.fixture
    async def second_driver(self, dsn: str, schema: str) -> AsyncIterator[PostgresSessionPersistDriver]:
        driver = PostgresSessionPersistDriver(dsn, schema=schema)
        yield driver
        await driver.close()


async def test_pooler_takes_prepared_statements_and_notifications_away(
    dsn: str, pooler: TransactionPooler
) -> None:
    """So the other tests here mean something."""
    connection = await _asyncpg.connect(dsn)
    statement = await connection.prepare("SELECT 1")
    await connection.execute("SELECT 1")
    with pytest.raises(_asyncpg.InvalidSQLStatementNameError):
        await statement.fetchval()
    heard: list[object] = []

    def hear(*values: object) -> None:
        heard.append(values)

    await connection.add_listener("channel", hear)
    for _ in range(6):
        await connection.execute("NOTIFY channel, 'x'")
    assert heard == []
    assert pooler.transactions > 6
    connection.terminate()


async def test_drivers_keep_one_history_over_shared_server_connections(dsn: str, schema: str) -> None:
    """Two drivers, many tasks, three server connections for all of them."""
    drivers = [PostgresSessionPersistDriver(dsn, schema=schema) for _ in range(2)]

    async def write(number: int, task: int) -> None:
        for count in range(8):
            session_id = f"s{task}"
            event = make_event(f"{number}-{task}-{count}", session_id)
            await drivers[number].append_events(session_id, [event])

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for number in range(2):
                for task in range(5):
                    group.start_soon(write, number, task)
    for task in range(5):
        events = await all_events(drivers[0], f"s{task}")
        assert [event.event_index for event in events] == list(range(1, 17))
    for driver in drivers:
        await driver.close()


async def test_follower_sees_what_another_process_stores_though_nothing_is_heard(
    dsn: str, schema: str
) -> None:
    """It finds out that notifications don't arrive, and looks by itself."""
    reader, writer = (PostgresSessionPersistDriver(dsn, schema=schema) for _ in range(2))
    with anyio.fail_after(30):
        async with aclosing(reader.follow_events("s")) as events:
            for number in range(3):
                await writer.append_events("s", [make_event(f"e{number}")])
                assert (await anext(events)).id == f"e{number}"
    await reader.close()
    await writer.close()


async def test_pool_that_was_handed_in_works_without_prepared_statements_and_is_told_apart_otherwise(
    dsn: str, schema: str
) -> None:
    """A pool that keeps them can't work here: the message says how to make it."""
    async with _asyncpg.create_pool(dsn, min_size=1, max_size=3, statement_cache_size=0) as pool:
        driver = PostgresSessionPersistDriver(pool=pool, schema=schema)
        for number in range(5):
            await driver.append_events("s", [make_event(f"e{number}")])
        assert len(await all_events(driver, "s")) == 5
        await driver.close()
    pool = _asyncpg.create_pool(dsn, min_size=1, max_size=3)
    await pool
    driver = PostgresSessionPersistDriver(pool=pool, schema=schema)

    async def use() -> None:
        for _ in range(20):
            await driver.list_events("s")

    with pytest.raises(PersistError, match="make the pool that is handed in with statement_cache_size=0"):
        await use()
    await driver.close()
    pool.terminate()
