"""Raw loops over the drivers' own libraries: the same rows, on the same server, without a driver."""

from __future__ import annotations

import itertools
import sqlite3
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import asyncpg
import redis.asyncio

from benchmarks.drivers import PAGE, new_events
from sandbox_agent.wire.records import SessionEvent

__all__ = ["raw_postgres", "raw_redis", "raw_sqlite"]

_TABLE = """
CREATE TABLE {name} (
  id TEXT PRIMARY KEY, event_index {integer} NOT NULL, session_id TEXT NOT NULL,
  created_at {integer} NOT NULL, connection_id TEXT NOT NULL, sender TEXT NOT NULL, payload_json TEXT NOT NULL
)"""
_COLUMNS = ("id", "event_index", "session_id", "created_at", "connection_id", "sender", "payload_json")
_Row = tuple[str, int, str, int, str, str, str]


def _batches(count: int) -> Iterator[list[_Row]]:
    number = itertools.count(1)
    for _ in range(count):
        yield [_row(event, next(number)) for event in new_events("raw", PAGE)]


def _row(event: SessionEvent, index: int) -> _Row:
    text = event.payload_json.decode()
    return event.id, index, event.session_id, event.created_at, event.connection_id, event.sender, text


def raw_sqlite(path: Path, batches: int) -> float:
    """Return events a second of one transaction a batch, as durable as the driver's."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("DROP TABLE IF EXISTS raw_events")
    connection.execute(_TABLE.format(name="raw_events", integer="INTEGER"))
    connection.execute("CREATE UNIQUE INDEX raw_order ON raw_events(session_id, event_index)")
    rows = list(_batches(batches))
    begun = time.perf_counter()
    for batch in rows:
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT INTO raw_events VALUES (?, ?, ?, ?, ?, ?, ?)", batch)
        connection.execute("COMMIT")
    elapsed = time.perf_counter() - begun
    connection.close()
    return batches * PAGE / elapsed


async def raw_postgres(dsn: str, batches: int) -> float:
    """Return events a second of one COPY a batch."""
    connection: Any = await cast("Any", asyncpg).connect(dsn)
    try:
        await connection.execute("DROP TABLE IF EXISTS raw_events")
        await connection.execute(_TABLE.format(name="raw_events", integer="BIGINT"))
        await connection.execute("CREATE UNIQUE INDEX raw_order ON raw_events(session_id, event_index)")
        rows = list(_batches(batches))
        begun = time.perf_counter()
        for batch in rows:
            await connection.copy_records_to_table("raw_events", records=batch, columns=_COLUMNS)
        return batches * PAGE / (time.perf_counter() - begun)
    finally:
        await connection.close()


async def raw_redis(url: str, batches: int) -> float:
    """Return events a second of one pipeline of XADDs a batch."""
    client = redis.asyncio.from_url(url)
    try:
        await client.delete("raw-events")
        rows = list(_batches(batches))
        begun = time.perf_counter()
        for batch in rows:
            await _add(client, batch)
        return batches * PAGE / (time.perf_counter() - begun)
    finally:
        await client.aclose()


async def _add(client: redis.asyncio.Redis, batch: Sequence[_Row]) -> None:
    pipeline = client.pipeline(transaction=False)
    for row in batch:
        pipeline.xadd("raw-events", dict(zip(_COLUMNS, row, strict=True)), id=f"{row[1]}-0")
    await pipeline.execute()
