"""Encryption over drivers of every kind keeps to the suite that they keep to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver
from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import SessionPersistDriverSuite
from tests.persist.encrypted.conftest import KEY, KeepingDriver
from tests.persist.redis.test_conformance import RedisSuite

pytestmark = pytest.mark.anyio


class TestEncryptedKeepingDriver(SessionPersistDriverSuite):
    @pytest.fixture
    def driver(self) -> EncryptedSessionPersistDriver:
        return EncryptedSessionPersistDriver(KeepingDriver(max_events_per_session=1_000), key=KEY)


class TestEncryptedInMemoryDriver(SessionPersistDriverSuite):
    @pytest.fixture
    def driver(self) -> EncryptedSessionPersistDriver:
        return EncryptedSessionPersistDriver(
            InMemorySessionPersistDriver(max_events_per_session=1_000), key=KEY
        )


class TestEncryptedSQLiteDriver(SessionPersistDriverSuite):
    @pytest.fixture
    async def driver(self, tmp_path: Path) -> AsyncIterator[EncryptedSessionPersistDriver]:
        inner = SQLiteSessionPersistDriver(tmp_path / "store.db")
        driver = EncryptedSessionPersistDriver(inner, key=KEY)
        yield driver
        await driver.close()
        await inner.close()

    @pytest.fixture
    async def second_driver(self, tmp_path: Path) -> AsyncIterator[EncryptedSessionPersistDriver]:
        inner = SQLiteSessionPersistDriver(tmp_path / "store.db")
        driver = EncryptedSessionPersistDriver(inner, key=KEY)
        yield driver
        await driver.close()
        await inner.close()


class TestEncryptedPostgresDriver(SessionPersistDriverSuite):
    @pytest.fixture
    async def driver(self, postgres_dsn: str) -> AsyncIterator[EncryptedSessionPersistDriver]:
        inner = PostgresSessionPersistDriver(postgres_dsn)
        driver = EncryptedSessionPersistDriver(inner, key=KEY)
        yield driver
        await driver.close()
        await inner.close()

    @pytest.fixture
    async def second_driver(self, postgres_dsn: str) -> AsyncIterator[EncryptedSessionPersistDriver]:
        inner = PostgresSessionPersistDriver(postgres_dsn)
        driver = EncryptedSessionPersistDriver(inner, key=KEY)
        yield driver
        await driver.close()
        await inner.close()


class TestEncryptedRedisDriver(RedisSuite):
    @pytest.fixture
    async def driver(self, redis_url: str) -> AsyncIterator[EncryptedSessionPersistDriver]:
        inner = RedisSessionPersistDriver(redis_url)
        driver = EncryptedSessionPersistDriver(inner, key=KEY)
        yield driver
        await driver.close()
        await inner.close()

    @pytest.fixture
    async def second_driver(self, redis_url: str) -> AsyncIterator[EncryptedSessionPersistDriver]:
        inner = RedisSessionPersistDriver(redis_url)
        driver = EncryptedSessionPersistDriver(inner, key=KEY)
        yield driver
        await driver.close()
        await inner.close()
