"""The store of Redis and Valkey keeps to the suite of all stores, and to a plain model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from sandbox_agent.persist.store import SessionStore
from tests.persist.store.machine import StoreMachine
from tests.persist.store.redis_opening import opened_redis, opener_of
from tests.persist.store.suite import Opener, SessionStoreSuite
from tests.support.effort import repeats
from tests.support.redis import RedisServer

pytestmark = pytest.mark.anyio


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


@pytest.mark.loops
def test_store_holds_what_a_plain_model_holds_through_any_calls(redis_server: RedisServer) -> None:
    class RedisMachine(StoreMachine):
        def __init__(self) -> None:
            self.url = redis_server.fresh_url()
            super().__init__()

        def place(self) -> AbstractAsyncContextManager[SessionStore]:
            return opened_redis(self.url)

    run_state_machine_as_test(
        RedisMachine, settings=settings(max_examples=repeats(8, 30), stateful_step_count=25, deadline=None)
    )
