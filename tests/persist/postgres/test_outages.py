"""The server goes away: the caller is told, nothing acknowledged is missing, nothing is twice."""

from __future__ import annotations

import importlib
from contextlib import aclosing
from typing import Any

import anyio
import pytest

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver
from sandbox_agent.testing.drivers import all_events, make_event, make_session
from tests.support.postgres import PostgresServer
from tests.support.proxy import TcpProxy

pytestmark = pytest.mark.anyio

_asyncpg: Any = importlib.import_module("asyncpg")


@pytest.fixture
def server(own_postgres: PostgresServer) -> PostgresServer:
    """A server that the test may end; it runs when the test begins."""
    if not own_postgres.running:
        own_postgres.start()
    return own_postgres


def _through(proxy: TcpProxy, dsn: str, server: PostgresServer) -> str:
    return dsn.replace(f":{server.port}/", f":{proxy.port}/")


async def _retried(driver: PostgresSessionPersistDriver, session_id: str, event_id: str) -> None:
    """Append as a program does that is told of a failure: again, until it is acknowledged."""
    while True:
        try:
            await driver.append_events(session_id, [make_event(event_id, session_id)])
        except PersistError:
            await anyio.sleep(0.02)
        else:
            return


async def test_driver_keeps_what_it_acknowledged_when_the_server_is_killed_in_the_middle(
    server: PostgresServer,
) -> None:
    """Twenty sessions append while it dies thrice; each event is there once, in its session's order."""
    driver = PostgresSessionPersistDriver(server.create_database())
    failures: list[PersistError] = []
    acknowledged: dict[str, list[str]] = {f"s{number}": [] for number in range(20)}
    progress = anyio.Event()

    async def write(session_id: str) -> None:
        nonlocal progress
        for number in range(60):
            event = make_event(f"{session_id}-{number}", session_id)
            while True:
                try:
                    await driver.append_events(session_id, [event])
                except PersistError as error:
                    failures.append(error)
                    await anyio.sleep(0.02)
                else:
                    break
            acknowledged[session_id].append(event.id)
            assert event.event_index == number + 1
            progress.set()
            progress = anyio.Event()

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            for session_id in acknowledged:
                group.start_soon(write, session_id)
            for count in (200, 500, 800):
                while sum(map(len, acknowledged.values())) < count:
                    await progress.wait()
                server.kill()
                await anyio.sleep(0.1)
                server.start()
    assert failures
    assert all(error.session_id in acknowledged for error in failures)
    for session_id, event_ids in acknowledged.items():
        events = await all_events(driver, session_id)
        assert [event.id for event in events] == event_ids
        assert [event.event_index for event in events] == list(range(1, 61))
    await driver.close()


async def test_driver_goes_on_when_the_server_was_restarted(server: PostgresServer) -> None:
    """Nobody is told of a restart between two calls."""
    driver = PostgresSessionPersistDriver(server.create_database())
    await driver.append_events("s", [make_event("a")])
    generation = await driver.claim_session("s")
    server.restart()
    await driver.append_events("s", [make_event("b")], generation=generation)
    assert [event.id for event in await all_events(driver, "s")] == ["a", "b"]
    await driver.close()


async def test_caller_is_told_when_the_server_is_away_and_goes_on_when_it_is_back(
    server: PostgresServer,
) -> None:
    """One line that says what, and that nothing was stored."""
    driver = PostgresSessionPersistDriver(server.create_database())
    await driver.append_events("s", [make_event("a")])
    server.stop()
    with pytest.raises(PersistError, match="can't be reached, nothing was stored") as caught:
        await driver.append_events("s", [make_event("b")])
    assert "\n" not in str(caught.value)
    with pytest.raises(PersistError, match="can't be reached"):
        await driver.list_events("s")
    server.start()
    await driver.append_events("s", [make_event("b")])
    assert [event.id for event in await all_events(driver, "s")] == ["a", "b"]
    await driver.close()


