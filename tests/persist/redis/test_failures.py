"""The server dies, is cut off, refuses or forgets: nothing is lost, nothing is twice."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path

import anyio
import pytest

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver
from sandbox_agent.testing.drivers import all_events, all_sessions, make_event, make_session
from sandbox_agent.wire.records import SessionEvent
from tests.support.proxy import TcpProxy
from tests.support.redis import RedisKind, RedisServer

pytestmark = pytest.mark.anyio

SECONDS = 60


@pytest.fixture(params=["valkey", "redis"])
def own_redis(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisServer]:
    """A durable server of the test's own."""
    kind: RedisKind = request.param
    with RedisServer(tmp_path, kind=kind, durable=True) as server:
        yield server


@pytest.fixture
async def own_driver(own_redis: RedisServer) -> AsyncIterator[RedisSessionPersistDriver]:
    driver = RedisSessionPersistDriver(own_redis.url())
    yield driver
    await driver.close()


def numbers(events: list[SessionEvent]) -> list[tuple[str, int]]:
    return [(event.id, event.event_index) for event in events]


async def test_a_writer_loses_and_doubles_nothing_when_the_server_is_killed_in_the_middle(
    own_redis: RedisServer, own_driver: RedisSessionPersistDriver
) -> None:
    acknowledged: list[str] = []
    failed = 0
    more = anyio.Event()
    over = False

    async def write(generation: int) -> None:
        nonlocal failed, more
        for number in itertools.count():
            batch = [make_event(f"e{number}-{part}", payload=b'{"x":"%s"}' % (b"a" * 2000)) for part in "abc"]
            while True:
                try:
                    await own_driver.append_events("s", batch, generation=generation)
                except PersistError:
                    failed += 1
                    await anyio.sleep(0.01)
                else:
                    break
            acknowledged.extend(event.id for event in batch)
            more.set()
            more = anyio.Event()
            if over:
                return

    with anyio.fail_after(SECONDS):
        generation = await own_driver.claim_session("s")
        async with anyio.create_task_group() as group:
            group.start_soon(write, generation)
            for _ in range(4):
                for _ in range(30):
                    await more.wait()
                await anyio.to_thread.run_sync(own_redis.restart)
            over = True
        events = await all_events(own_driver, "s")
    assert numbers(events) == [(name, index) for index, name in enumerate(acknowledged, 1)]
    assert failed > 0


@pytest.mark.parametrize("passed", [False, True])
async def test_an_append_whose_connection_was_cut_is_retried_without_doubles(
    redis_server: RedisServer, passed: bool
) -> None:
    url = redis_server.fresh_url()
    async with TcpProxy(redis_server.port) as proxy:
        driver = RedisSessionPersistDriver(url.replace(str(redis_server.port), str(proxy.port)), timeout=5)
        with anyio.fail_after(SECONDS):
            generation = await driver.claim_session("s")
            await driver.append_events("s", [make_event("a")], generation=generation)
            batch = [make_event(name) for name in ("b", "needle", "c")]
            proxy.trap(b"needle", passed=passed)
            # The library tries once more by itself, with the same ids.
            await driver.append_events("s", batch, generation=generation)
            assert proxy.sprung.is_set()
            proxy.refuse()
            lost = [make_event("d")]
            with pytest.raises(
                PersistError, match=r"can't be reached .*, then try again, nothing is stored twice"
            ):
                await driver.append_events("s", lost, generation=generation)
            assert lost[0].event_index == 0
            proxy.accept()
            await driver.append_events("s", [*batch, *lost], generation=generation)
            assert [event.event_index for event in batch] == [2, 3, 4]
            events = await all_events(driver, "s")
        assert numbers(events) == [("a", 1), ("b", 2), ("needle", 3), ("c", 4), ("d", 5)]
        await driver.close()


async def test_a_server_that_answers_nothing_is_waited_for_no_longer_than_was_said(
    redis_server: RedisServer,
) -> None:
    url = redis_server.fresh_url()
    async with TcpProxy(redis_server.port) as proxy:
        driver = RedisSessionPersistDriver(url.replace(str(redis_server.port), str(proxy.port)), timeout=0.5)
        with anyio.fail_after(SECONDS):
            await driver.append_events("s", [make_event("a")])
            proxy.stall()
            with pytest.raises(PersistError, match=r"did not answer within 0\.5 s; .* may be stored"):
                await driver.append_events("s", [make_event("b")])
            with pytest.raises(PersistError, match="did not answer"):
                await driver.list_events("s")
            proxy.resume()
            await driver.append_events("s", [make_event("b")])
            assert numbers(await all_events(driver, "s")) == [("a", 1), ("b", 2)]
        await driver.close()


