"""What only this driver does: keys, lifetimes, clusters, clients that are handed in."""

from __future__ import annotations

import asyncio
import logging
from contextlib import aclosing
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from redis.asyncio import Redis, RedisCluster

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver
from sandbox_agent.testing.drivers import all_events, all_sessions, make_event, make_session
from tests.support.redis import RedisServer, call
from tests.support.servers import free_port

pytestmark = pytest.mark.anyio

SECONDS = 60


def client_of(url: str, **options: Any) -> Redis:
    return Redis.from_url(url, **options)  # pyright: ignore[reportUnknownMemberType]


async def test_a_session_is_a_stream_and_a_hash_that_anybody_can_read(
    driver: RedisSessionPersistDriver, redis_url: str
) -> None:
    await driver.update_session(make_session("s"))
    await driver.append_events("s", [make_event("a"), make_event("b")])
    assert sorted(call(redis_url, "KEYS", "*")) == [
        b"sandbox-agent:index",
        *(b"sandbox-agent:{s}:" + name for name in (b"events", b"ids", b"meta", b"record")),
    ]
    [(_, fields), (last, _)] = call(redis_url, "XRANGE", "sandbox-agent:{s}:events", "-", "+")
    assert last == b"2-0"
    assert fields[b"id"] == b"a"
    assert fields[b"sender"] == b"agent"
    assert fields[b"payload"] == make_event("a").payload_json
    assert call(redis_url, "HGET", "sandbox-agent:{s}:record", "agent") == b"mock"


async def test_events_in_any_order_are_read_in_order(driver: RedisSessionPersistDriver) -> None:
    await driver.append_events("s", [make_event(f"e{n}") for n in range(1, 6)])
    await driver.insert_event("s", make_event("far", index=20))
    await driver.insert_event("s", make_event("between", index=10))
    await driver.insert_event("s", make_event("zero", index=0))
    await driver.insert_event("s", make_event("below", index=-3))
    # The last one goes to the front, the stream's numbers go on where the others end.
    await driver.insert_event("s", make_event("far", index=7))
    await driver.insert_event("s", make_event("e2", index=2, payload=b'{"replaced":true}'))
    await driver.append_events("s", [make_event("next")])
    events = await all_events(driver, "s", limit=2)
    assert [(event.id, event.event_index) for event in events] == [
        ("below", -3),
        ("zero", 0),
        *((f"e{n}", n) for n in range(1, 6)),
        ("far", 7),
        ("between", 10),
        ("next", 11),
    ]
    assert events[3].payload == {"replaced": True}
    assert await driver.tail_events("s", limit=100) == events
    assert [event.event_index for event in await driver.tail_events("s", limit=3)] == [7, 10, 11]
    for taken in (-3, 2, 7, 11):
        with pytest.raises(PersistError, match=f"another event with index {taken}"):
            await driver.insert_event("s", make_event("new", index=taken))
    with pytest.raises(PersistError, match="beyond what the store can hold"):
        await driver.insert_event("s", make_event("new", index=2**60))


async def test_large_events_are_read_in_several_answers(driver: RedisSessionPersistDriver) -> None:
    events = [make_event(f"e{n}", payload=b'{"x":"%s"}' % (b"a" * 3_000_000)) for n in range(8)]
    await driver.append_events("s", events)
    assert await all_events(driver, "s") == events
    assert await driver.tail_events("s", limit=5) == events[3:]


async def test_a_session_vanishes_when_nobody_writes_it_for_its_ttl(redis_url: str) -> None:
    driver = RedisSessionPersistDriver(redis_url, ttl=0.4)
    with anyio.fail_after(SECONDS):
        for session_id in ("s", "kept"):
            await driver.update_session(make_session(session_id))
            await driver.append_events(session_id, [make_event("a", session_id)])
        while await driver.get_session("s") is not None:
            await driver.append_events("kept", [make_event(f"{anyio.current_time()}", "kept")])
        assert await driver.last_event_index("s") == 0
        assert (await driver.list_events("s")).items == []
        assert [record.id for record in await all_sessions(driver)] == ["kept"]
        entries = call(redis_url, "ZRANGE", "sandbox-agent:index", 0, -1)
        assert [entry.partition(b":")[2] for entry in entries] == [b"kept"]
        await driver.append_events("s", [make_event("again")])
        assert await driver.last_event_index("s") == 1
    await driver.close()


