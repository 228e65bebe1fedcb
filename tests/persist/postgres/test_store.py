"""What only the PostgreSQL driver does: its tables, its locks, its one listener, its messages."""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
import traceback
from contextlib import aclosing
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver
from sandbox_agent.testing.drivers import all_events, all_sessions, make_event, make_session
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.anyio

_asyncpg: Any = importlib.import_module("asyncpg")

# The tables as a program makes them that knows seed 002's columns and nothing of ours: JSONB, and integers.
_PEERS_TABLES = """
CREATE TABLE sessions (
  id TEXT PRIMARY KEY, agent TEXT NOT NULL, agent_session_id TEXT NOT NULL, last_connection_id TEXT NOT NULL,
  created_at BIGINT NOT NULL, destroyed_at BIGINT, session_init_json JSONB
);
CREATE TABLE events (
  id TEXT PRIMARY KEY, event_index INTEGER NOT NULL, session_id TEXT NOT NULL, created_at BIGINT NOT NULL,
  connection_id TEXT NOT NULL, sender TEXT NOT NULL, payload_json JSONB NOT NULL
);
CREATE INDEX idx_events_session_order ON events (session_id, event_index, id);
INSERT INTO sessions VALUES ('s', 'mock', 'agent-s', 'c', 1700000000000, NULL, '{"cwd": "/w"}');
INSERT INTO events VALUES
  ('a', 1, 's', 1700000000001, 'c', 'client', '{"id": 1}'),
  ('b', 2, 's', 1700000000002, 'c', 'agent', '{"id": 2}'),
  ('c', 2, 's', 1700000000003, 'c', 'agent', '{"id": 3}')
"""
_PEERS_INSERT = """
INSERT INTO events (id, event_index, session_id, created_at, connection_id, sender, payload_json)
VALUES ($1, $2, $3, 1, 'c', 'agent', $4)
ON CONFLICT (id) DO UPDATE SET event_index = excluded.event_index, payload_json = excluded.payload_json
"""


async def _execute(dsn: str, statement: str, *values: object) -> Any:
    connection = await _asyncpg.connect(dsn, statement_cache_size=0)
    try:
        return await (connection.fetch(statement, *values) if values else connection.execute(statement))
    finally:
        await connection.close()


async def test_drivers_make_the_tables_once_when_many_begin_at_the_same_time(postgres_dsn: str) -> None:
    """None fails, and all write into one store."""
    drivers = [PostgresSessionPersistDriver(postgres_dsn, schema="new", max_size=1) for _ in range(10)]
    async with anyio.create_task_group() as group:
        for number, driver in enumerate(drivers):
            group.start_soon(driver.append_events, "s", [make_event(f"e{number}")])
    events = await all_events(drivers[0], "s")
    assert [event.event_index for event in events] == list(range(1, 11))
    for driver in drivers:
        await driver.close()


async def test_driver_opens_a_database_that_a_peer_wrote(postgres_dsn: str) -> None:
    """Its rows are read, an index that is there twice is given anew, JSON is kept as it comes from now on."""
    await _execute(postgres_dsn, _PEERS_TABLES)
    driver = PostgresSessionPersistDriver(postgres_dsn)
    (session,) = await all_sessions(driver)
    assert (session.created_at, session.session_init, session.modes) == (
        1_700_000_000_000,
        {"cwd": "/w"},
        None,
    )
    assert [(event.event_index, event.payload) for event in await all_events(driver, "s")] == [
        (1, {"id": 1}),
        (2, {"id": 2}),
        (3, {"id": 3}),
    ]
    payload = b'{"b":1, "a":"\\u0000 \\ud800", "a":2,"n":1.10}'
    await driver.append_events("s", [make_event("d", payload=payload)])
    assert (await driver.tail_events("s", limit=1))[0].payload_json == payload
    await driver.close()


