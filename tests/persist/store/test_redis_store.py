"""The store of Redis and Valkey keeps to the suite of all stores."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from sandbox_agent.persist.store.redis import RedisSessionStore
from tests.persist.store.suite import MeasuredStore, Opener, SessionStoreSuite
from tests.support.redis import RedisServer

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(url: str, namespace: str = "tests") -> AsyncGenerator[RedisSessionStore]:
    store = RedisSessionStore(url, namespace=namespace)
    try:
        await store.open()
        await store.finish_deletes()
        yield store
    finally:
        await store.close()


def opener_of(url: str) -> Opener:
    def open_it() -> AbstractAsyncContextManager[MeasuredStore]:
        return opened(url)

    return open_it


class TestRedisStore(SessionStoreSuite):
    @pytest.fixture
    def opener(self, redis_url: str) -> Opener:
        return opener_of(redis_url)


@pytest.fixture(scope="module")
def old_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), kind="redis") as server:
        yield server


class TestRedis62Store(SessionStoreSuite):
    @pytest.fixture
    def opener(self, old_redis: RedisServer) -> Opener:
        return opener_of(old_redis.fresh_url())