async def test_a_session_whose_index_entry_is_missing_or_stale_is_put_right(
    driver: RedisSessionPersistDriver, redis_url: str
) -> None:
    await driver.update_session(make_session("s", created_at=7))
    await driver.update_session(make_session("s", created_at=3))
    await driver.update_session(make_session("t", created_at=5))
    assert [record.id for record in await all_sessions(driver, limit=1)] == ["s", "t"]
    assert call(redis_url, "ZCARD", "sandbox-agent:index") == 2
    # A writer died between the entry and the record.
    call(redis_url, "ZADD", "sandbox-agent:index", 0, b"8000000000000001:dead")
    assert [record.id for record in (await driver.list_sessions(limit=2)).items] == ["s", "t"]
    assert call(redis_url, "ZCARD", "sandbox-agent:index") == 2


async def test_a_writer_of_a_deleted_session_is_refused(redis_url: str) -> None:
    old, new = RedisSessionPersistDriver(redis_url), RedisSessionPersistDriver(redis_url)
    generation = await old.claim_session("s")
    await old.append_events("s", [make_event("a")], generation=generation)
    await new.delete_session("s")
    with pytest.raises(PersistError):
        await old.append_events("s", [make_event("b")], generation=generation)
    # Also when the tombstone has gone.
    call(redis_url, "FLUSHDB")
    await new.append_events("s", [make_event("c")])
    with pytest.raises(PersistError):
        await old.append_events("s", [make_event("b")], generation=generation)
    assert [event.id for event in await all_events(new, "s")] == ["c"]
    for driver in (old, new):
        await driver.close()


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("protocol", [2, 3])
async def test_a_client_that_is_handed_in_works_and_stays_open(
    redis_url: str, decode: bool, protocol: int
) -> None:
    client = client_of(redis_url, decode_responses=decode, protocol=protocol)
    driver = RedisSessionPersistDriver(client=client, prefix="mine")
    await driver.update_session(make_session("s"))
    await driver.append_events("s", [make_event("a"), make_event("b")])
    assert [record.id for record in await all_sessions(driver)] == ["s"]
    with anyio.fail_after(SECONDS):
        async with aclosing(driver.follow_events("s")) as following:
            assert (await anext(following)).id == "a"
            assert (await anext(following)).id == "b"
            await driver.append_events("s", [make_event("c")])
            assert (await anext(following)).id == "c"
    await driver.delete_session("s")
    await driver.close()
    assert await client.exists("mine:index") == 0
    await client.aclose()


async def test_a_valkey_url_and_a_prefix_say_where_sessions_are(redis_url: str) -> None:
    one = RedisSessionPersistDriver(redis_url.replace("redis://", "valkey://"), prefix="one")
    two = RedisSessionPersistDriver(redis_url, prefix="two")
    await one.update_session(make_session("s"))
    assert await two.get_session("s") is None
    assert await all_sessions(two) == []
    for driver in (one, two):
        await driver.close()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"url": "redis://h", "ttl": 0},
        {"url": "redis://h", "ttl": float("nan")},
        {"url": "redis://h", "prefix": ""},
        {"url": "redis://h", "prefix": "a{b}"},
        {"url": "postgres://h"},
        {"url": "redis://h:99999"},
    ],
)
def test_options_that_can_not_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"either|ttl|prefix|must begin with|port"):
        RedisSessionPersistDriver(**options)


async def test_a_closed_driver_says_so(driver: RedisSessionPersistDriver) -> None:
    await driver.close()
    for call_ in (
        driver.append_events("s", [make_event("a")]),
        driver.list_sessions(),
        anext(driver.follow_events("s")),
    ):
        with pytest.raises(PersistError, match="the store is closed"):
            await call_


async def test_what_was_accepted_is_stored_when_the_driver_is_closed(redis_url: str) -> None:
    driver = RedisSessionPersistDriver(redis_url)
    async with asyncio.TaskGroup() as group:
        for number in range(100):
            group.create_task(driver.append_events("s", [make_event(f"e{number}")]))
        await asyncio.sleep(0)
        await driver.close()
    again = RedisSessionPersistDriver(redis_url)
    assert await again.last_event_index("s") == 100
    await again.close()