@pytest.mark.parametrize("passed", [True, False], ids=["stored", "not stored"])
async def test_driver_stores_once_when_the_connection_is_cut_in_the_middle_of_an_append(
    server: PostgresServer, passed: bool
) -> None:
    """Whether the server had committed or not: the driver asks again, and ids tell."""
    dsn = server.create_database()
    async with TcpProxy(server.port) as proxy:
        driver = PostgresSessionPersistDriver(_through(proxy, dsn, server))
        await driver.append_events("s", [make_event("a")])
        proxy.trap(b"the-needle", passed=passed)
        events = [make_event("b", payload=b'{"text":"the-needle"}'), make_event("c")]
        await driver.append_events("s", events)
        assert proxy.sprung.is_set()
        assert [event.event_index for event in events] == [2, 3]
        assert [event.id for event in await all_events(driver, "s")] == ["a", "b", "c"]
        await driver.close()


async def test_caller_is_told_that_the_outcome_is_unknown_when_the_network_is_away_behind_a_commit(
    server: PostgresServer,
) -> None:
    """The same call again, later, finds what was stored."""
    dsn = server.create_database()
    async with TcpProxy(server.port) as proxy:
        driver = PostgresSessionPersistDriver(_through(proxy, dsn, server))
        await driver.append_events("s", [make_event("a")])
        proxy.trap(b"the-needle", passed=True)

        async def refuse() -> None:
            await proxy.sprung.wait()
            proxy.refuse()

        event = make_event("b", payload=b'{"text":"the-needle"}')
        async with anyio.create_task_group() as group:
            group.start_soon(refuse)
            with pytest.raises(PersistError):
                await driver.append_events("s", [event])
        assert event.event_index == 0
        proxy.accept()
        await driver.append_events("s", [event, make_event("c")])
        assert event.event_index == 2
        assert [one.id for one in await all_events(driver, "s")] == ["a", "b", "c"]
        await driver.close()


async def test_driver_waits_no_longer_than_it_may_when_the_network_stalls(server: PostgresServer) -> None:
    """Nothing answers: an error in time, and everything works once it does."""
    dsn = server.create_database()
    async with TcpProxy(server.port) as proxy:
        driver = PostgresSessionPersistDriver(_through(proxy, dsn, server), timeout=0.3)
        await driver.append_events("s", [make_event("a")])
        proxy.stall()
        with anyio.fail_after(30):
            with pytest.raises(PersistError, match="did not answer in time"):
                await driver.append_events("s", [make_event("b")])
        proxy.resume()
        with anyio.fail_after(30):
            await _retried(driver, "s", "b")
        assert [event.id for event in await all_events(driver, "s")] == ["a", "b"]
        await driver.close()


async def test_driver_refuses_to_begin_a_history_anew_when_the_server_comes_back_empty(
    server: PostgresServer,
) -> None:
    """A failover to a server without the data: told, not mixed, also once somebody has made tables."""
    driver = PostgresSessionPersistDriver(server.dsn(), schema="one")
    await driver.update_session(make_session("s"))
    generation = await driver.claim_session("s")
    await driver.append_events("s", [make_event("a"), make_event("b")], generation=generation)
    server.empty()
    with pytest.raises(PersistError, match="lost the store's tables, nothing was stored"):
        await driver.append_events("s", [make_event("c")])
    newcomer = PostgresSessionPersistDriver(server.dsn(), schema="one")
    await newcomer.append_events("s", [make_event(f"n{number}") for number in range(5)])
    for call in (
        driver.append_events("s", [make_event("c")]),
        driver.append_events("s", [make_event("c")], generation=generation),
        driver.append_events("new", [make_event("x", "new")]),
        driver.update_session(make_session("s")),
        driver.claim_session("s"),
        driver.insert_event("s", make_event("c", index=9)),
        driver.delete_session("s"),
    ):
        with pytest.raises(PersistError, match="does not have what it had acknowledged"):
            await call
    assert [event.id for event in await all_events(newcomer, "s")] == [f"n{number}" for number in range(5)]
    await driver.close()
    await newcomer.close()


