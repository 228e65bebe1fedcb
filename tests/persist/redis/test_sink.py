"""The Redis sink: the seed's list, each event once, no holes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence

import anyio
import pytest
from redis.asyncio import Redis

from sandbox_agent import PersistError, UniversalEvent
from sandbox_agent.client.sinks.redis import RedisSink
from sandbox_agent.wire.universal import decode_event, encode_event
from tests.client.scripted_sessions import event
from tests.support.proxy import TcpProxy
from tests.support.redis import RedisServer, call

pytestmark = pytest.mark.anyio

SECONDS = 30


@pytest.fixture
async def sink(redis_url: str) -> AsyncIterator[RedisSink]:
    async with RedisSink(redis_url) as sink:
        yield sink


def events(first: int, last: int) -> list[UniversalEvent]:
    return [decode_event(event(sequence)) for sequence in range(first, last + 1)]


def stored(url: str, key: str = "session:s") -> list[bytes]:
    found: list[bytes] = call(url, "LRANGE", key, 0, -1)
    return found


def sequences(items: Sequence[bytes]) -> list[int]:
    return [json.loads(item)["sequence"] for item in items]


async def test_a_sink_knows_where_it_stands(sink: RedisSink) -> None:
    assert await sink.last_sequence("s") == 0
    await sink.insert_events("s", events(1, 3))
    await sink.insert_events("s", [])
    await sink.insert_events("s", events(4, 4))
    assert await sink.last_sequence("s") == 4
    assert await sink.last_sequence("another") == 0


async def test_an_event_is_an_entry_of_the_seeds_list(sink: RedisSink, redis_url: str) -> None:
    await sink.insert_events("s", events(1, 2500))
    assert stored(redis_url) == [encode_event(one) for one in events(1, 2500)]
    [third] = call(redis_url, "LRANGE", "session:s", 2, 2)
    assert json.loads(third) == json.loads(event(3))


async def test_an_event_that_is_there_is_not_stored_again(sink: RedisSink, redis_url: str) -> None:
    await sink.insert_events("s", events(1, 3))
    await sink.insert_events("s", events(2, 5))
    await sink.insert_events("s", events(1, 2))
    assert sequences(stored(redis_url)) == [1, 2, 3, 4, 5]


async def test_a_list_that_another_program_wrote_is_gone_on_with(sink: RedisSink, redis_url: str) -> None:
    call(redis_url, "RPUSH", "session:s", json.dumps(json.loads(event(1)), indent=1))
    await sink.insert_events("s", events(1, 2))
    assert sequences(stored(redis_url)) == [1, 2]


async def test_two_mirrors_of_one_session_do_no_harm(sink: RedisSink, redis_url: str) -> None:
    async with RedisSink(redis_url) as other, anyio.create_task_group() as group:
        for each in (sink, other):
            for first in (1, 26):
                await sink.insert_events("s", events(1, 25))
                group.start_soon(each.insert_events, "s", events(first, first + 24))
    assert sequences(stored(redis_url)) == list(range(1, 51))


@pytest.mark.parametrize("first", [2, 5])
async def test_a_hole_is_refused_and_nothing_is_stored(sink: RedisSink, redis_url: str, first: int) -> None:
    with pytest.raises(PersistError, match=f"event {first} came, 1 is missing"):
        await sink.insert_events("s", events(first, first + 2))
    with pytest.raises(PersistError, match="event 4 came, 3 is missing"):
        await sink.insert_events("s", [*events(1, 2), *events(4, 4)])
    assert stored(redis_url) == []


@pytest.mark.parametrize("position", [0, 1])
async def test_another_event_of_that_sequence_is_refused(
    sink: RedisSink, redis_url: str, position: int
) -> None:
    await sink.insert_events("s", events(1, 2))
    others = [decode_event(event(sequence, "error", message="no")) for sequence in (1, 2)]
    with pytest.raises(PersistError, match=f"another event {position + 1} is stored"):
        await sink.insert_events("s", [*others[position:], *events(3, 3)])
    assert stored(redis_url) == [encode_event(one) for one in events(1, 2)]


async def test_a_list_of_something_else_is_left_alone(sink: RedisSink, redis_url: str) -> None:
    call(redis_url, "SET", "session:s", "mine")
    with pytest.raises(PersistError, match="another program's value"):
        await sink.insert_events("s", events(1, 1))


async def test_a_key_says_where_each_session_goes(redis_url: str) -> None:
    async with RedisSink(redis_url, key="copies/{session_id}/events") as sink:
        await sink.insert_events("s", events(1, 2))
    assert sequences(stored(redis_url, "copies/s/events")) == [1, 2]
    with pytest.raises(ValueError, match="session_id"):
        RedisSink(redis_url, key="session")


async def test_a_client_that_was_handed_in_stays_open(redis_url: str) -> None:
    client = Redis.from_url(redis_url, decode_responses=True)  # pyright: ignore[reportUnknownMemberType]
    async with RedisSink(client=client) as sink:
        await sink.insert_events("s", events(1, 2))
        assert await sink.last_sequence("s") == 2
    assert await client.llen("session:s") == 2
    await client.aclose()


async def test_a_push_whose_outcome_is_unknown_is_retried_without_doubles(redis_server: RedisServer) -> None:
    url = redis_server.fresh_url()
    database = url.rpartition("/")[2]
    with anyio.fail_after(SECONDS):
        async with (
            TcpProxy(redis_server.port) as proxy,
            RedisSink(f"redis://127.0.0.1:{proxy.port}/{database}", timeout=5) as sink,
        ):
            await sink.insert_events("s", events(1, 3))
            proxy.trap(b"evt_s_5", passed=True)
            await sink.insert_events("s", events(4, 6))
            assert proxy.sprung.is_set()
    assert sequences(stored(url)) == [1, 2, 3, 4, 5, 6]
