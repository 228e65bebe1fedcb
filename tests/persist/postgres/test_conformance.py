"""The PostgreSQL driver keeps to the suite of all drivers, over every kind of connection."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from sandbox_agent.persist.postgres import PostgresSessionPersistDriver
from sandbox_agent.testing.drivers import SessionPersistDriverSuite

pytestmark = pytest.mark.anyio

_asyncpg: Any = importlib.import_module("asyncpg")


class TestPostgresDriver(SessionPersistDriverSuite):
    @pytest.fixture
    async def driver(self, postgres_dsn: str) -> AsyncIterator[PostgresSessionPersistDriver]:
        driver = PostgresSessionPersistDriver(postgres_dsn)
        yield driver
        await driver.close()


class TestPostgresDriverOverAPoolOfTheCallers(SessionPersistDriverSuite):
    @pytest.fixture
    async def driver(self, postgres_dsn: str) -> AsyncIterator[PostgresSessionPersistDriver]:
        async with _asyncpg.create_pool(postgres_dsn, min_size=1, max_size=4) as pool:
            driver = PostgresSessionPersistDriver(pool=pool, schema='An "odd" schéma')
            yield driver
            await driver.close()


class TestPostgresDriverWithoutPreparedStatements(SessionPersistDriverSuite):
    @pytest.fixture
    async def driver(self, postgres_dsn: str) -> AsyncIterator[PostgresSessionPersistDriver]:
        driver = PostgresSessionPersistDriver(postgres_dsn, statement_cache_size=0, max_size=2)
        yield driver
        await driver.close()
