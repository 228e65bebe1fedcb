"""The store of Redis and Valkey keeps to the suite of all stores, and to a plain model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager

import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from sandbox_agent.persist.store import LARGE_BYTES, Changes, SessionStore, TextRow
from tests.persist.store.machine import StoreMachine
from tests.persist.store.making import TIME, envelope, fill, filled, indexes, repeating, session
from tests.persist.store.redis_opening import opened_redis, opener_of
from tests.persist.store.suite import Opener, SessionStoreSuite
from tests.support.effort import repeats
from tests.support.redis import RedisServer, call

pytestmark = pytest.mark.anyio


class RedisStoreSuite(SessionStoreSuite):
    """A search reads the texts, newest first."""

    async def test_search_puts_the_item_that_has_most_of_a_word_first(self, store: SessionStore) -> None:
        await fill(store)
        everything = [hit.sequence for hit in await store.search("fox", limit=9)]
        assert everything == [5, 2, 1]
        pages = [await store.search("fox", limit=1, offset=offset) for offset in range(4)]
        assert [hit.sequence for page in pages for hit in page] == everything


class TestRedisStore(RedisStoreSuite):
    @pytest.fixture
    def opener(self, redis_url: str) -> Opener:
        return opener_of(redis_url)


@pytest.fixture(scope="module")
def old_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), kind="redis") as server:
        yield server


class TestRedis62Store(RedisStoreSuite):
    @pytest.fixture
    def opener(self, old_redis: RedisServer) -> Opener:
        return opener_of(old_redis.fresh_url())


async def test_search_reads_the_texts_in_small_steps_and_not_beyond_its_bound(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_agent.persist.redis.ledger.TEXTS_PAGE", 7)
    monkeypatch.setattr("sandbox_agent.persist.redis.ledger.FIRST_PAGE", 7)
    texts = [TextRow(1 + n % 2, n, TIME + n, f"word number{n}") for n in range(1, 101)]
    async with opened_redis(redis_url) as store:
        await store.commit(Changes(sessions=[session(1), session(2)], texts=texts))
        everything = [hit.sequence for hit in await store.search("word", limit=1_000)]
        assert everything == list(range(100, 0, -1))
        one = [hit.sequence for hit in await store.search("word", limit=1_000, session_id="session-1")]
        assert one == list(range(100, 0, -2))
        page = await store.search("word", limit=5, offset=20, until=TIME + 90)
        assert [hit.sequence for hit in page] == [69, 68, 67, 66, 65]
        await store.delete(2)
        assert [hit.sequence for hit in await store.search("word", limit=1_000)] == one
        monkeypatch.setattr("sandbox_agent.persist.redis.ledger.MAX_TEXTS", 21)
        assert [hit.sequence for hit in await store.search("word", limit=1_000)] == one[:21]
        assert await store.search("number2", limit=9) == []


async def test_what_is_repeated_is_stored_twice_at_most_and_erased_with_the_session(redis_url: str) -> None:
    large = b"a" * LARGE_BYTES
    async with opened_redis(redis_url) as store:
        for index in range(1, 21):
            row = repeating(index, index - 1, large, time=TIME + index)
            await store.commit(
                Changes(sessions=[session(managed=True, last_envelope=index)], envelopes=[row])
            )
        assert 2 * LARGE_BYTES < await store.used_bytes() < 3 * LARGE_BYTES
        await store.expire(before=TIME + 20)
        assert [row.data for row in await store.envelopes(1, after=0, limit=99)] == [large]
        assert LARGE_BYTES < await store.used_bytes() < 2 * LARGE_BYTES
        await store.delete(1)
        assert await store.used_bytes() == 0
    assert call(redis_url, "KEYS", "*:1") == []


async def test_envelopes_of_no_session_are_not_stored(redis_url: str) -> None:
    async with opened_redis(redis_url) as store:
        rows = [envelope(1, 0), envelope(1, 1), envelope(2, 0)]
        await store.commit(Changes(sessions=[session()], envelopes=rows))
        assert (await indexes(store, 0), await indexes(store, 1)) == ([], [1])


async def test_search_goes_over_blocks_of_texts_that_were_erased(redis_url: str) -> None:
    async with opened_redis(redis_url) as store:
        await store.commit(filled(1, 600, text="word"))
        await store.commit(filled(2, 3_000, text="other"))
        await store.commit(filled(3, 600, text="word"))
        await store.delete(2)
        hits = await store.search("word", limit=1_000, offset=300)
        assert [(hit.session_id, hit.sequence) for hit in hits] == [
            *(("session-3", number) for number in range(300, 0, -1)),
            *(("session-1", number) for number in range(600, 0, -1)),
        ]


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