async def test_driver_refuses_to_go_on_when_an_older_copy_of_the_store_is_back(postgres_dsn: str) -> None:
    """A standby that lagged: indexes that were given are not given again."""
    driver = PostgresSessionPersistDriver(postgres_dsn)
    await driver.append_events("s", [make_event(f"e{number}") for number in range(5)])
    connection = await _asyncpg.connect(postgres_dsn, statement_cache_size=0)
    await connection.execute(
        "DELETE FROM events WHERE event_index > 2; UPDATE session_writers SET last_index = 2"
    )
    await connection.close()
    with pytest.raises(PersistError, match="does not have what it had acknowledged"):
        await driver.append_events("s", [make_event("new")])
    # Whoever did not know better goes on.
    newcomer = PostgresSessionPersistDriver(postgres_dsn)
    event = make_event("new")
    await newcomer.append_events("s", [event])
    assert event.event_index == 3
    await newcomer.close()
    await driver.close()


async def test_driver_writes_a_session_anew_that_another_one_deleted(postgres_dsn: str) -> None:
    """A deletion is no loss: who claimed nothing begins at 1, who claimed is refused."""
    driver = PostgresSessionPersistDriver(postgres_dsn)
    other = PostgresSessionPersistDriver(postgres_dsn)
    generation = await driver.claim_session("s")
    await driver.append_events("s", [make_event("a"), make_event("b")])
    await other.delete_session("s")
    with pytest.raises(SessionFencedError):
        await driver.append_events("s", [make_event("c")], generation=generation)
    event = make_event("c")
    await driver.append_events("s", [event])
    assert event.event_index == 1
    await driver.close()
    await other.close()


async def test_follower_misses_nothing_when_the_server_is_killed_and_comes_back(
    server: PostgresServer,
) -> None:
    """It waits, listens again, and reads what it has not heard of."""
    dsn = server.create_database()
    reader, writer = PostgresSessionPersistDriver(dsn), PostgresSessionPersistDriver(dsn)
    await writer.append_events("s", [make_event("e0")])
    seen: list[str] = []
    arrived = anyio.Event()
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:

            async def follow() -> None:
                nonlocal arrived
                async with aclosing(reader.follow_events("s")) as events:
                    async for event in events:
                        seen.append(event.id)
                        arrived.set()
                        arrived = anyio.Event()
                        if event.id == "e30":
                            return

            group.start_soon(follow)
            while not seen:
                await arrived.wait()
            for number in range(1, 31):
                await _retried(writer, "s", f"e{number}")
                if number % 10 == 0 and number < 30:
                    server.kill()
                    await anyio.sleep(0.1)
                    server.start()
    assert seen == [f"e{number}" for number in range(31)]
    await reader.close()
    await writer.close()


async def test_pool_that_was_handed_in_is_used_and_stays_open(postgres_dsn: str) -> None:
    """Also after an error, and with followers that listened on one of its connections."""
    async with _asyncpg.create_pool(postgres_dsn, min_size=1, max_size=3) as pool:
        driver = PostgresSessionPersistDriver(pool=pool)
        await driver.append_events("s", [make_event("a")])
        async with aclosing(driver.follow_events("s")) as events:
            assert (await anext(events)).id == "a"
        with pytest.raises(PersistError):
            await driver.insert_event("s", make_event("b", index=1))
        await driver.close()
        assert await pool.fetchval("SELECT count(*) FROM events") == 1
        with pytest.raises(PersistError, match="was closed"):
            await driver.get_session("s")
        assert pool.get_idle_size() == pool.get_size()


async def test_driver_survives_cuts_at_any_byte(server: PostgresServer) -> None:
    """The connection ends after N bytes, in whichever message that is: retried, each event is there once."""
    dsn = server.create_database()
    async with TcpProxy(server.port) as proxy:
        driver = PostgresSessionPersistDriver(_through(proxy, dsn, server))
        await driver.append_events("s", [make_event("first")])
        for count in range(1, 1_200, 97):
            for direction in ("up", "down"):
                proxy.drop_after(count, direction)
                await _retried(driver, "s", f"{direction}-{count}")
        await driver.close()
    reader = PostgresSessionPersistDriver(dsn)
    events = await all_events(reader, "s")
    assert [event.event_index for event in events] == list(range(1, 28))
    assert len({event.id for event in events}) == 27
    await reader.close()