@pytest.mark.parametrize(
    ("policy", "ttl", "warns"),
    [
        ("allkeys-lru", None, True),
        ("volatile-lru", None, False),
        ("volatile-lru", 60, True),
        ("noeviction", 60, False),
    ],
)
async def test_a_server_that_may_throw_sessions_away_is_warned_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, policy: str, ttl: float | None, warns: bool
) -> None:
    options = ("--maxmemory", "50mb", "--maxmemory-policy", policy)
    with (
        RedisServer(tmp_path, options=options) as server,
        caplog.at_level(logging.WARNING, "sandbox_agent.persist"),
    ):
        driver = RedisSessionPersistDriver(server.url(), ttl=ttl)
        for number in range(3):
            await driver.append_events("s", [make_event(f"e{number}")])
        await driver.close()
    assert [policy in record.getMessage() for record in caplog.records] == [True] * warns


@pytest.mark.soak
async def test_a_write_that_too_few_replicas_confirmed_is_an_error(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "a") as primary, RedisServer(tmp_path / "b") as replica:
        driver = RedisSessionPersistDriver(primary.url(), wait_replicas=1, timeout=4)
        with anyio.fail_after(SECONDS):
            with pytest.raises(PersistError, match="0 of 1 replicas confirmed"):
                await driver.append_events("s", [make_event("a")])
            replica.call("REPLICAOF", "127.0.0.1", primary.port)
            while True:
                try:
                    event = make_event("a")
                    await driver.append_events("s", [event])
                    break
                except PersistError:
                    continue
        assert event.event_index == 1
        assert replica.call("XLEN", "sandbox-agent:{s}:events") == 1
        await driver.close()


async def test_a_cluster_keeps_each_session_on_one_node(tmp_path: Path) -> None:
    def node(name: str, bus: int) -> RedisServer:
        return RedisServer(tmp_path / name, options=("--cluster-enabled", "yes", "--cluster-port", str(bus)))

    buses = free_port(), free_port()
    with node("a", buses[0]) as one, node("b", buses[1]) as two:
        one.call("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
        two.call("CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
        two.call("CLUSTER", "SET-CONFIG-EPOCH", 2)
        one.call("CLUSTER", "MEET", "127.0.0.1", two.port, buses[1])
        with anyio.fail_after(SECONDS):
            for server in (one, two):
                while b"cluster_state:ok" not in server.call("CLUSTER", "INFO"):
                    await anyio.lowlevel.checkpoint()
            client = RedisCluster(host="127.0.0.1", port=one.port)
            driver = RedisSessionPersistDriver(client=client)
            names = [f"s{number}" for number in range(12)] + ["a{b}c", "}", "{", ""]
            for number, name in enumerate(names):
                await driver.update_session(make_session(name, created_at=number))
                generation = await driver.claim_session(name)
                await driver.append_events(
                    name, [make_event(f"{part}", name) for part in "abc"], generation=generation
                )
                await driver.insert_event(name, make_event("b", name, 2))
            assert [record.id for record in await all_sessions(driver, limit=5)] == names
            for name in names:
                assert [event.id for event in await all_events(driver, name)] == ["a", "b", "c"]
            assert min(server.call("DBSIZE") for server in (one, two)) > 10
            for name in names[:4]:
                async with aclosing(driver.follow_events(name, after=3)) as following:
                    async with asyncio.TaskGroup() as group:
                        told = group.create_task(anext(following))
                        await driver.append_events(name, [make_event("d", name)])
                    assert told.result().id == "d"
            await driver.delete_session("s0")
            assert len(await all_sessions(driver)) == len(names) - 1
            await driver.close()
            await client.aclose()


async def test_the_driver_is_refused_in_another_event_loop_and_goes_on_in_its_own(
    driver: RedisSessionPersistDriver,
) -> None:
    await driver.append_events("s", [make_event("a")])

    async def elsewhere() -> None:
        with pytest.raises(PersistError, match="belong to another event loop, nothing was done"):
            await driver.append_events("s", [make_event("b")])
        with pytest.raises(PersistError, match="belong to another event loop"):
            await driver.list_events("s")
        with pytest.raises(PersistError, match="belong to another event loop"):
            await anext(driver.follow_events("s"))

    with anyio.fail_after(SECONDS):
        await anyio.to_thread.run_sync(asyncio.run, elsewhere())
    await driver.append_events("s", [make_event("b")])
    assert [event.id for event in await all_events(driver, "s")] == ["a", "b"]