async def test_peer_goes_on_writing_a_database_that_the_driver_migrated(postgres_dsn: str) -> None:
    """Its statements work as before; the driver numbers on behind what it stored, and followers see it."""
    await _execute(postgres_dsn, _PEERS_TABLES)
    driver = PostgresSessionPersistDriver(postgres_dsn)
    await driver.append_events("s", [make_event("d")])
    async with aclosing(driver.follow_events("s", after=4)) as events:
        first = anext(events)
        await _execute(postgres_dsn, _PEERS_INSERT, "peer", 5, "s", '{"jsonrpc":"2.0"}')
        with anyio.fail_after(20):
            assert (await first).id == "peer"
    mine = make_event("e")
    await driver.append_events("s", [mine])
    assert mine.event_index == 6
    await driver.close()


async def test_driver_refuses_tables_of_another_program_and_changes_nothing(postgres_dsn: str) -> None:
    """A table 'sessions' is nothing rare."""
    await _execute(postgres_dsn, "CREATE TABLE sessions (id TEXT PRIMARY KEY, cookie TEXT)")
    driver = PostgresSessionPersistDriver(postgres_dsn)
    with pytest.raises(PersistError, match="belongs to another program, name another schema"):
        await driver.get_session("s")
    rows = await _execute(postgres_dsn, "SELECT to_regclass($1)::text", "public.events")
    assert rows[0][0] is None
    await driver.close()
    beside = PostgresSessionPersistDriver(postgres_dsn, schema="sandbox_agent")
    await beside.update_session(make_session("s"))
    assert await beside.get_session("s") == make_session("s")
    await beside.close()


async def test_driver_migrates_a_store_of_the_first_version(postgres_dsn: str) -> None:
    driver = PostgresSessionPersistDriver(postgres_dsn)
    generation = await driver.claim_session("s")
    await driver.append_events("s", [make_event("a")], generation=generation)
    await driver.close()
    identity = await _execute(postgres_dsn, "SELECT store_id FROM session_store")
    await _execute(postgres_dsn, "ALTER TABLE session_writers DROP COLUMN head, DROP COLUMN head_time")
    await _execute(postgres_dsn, "UPDATE session_store SET version = 1")
    drivers = [PostgresSessionPersistDriver(postgres_dsn) for _ in range(3)]
    async with anyio.create_task_group() as group:
        for driver in drivers:
            group.start_soon(driver.last_event_index, "s")
    await drivers[0].append_events("s", [make_event("b")], generation=generation)
    head = make_event("head", "head", 1)
    await drivers[1].append_sealed("s", [make_event("c", index=3)], head, after=2, generation=generation)
    found = await drivers[2].find_head("s", "head")
    assert found is not None
    assert found.payload_json == head.payload_json
    assert [event.id for event in await drivers[2].tail_events("s", limit=9)] == ["a", "b", "c"]
    assert await _execute(postgres_dsn, "SELECT store_id FROM session_store") == identity
    for driver in drivers:
        await driver.close()


async def test_driver_refuses_a_store_of_a_newer_version(postgres_dsn: str) -> None:
    """It can't know what that version wrote."""
    driver = PostgresSessionPersistDriver(postgres_dsn)
    await driver.update_session(make_session("s"))
    await driver.close()
    await _execute(postgres_dsn, "UPDATE session_store SET version = 3")
    driver = PostgresSessionPersistDriver(postgres_dsn)
    with pytest.raises(PersistError, match="schema version 3 and this release reads up to 2: upgrade"):
        await driver.get_session("s")
    await driver.close()


async def test_drivers_keep_one_history_when_two_processes_write_it_at_once(postgres_dsn: str) -> None:
    """Neither claims it: contiguous, none lost, none twice."""
    drivers = [PostgresSessionPersistDriver(postgres_dsn) for _ in range(2)]

    async def write(number: int, task: int) -> None:
        for count in range(15):
            await drivers[number].append_events("s", [make_event(f"{number}-{task}-{count}")])

    async with anyio.create_task_group() as group:
        for number in range(2):
            for task in range(4):
                group.start_soon(write, number, task)
    events = await all_events(drivers[0], "s", limit=1_000)
    assert [event.event_index for event in events] == list(range(1, 121))
    for driver in drivers:
        await driver.close()


