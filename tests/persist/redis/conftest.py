"""Drivers over real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver
from tests.support.redis import RedisServer


@pytest.fixture(scope="session")
def old_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """Redis 6.2."""
    with RedisServer(tmp_path_factory.mktemp("redis"), kind="redis") as server:
        yield server


@pytest.fixture
async def driver(redis_url: str) -> AsyncIterator[RedisSessionPersistDriver]:
    """A driver over an empty database."""
    driver = RedisSessionPersistDriver(redis_url)
    yield driver
    await driver.close()
