"""The PostgreSQL driver keeps to the suite of all drivers, over every kind of connection."""

from __future__ import annotations

import importlib
import secrets
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver
from sandbox_agent.testing.drivers import SessionPersistDriverSuite
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.anyio

_asyncpg: Any = importlib.import_module("asyncpg")


@pytest.fixture(scope="module")
def dsn(postgres: PostgresServer) -> Iterator[str]:
    """One database for all these tests, each of which has a schema: a database takes longer to make."""
    dsn = postgres.create_database()
    yield dsn
    postgres.drop_database(dsn)


@pytest.fixture
def schema() -> str:
    return f'An "odd" schéma {secrets.token_hex(4)}'


class TestPostgresDriver(SessionPersistDriverSuite):
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


class TestPostgresDriverOverAPoolOfTheCallers(SessionPersistDriverSuite):
    @pytest.fixture
    async def driver(self, dsn: str, schema: str) -> AsyncIterator[PostgresSessionPersistDriver]:
        async with _asyncpg.create_pool(dsn, min_size=1, max_size=4) as pool:
            driver = PostgresSessionPersistDriver(pool=pool, schema=schema)
            yield driver
            await driver.close()