async def test_session_that_is_held_locked_does_not_hold_up_the_others(postgres_dsn: str) -> None:
    """Somebody's open transaction holds one: the others are stored, that one as soon as it is free."""
    driver = PostgresSessionPersistDriver(postgres_dsn)
    for session_id in ("held", "free"):
        await driver.append_events(session_id, [make_event(f"{session_id}-1", session_id)])
    connection = await _asyncpg.connect(postgres_dsn, statement_cache_size=0)
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SELECT FROM session_writers WHERE session_id = 'held' FOR UPDATE")
    done = anyio.Event()

    async def append_held() -> None:
        await driver.append_events("held", [make_event("held-2", "held")])
        await driver.append_events("held", [make_event("held-3", "held")])
        done.set()

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(append_held)
            for number in range(2, 12):
                await driver.append_events("free", [make_event(f"free-{number}", "free")])
            assert not done.is_set()
            await transaction.rollback()
            await done.wait()
    assert [event.id for event in await all_events(driver, "held")] == ["held-1", "held-2", "held-3"]
    await connection.close()
    await driver.close()


async def test_bad_append_harms_none_of_those_that_are_stored_with_it(postgres_dsn: str) -> None:
    """One statement for all that wait; a value that PostgreSQL refuses is its caller's alone."""
    driver = PostgresSessionPersistDriver(postgres_dsn)
    await driver.append_events("s0", [make_event("first", "s0")])
    errors: list[PersistError] = []

    async def append(number: int) -> None:
        payload = b"no JSON at all" if number == 7 else None
        try:
            await driver.append_events(
                f"s{number}", [make_event(f"e{number}", f"s{number}", payload=payload)]
            )
        except PersistError as error:
            errors.append(error)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(append, number)
    (error,) = errors
    assert error.session_id == "s7"
    assert "can't hold a value, nothing was stored" in str(error)
    for number in range(20):
        assert [one.id for one in await all_events(driver, f"s{number}")][-1:] == (
            [] if number == 7 else [f"e{number}"]
        )
    await driver.close()


async def test_followers_share_one_connection_that_listens(postgres_dsn: str) -> None:
    """However many they are; and it is gone with the last of them."""
    driver = PostgresSessionPersistDriver(postgres_dsn)
    await driver.append_events("s", [make_event("a")])
    started = 0
    ready, finish = anyio.Event(), anyio.Event()

    async def follow() -> None:
        nonlocal started
        async with aclosing(driver.follow_events("s")) as events:
            await anext(events)
            started += 1
            if started == 20:
                ready.set()
            await finish.wait()

    async def listening() -> int:
        rows = await _execute(
            postgres_dsn,
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE $1",
            "LISTEN%",
        )
        return int(rows[0][0])

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(follow)
            await ready.wait()
            # What is stored is read before the connection listens.
            while not (count := await listening()):
                pass
            assert count == 1
            finish.set()
        while await listening() > 0:
            pass
    await driver.close()


async def test_follower_goes_on_when_the_listening_connection_is_cut(
    postgres_dsn: str, postgres: PostgresServer
) -> None:
    """What is stored before it listens again is not missed."""
    driver = PostgresSessionPersistDriver(postgres_dsn)
    with anyio.fail_after(20):
        async with aclosing(driver.follow_events("s")) as events:
            await driver.append_events("s", [make_event("e0")])
            assert (await anext(events)).id == "e0"
            for number in range(1, 4):
                await _execute(
                    postgres_dsn,
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND query LIKE $1",
                    "LISTEN%",
                )
                await driver.append_events("s", [make_event(f"e{number}")])
                assert (await anext(events)).id == f"e{number}"
    await driver.close()


