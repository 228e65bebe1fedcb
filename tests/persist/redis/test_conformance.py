"""The suite of all drivers, over Valkey and over Redis 6.2."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from sandbox_agent.persist.redis import RedisSessionPersistDriver
from sandbox_agent.testing.drivers import SessionPersistDriverSuite
from tests.support.redis import RedisServer

pytestmark = pytest.mark.anyio


class TestValkeyDriver(SessionPersistDriverSuite):
    @pytest.fixture
    async def driver(self, redis_url: str) -> AsyncIterator[RedisSessionPersistDriver]:
        driver = RedisSessionPersistDriver(redis_url)
        yield driver
        await driver.close()


class TestRedisDriver(SessionPersistDriverSuite):
    @pytest.fixture
    async def driver(self, old_redis: RedisServer) -> AsyncIterator[RedisSessionPersistDriver]:
        driver = RedisSessionPersistDriver(old_redis.fresh_url(), ttl=3600)
        yield driver
        await driver.close()
