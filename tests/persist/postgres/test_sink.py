"""The PostgreSQL sink: the seed's table, each event once, no holes."""

from __future__ import annotations

import importlib
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from sandbox_agent import PersistError, UniversalEvent
from sandbox_agent.client.sinks.postgres import PostgresSink
from sandbox_agent.wire.universal import decode_event
from tests.client.scripted_sessions import event
from tests.support.postgres import PostgresServer
from tests.support.proxy import TcpProxy

pytestmark = pytest.mark.anyio

_asyncpg: Any = importlib.import_module("asyncpg")


@pytest.fixture
async def sink(postgres_dsn: str) -> AsyncIterator[PostgresSink]:
    async with PostgresSink(postgres_dsn) as sink:
        yield sink


def events(first: int, last: int) -> list[UniversalEvent]:
    return [decode_event(event(sequence)) for sequence in range(first, last + 1)]


async def rows(dsn: str, columns: str = "sequence", table: str = "agent_events") -> list[tuple[Any, ...]]:
    connection = await _asyncpg.connect(dsn, statement_cache_size=0)
    try:
        return [
            tuple(row) for row in await connection.fetch(f"SELECT {columns} FROM {table} ORDER BY sequence")
        ]
    finally:
        await connection.close()


async def test_a_sink_knows_where_it_stands(sink: PostgresSink) -> None:
    assert await sink.last_sequence("s") == 0
    await sink.insert_events("s", events(1, 3))
    await sink.insert_events("s", [])
    await sink.insert_events("s", events(4, 4))
    assert await sink.last_sequence("s") == 4
    assert await sink.last_sequence("another") == 0


async def test_an_event_is_a_row_of_the_seeds_table(sink: PostgresSink, postgres_dsn: str) -> None:
    await sink.insert_events("s", events(1, 1))
    columns = (
        "event_id, session_id, native_session_id, sequence, to_char(time AT TIME ZONE 'UTC', "
        "'YYYY-MM-DD HH24:MI:SS.MS'), type, source, synthetic, data ->> 'delta', pg_typeof(data)::text"
    )
    assert await rows(postgres_dsn, columns) == [
        (
            *("evt_s_1", "s", None, 1, "2026-01-31 12:00:00.000"),
            *("item.delta", "agent", False, "1 ", "jsonb"),
        )
    ]


async def test_a_table_that_is_there_is_used(postgres_dsn: str) -> None:
    connection = await _asyncpg.connect(postgres_dsn, statement_cache_size=0)
    await connection.execute("""
        CREATE SCHEMA mine;
        CREATE TABLE mine.log (
          event_id TEXT PRIMARY KEY, session_id TEXT NOT NULL, native_session_id TEXT,
          sequence INTEGER NOT NULL, time TIMESTAMPTZ NOT NULL, type TEXT NOT NULL, source TEXT NOT NULL,
          synthetic BOOLEAN NOT NULL DEFAULT FALSE, data JSONB NOT NULL,
          noted TIMESTAMPTZ NOT NULL DEFAULT now(), UNIQUE (session_id, sequence)
        )
    """)
    await connection.close()
    async with PostgresSink(postgres_dsn, schema="mine", table="log") as sink:
        await sink.insert_events("s", events(1, 2))
    assert await rows(postgres_dsn, table="mine.log") == [(1,), (2,)]


async def test_an_event_that_is_there_is_not_stored_again(sink: PostgresSink, postgres_dsn: str) -> None:
    await sink.insert_events("s", events(1, 3))
    await sink.insert_events("s", events(2, 5))
    assert await rows(postgres_dsn) == [(1,), (2,), (3,), (4,), (5,)]


async def test_two_mirrors_of_one_session_store_each_event_once(
    sink: PostgresSink, postgres_dsn: str
) -> None:
    async with PostgresSink(postgres_dsn) as other, anyio.create_task_group() as group:
        for one in (sink, other):
            group.start_soon(one.insert_events, "s", events(1, 200))
            group.start_soon(one.insert_events, "s", events(1, 100))
    assert await rows(postgres_dsn) == [(number,) for number in range(1, 201)]


async def test_a_hole_is_refused_unless_allowed(sink: PostgresSink, postgres_dsn: str) -> None:
    with pytest.raises(PersistError, match="event 3 came, 1 is missing, nothing was stored"):
        await sink.insert_events("s", events(3, 4))
    assert await rows(postgres_dsn) == []
    async with PostgresSink(postgres_dsn, allow_gaps=True) as lenient:
        await lenient.insert_events("s", events(3, 4))
    assert await rows(postgres_dsn) == [(3,), (4,)]


async def test_another_event_under_a_stored_sequence_is_refused(sink: PostgresSink) -> None:
    await sink.insert_events("s", events(1, 2))
    stranger = json.loads(event(2))
    stranger["event_id"] = "evt_of_another_server"
    with pytest.raises(PersistError, match="another event 2 is stored"):
        await sink.insert_events("s", [decode_event(json.dumps(stranger).encode())])
    assert await sink.last_sequence("s") == 2


async def test_text_that_jsonb_can_not_hold_is_kept_as_near_as_it_gets(
    sink: PostgresSink, postgres_dsn: str
) -> None:
    odd = json.loads(event(1))
    odd["data"]["delta"] = "null \0, half \ud800, crab \U0001f980, not \\u0000"
    await sink.insert_events("s", [decode_event(json.dumps(odd).encode())])
    await sink.insert_events("s", [decode_event(json.dumps(odd).encode())])
    assert await rows(postgres_dsn, "data ->> 'delta'") == [
        ("null \ufffd, half \ufffd, crab \U0001f980, not \\u0000",)
    ]


@pytest.mark.parametrize("passed", [True, False], ids=["stored", "not stored"])
async def test_a_cut_connection_doubles_nothing(own_postgres: PostgresServer, passed: bool) -> None:
    dsn = own_postgres.create_database()
    async with (
        TcpProxy(own_postgres.port) as proxy,
        PostgresSink(dsn.replace(f":{own_postgres.port}/", f":{proxy.port}/")) as sink,
    ):
        await sink.insert_events("s", events(1, 3))
        proxy.trap(b"COMMIT", passed=passed)
        await sink.insert_events("s", events(4, 6))
        assert proxy.sprung.is_set()
        assert await sink.last_sequence("s") == 6
    assert await rows(dsn) == [(number,) for number in range(1, 7)]


async def test_a_pool_that_was_handed_in_stays_open(postgres_dsn: str) -> None:
    async with _asyncpg.create_pool(postgres_dsn, min_size=1, max_size=1) as pool:
        async with PostgresSink(pool=pool) as sink:
            await sink.insert_events("s", events(1, 2))
        assert await pool.fetchval("SELECT count(*) FROM agent_events") == 2