async def test_follower_looks_by_itself_when_the_pool_has_no_connection_to_spare(postgres_dsn: str) -> None:
    """A pool of one connection is left to the others."""
    async with _asyncpg.create_pool(postgres_dsn, min_size=1, max_size=1) as pool:
        driver = PostgresSessionPersistDriver(pool=pool)
        with anyio.fail_after(20):
            async with aclosing(driver.follow_events("s")) as events:
                for number in range(3):
                    await driver.append_events("s", [make_event(f"e{number}")])
                    assert (await anext(events)).id == f"e{number}"
        await driver.close()


async def test_pages_deep_in_a_session_are_read_by_the_index(postgres_dsn: str) -> None:
    """No sort and no reading of what was passed: the page at the end costs what the first costs."""
    driver = PostgresSessionPersistDriver(postgres_dsn)
    await driver.append_events("s", [make_event("first")])
    await _execute(
        postgres_dsn,
        "INSERT INTO events SELECT 'g' || n, n, 's', n, 'c', 'agent', '{}' FROM generate_series(2, 50000) n",
    )
    await _execute(postgres_dsn, "ANALYZE events")
    page = await driver.list_events("s", cursor=driver.cursor_after(49_950))
    assert [event.event_index for event in page.items] == list(range(49_951, 50_001))
    plan = await _execute(
        postgres_dsn,
        "EXPLAIN SELECT * FROM events WHERE session_id = $1 AND event_index >= $2 "
        'AND (event_index, id COLLATE "C") > ($2, $3) ORDER BY event_index LIMIT 101',
        "s",
        49_900,
        "",
    )
    text = "\n".join(row[0] for row in plan)
    assert "Index Scan using idx_events_session_index" in text
    assert "Sort" not in text
    await driver.close()


@pytest.mark.parametrize("trouble", ["password", "port", "database", "unescaped", "scheme"])
async def test_password_is_never_shown(
    postgres: PostgresServer, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    """Not in messages, tracebacks, logs or the driver's own name, whatever is wrong."""
    caplog.set_level(logging.DEBUG)
    secret = "s3cret-p%40ss"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        dsn = {
            "password": f"postgresql://postgres:{secret}@127.0.0.1:{postgres.port}/postgres",
            "port": f"postgresql://postgres:{secret}@127.0.0.1:{unused.getsockname()[1]}/postgres",
            "database": f"postgresql://postgres@127.0.0.1:{postgres.port}/nowhere?password={secret}",
            "unescaped": "postgresql://postgres:1/s3cret@127.0.0.1/postgres",
            "scheme": f"nonsense://postgres:{secret}@127.0.0.1/postgres",
        }[trouble]
        driver = PostgresSessionPersistDriver(dsn)
        with pytest.raises(PersistError) as caught:
            await driver.get_session("s")
        await driver.close()
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(driver) + str(caught.value)
    assert "s3cret" not in shown
    assert "\n" not in str(caught.value)


def test_driver_is_not_made_of_two_sources_or_an_impossible_schema() -> None:
    pool: Any = object()
    with pytest.raises(ValueError, match="not both"):
        PostgresSessionPersistDriver("postgresql://127.0.0.1/x", pool=pool)
    for schema in ("", "a\0b", "x" * 64):
        with pytest.raises(ValueError, match="schema's name"):
            PostgresSessionPersistDriver("postgresql://127.0.0.1/x", schema=schema)


async def test_the_driver_is_refused_in_another_event_loop_and_goes_on_in_its_own(postgres_dsn: str) -> None:
    driver = PostgresSessionPersistDriver(postgres_dsn)
    await driver.append_events("s", [make_event("a")])

    async def elsewhere() -> None:
        with pytest.raises(PersistError, match="belong to another event loop, nothing was done"):
            await driver.append_events("s", [make_event("b")])
        with pytest.raises(PersistError, match="belong to another event loop"):
            await driver.list_events("s")
        with pytest.raises(PersistError, match="belong to another event loop"):
            await anext(driver.follow_events("s"))

    with anyio.fail_after(60):
        await anyio.to_thread.run_sync(asyncio.run, elsewhere())
    await driver.append_events("s", [make_event("b")])
    assert [event.id for event in await all_events(driver, "s")] == ["a", "b"]
    await driver.close()
