"""The suite of all drivers, over Valkey and over Redis 6.2."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver
from sandbox_agent.testing.drivers import SessionPersistDriverSuite, all_events, make_event
from sandbox_agent.wire.records import ListPage
from tests.support.redis import RedisServer

pytestmark = pytest.mark.anyio


class RedisSuite(SessionPersistDriverSuite):
    """Ids are unique within a session here: a cluster keeps another session's on another node."""

    async def test_driver_stores_nothing_when_a_native_append_has_a_bad_member(
        self, driver: SessionPersistDriver
    ) -> None:
        await driver.append_events("other", [make_event("taken", "other")])
        with pytest.raises(PersistError):
            await driver.append_events("s", [make_event("good"), make_event("bad", "other")])
        assert await driver.list_events("s") == ListPage([], None)
        await driver.append_events("s", [make_event("taken")])
        for session_id in ("s", "other"):
            [event] = (await driver.list_events(session_id)).items
            assert (event.id, event.session_id, event.event_index) == ("taken", session_id, 1)

    async def test_driver_goes_on_when_calls_were_refused(self, driver: SessionPersistDriver) -> None:
        for number in range(5):
            stray = make_event("stray", "other", 99)
            with pytest.raises(PersistError):
                await driver.append_events("s", [make_event("fine"), stray])
            with pytest.raises(PersistError):
                await driver.insert_event("s", stray)
            event = make_event(f"e{number}")
            await driver.append_events("s", [event])
            assert event.event_index == number + 1
        assert [event.id for event in await all_events(driver, "s")] == [f"e{number}" for number in range(5)]

    async def test_driver_stores_what_is_good_when_it_is_called_with_bad_at_once(
        self, driver: SessionPersistDriver
    ) -> None:
        generation = await driver.claim_session("s")
        await driver.claim_session("s")
        good = [make_event(f"good-{number}") for number in range(20)]

        async def append_bad(number: int) -> None:
            with pytest.raises(SessionFencedError):
                await driver.append_events("s", [make_event(f"bad-{number}")], generation=generation)

        async with anyio.create_task_group() as group:
            for number, event in enumerate(good):
                group.start_soon(driver.append_events, "s", [event])
                group.start_soon(append_bad, number)
        assert sorted(event.event_index for event in good) == list(range(1, 21))
        assert await driver.last_event_index("s") == 20


class TestValkeyDriver(RedisSuite):
    @pytest.fixture
    async def driver(self, redis_url: str) -> AsyncIterator[RedisSessionPersistDriver]:
        driver = RedisSessionPersistDriver(redis_url)
        yield driver
        await driver.close()

    @pytest.fixture
    async def second_driver(self, redis_url: str) -> AsyncIterator[RedisSessionPersistDriver]:
        driver = RedisSessionPersistDriver(redis_url)
        yield driver
        await driver.close()


class TestRedisDriver(RedisSuite):
    @pytest.fixture
    def url(self, old_redis: RedisServer) -> str:
        return old_redis.fresh_url()

    @pytest.fixture
    async def driver(self, url: str) -> AsyncIterator[RedisSessionPersistDriver]:
        driver = RedisSessionPersistDriver(url, ttl=3600)
        yield driver
        await driver.close()

    @pytest.fixture
    async def second_driver(self, url: str) -> AsyncIterator[RedisSessionPersistDriver]:
        driver = RedisSessionPersistDriver(url, ttl=3600)
        yield driver
        await driver.close()