@pytest.mark.parametrize("fenced", [False, True])
async def test_a_writer_is_told_when_the_server_failed_over_to_an_empty_one(
    redis_server: RedisServer, tmp_path: Path, fenced: bool
) -> None:
    with RedisServer(tmp_path) as other:
        async with TcpProxy(redis_server.port) as proxy:
            redis_server.fresh_url()
            driver = RedisSessionPersistDriver(f"redis://127.0.0.1:{proxy.port}/0")
            redis_server.call("FLUSHDB")
            with anyio.fail_after(SECONDS):
                generation = await driver.claim_session("s") if fenced else 0
                await driver.append_events("s", [make_event("a"), make_event("b")], generation=generation)
                proxy._target = ("127.0.0.1", other.port)  # pyright: ignore[reportPrivateUsage]
                proxy.cut()
                for _ in range(2):
                    with pytest.raises(PersistError, match="no longer has what it acknowledged"):
                        await driver.append_events("s", [make_event("c")], generation=generation)
                assert other.call("DBSIZE") == 0
                with pytest.raises(PersistError, match="no longer has"):
                    await driver.save_session(make_session("s"), generation=generation)
                assert await all_sessions(driver) == []
                # Who knows that takes it as it is.
                generation = await driver.claim_session("s")
                await driver.append_events("s", [make_event("c")], generation=generation)
                assert numbers(await all_events(driver, "s")) == [("c", 1)]
            await driver.close()
            redis_server.call("FLUSHDB")


async def test_a_writer_is_told_when_the_server_lost_the_last_events(redis_url: str) -> None:
    """A failover to a replica that was behind: what it lacks was acknowledged."""
    from tests.support.redis import call

    driver = RedisSessionPersistDriver(redis_url)
    generation = await driver.claim_session("s")
    await driver.append_events("s", [make_event(f"e{n}") for n in range(5)], generation=generation)
    call(redis_url, "XDEL", "sandbox-agent:{s}:events", "5-0")
    call(redis_url, "HSET", "sandbox-agent:{s}:meta", "last", 4)
    for writer in (generation, 0):
        with pytest.raises(PersistError, match="no longer has"):
            await driver.append_events("s", [make_event("f")], generation=writer)
    await driver.close()


async def test_a_full_server_refuses_and_goes_on_when_it_has_room(own_redis: RedisServer) -> None:
    driver = RedisSessionPersistDriver(own_redis.url())
    await driver.append_events("s", [make_event("a")])
    own_redis.call("CONFIG", "SET", "maxmemory", 1)
    for call in (
        driver.append_events("s", [make_event("b"), make_event("c")]),
        driver.insert_event("s", make_event("d", index=7)),
        driver.update_session(make_session("s")),
        driver.claim_session("s"),
    ):
        with pytest.raises(PersistError, match="reached its maxmemory and takes no writes"):
            await call
    assert numbers(await all_events(driver, "s")) == [("a", 1)]
    # Deleting is how room is made.
    await driver.delete_session("nobody")
    own_redis.call("CONFIG", "SET", "maxmemory", 0)
    await driver.append_events("s", [make_event("b")])
    assert await driver.last_event_index("s") == 2
    await driver.close()


async def test_a_replica_refuses_writes_until_it_is_the_primary(
    own_redis: RedisServer, redis_server: RedisServer
) -> None:
    driver = RedisSessionPersistDriver(own_redis.url())
    await driver.append_events("s", [make_event("a")])
    own_redis.call("REPLICAOF", "127.0.0.1", 1)
    for call in (driver.append_events("s", [make_event("b")]), driver.update_session(make_session("s"))):
        with pytest.raises(PersistError, match="is a replica that takes no writes"):
            await call
    assert await driver.last_event_index("s") == 1
    own_redis.call("REPLICAOF", "NO", "ONE")
    await driver.append_events("s", [make_event("b")])
    assert numbers(await all_events(driver, "s")) == [("a", 1), ("b", 2)]
    await driver.close()


async def test_a_server_that_reads_its_data_is_said_to_do_so(tmp_path: Path) -> None:
    with RedisServer(tmp_path, durable=True, options=("--key-load-delay", "200")) as server:
        driver = RedisSessionPersistDriver(server.url(), timeout=5)
        await driver.append_events("s", [make_event("a")])
        server.call("EVAL", "for i = 1, 10000 do redis.call('INCR', 'x') end", 0)
        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.to_thread.run_sync, server.restart)
                told = ""
                while "has just started and reads its data" not in told:
                    try:
                        await driver.append_events("s", [make_event("b")])
                    except PersistError as error:
                        told = str(error)
            event = make_event("b")
            await driver.append_events("s", [event])
        assert event.event_index == 2
        assert numbers(await all_events(driver, "s")) == [("a", 1), ("b", 2)]
        await driver.close()


