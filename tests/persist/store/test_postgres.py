"""The store of PostgreSQL keeps to the suite of all stores."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from sandbox_agent.persist.store.postgres import PostgresSessionStore
from tests.persist.store.suite import MeasuredStore, Opener, SessionStoreSuite

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(dsn: str, namespace: str = "mine") -> AsyncGenerator[PostgresSessionStore]:
    store = PostgresSessionStore(dsn, namespace=namespace)
    try:
        await store.open()
        await store.finish_deletes()
        yield store
    finally:
        await store.close()


class TestPostgresStore(SessionStoreSuite):
    @pytest.fixture
    def opener(self, postgres_dsn: str) -> Opener:
        def open_it() -> AbstractAsyncContextManager[MeasuredStore]:
            return opened(postgres_dsn)

        return open_it
