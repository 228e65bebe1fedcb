"""How these tests open a store in Redis."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from sandbox_agent.persist.redis.ledger import RedisSessionStore
from tests.persist.store.suite import MeasuredStore, Opener

__all__ = ["NAMESPACE", "opened_redis", "opener_of"]

NAMESPACE = "tests"


@asynccontextmanager
async def opened_redis(
    url: str,
    namespace: str = NAMESPACE,
    timeout: float = 15.0,
) -> AsyncGenerator[RedisSessionStore]:
    store = RedisSessionStore(url, namespace=namespace, timeout=timeout)
    try:
        await store.open()
        await store.finish_deletes()
        yield store
    finally:
        await store.close()


def opener_of(url: str) -> Opener:
    def open_it() -> AbstractAsyncContextManager[MeasuredStore]:
        return opened_redis(url)

    return open_it