async def test_the_older_of_two_writers_is_refused_and_nothing_is_interleaved(redis_url: str) -> None:
    writers = [RedisSessionPersistDriver(redis_url) for _ in range(2)]
    refused: list[int] = []
    stored: dict[int, list[str]] = {0: [], 1: []}
    claimed = anyio.Event()

    async def write(who: int) -> None:
        driver = writers[who]
        generation = await driver.claim_session("s")
        if who:
            claimed.set()
        for number in range(200):
            try:
                await driver.append_events("s", [make_event(f"{who}-{number}")], generation=generation)
            except SessionFencedError:
                refused.append(who)
                return
            stored[who].append(f"{who}-{number}")
            if number == 20 and not who:
                group.start_soon(write, 1)
                await claimed.wait()

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as group:
            group.start_soon(write, 0)
    events = await all_events(writers[0], "s")
    assert [event.id for event in events] == stored[0] + stored[1]
    assert refused == [0]
    assert len(stored[1]) == 200
    for driver in writers:
        await driver.close()


async def test_a_follower_is_told_when_everything_was_flushed(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        driver = RedisSessionPersistDriver(server.url())
        await driver.append_events("s", [make_event("a")])
        with anyio.fail_after(SECONDS):
            async with aclosing(driver.follow_events("s")) as following:
                assert (await anext(following)).id == "a"
                server.call("FLUSHALL")
                with pytest.raises(PersistError, match="no longer has"):
                    await anext(following)
        await driver.close()


async def test_a_follower_goes_on_over_a_restart(
    own_redis: RedisServer, own_driver: RedisSessionPersistDriver
) -> None:
    other = RedisSessionPersistDriver(own_redis.url())
    seen: list[int] = []
    with anyio.fail_after(SECONDS):
        async with aclosing(other.follow_events("s")) as following:
            for round_ in range(3):
                for number in range(5):
                    event = make_event(f"{round_}-{number}")
                    await own_driver.append_events("s", [event])
                    assert (await anext(following)).event_index == event.event_index
                    seen.append(event.event_index)
                await anyio.to_thread.run_sync(own_redis.restart)
    assert seen == list(range(1, 16))
    await other.close()


async def test_a_follower_ends_with_an_outage_that_is_longer_than_a_call(own_redis: RedisServer) -> None:
    driver = RedisSessionPersistDriver(own_redis.url(), timeout=0.5)
    await driver.append_events("s", [make_event("a")])
    with anyio.fail_after(SECONDS):
        async with aclosing(driver.follow_events("s")) as following:
            assert (await anext(following)).id == "a"
            await anyio.to_thread.run_sync(own_redis.kill)
            with pytest.raises(PersistError, match="can't be reached"):
                await anext(following)
    await driver.close()


async def test_a_follower_goes_on_with_a_session_that_was_made_again(
    own_driver: RedisSessionPersistDriver,
) -> None:
    with anyio.fail_after(SECONDS):
        for _ in range(5):
            await own_driver.append_events("s", [make_event("a"), make_event("b")])
            async with aclosing(own_driver.follow_events("s")) as following:
                assert [(await anext(following)).id, (await anext(following)).id] == ["a", "b"]
                await own_driver.delete_session("s")
                await own_driver.append_events("s", [make_event("c")])
                async with aclosing(own_driver.follow_events("s", after=1)) as again:
                    assert [event async for event in following] == []
                    await own_driver.append_events("s", [make_event("d")])
                    assert (await anext(again)).id == "d"
            await own_driver.delete_session("s")


async def test_scripts_are_known_again_after_a_restart(
    own_redis: RedisServer, own_driver: RedisSessionPersistDriver
) -> None:
    await own_driver.append_events("s", [make_event("a")])
    own_redis.call("SCRIPT", "FLUSH")
    await own_driver.append_events("s", [make_event("b")])
    own_redis.restart()
    await own_driver.append_events("s", [make_event("c")])
    assert numbers(await all_events(own_driver, "s")) == [("a", 1), ("b", 2), ("c", 3)]


async def test_the_password_is_in_no_error_and_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts: list[str] = []
    with RedisServer(tmp_path, password="s3cret-word") as server:
        good = RedisSessionPersistDriver(server.url())
        await good.append_events("s", [make_event("a")])
        bad = RedisSessionPersistDriver(server.url().replace("s3cret-word", "wr0ng-word"))
        with pytest.raises(PersistError, match="knows no such name and password") as refused:
            await bad.append_events("s", [make_event("a")])
        texts += [str(refused.value), repr(refused.value), repr(good), repr(bad)]
        await bad.close()
    with pytest.raises(PersistError, match="can't be reached") as away:
        await good.append_events("s", [make_event("b")])
    texts.append(repr(away.value))
    await good.close()
    for url in (
        "redis://:s3cret-word@host:port/0",
        "http://:s3cret-word@host",
        "redis://:s3cret-word@h/x?db=y",
    ):
        with pytest.raises(ValueError, match="URL") as wrong:
            RedisSessionPersistDriver(url)
        texts.append(str(wrong.value))
    assert "word" not in "\n".join([*texts, caplog.text]).replace("password", "")
