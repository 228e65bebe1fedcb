"""The persist drivers' table: each driver on a store of its own, PostgreSQL and Redis as real servers."""

from __future__ import annotations

import asyncio
import json
import secrets
import statistics
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tests.support.npm import BETTER_SQLITE, node_modules
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer

from benchmarks.drivers import (
    KILOBYTE,
    append_batches,
    append_from_sessions,
    append_one_by_one,
    follow,
    pages,
    read_all,
)
from benchmarks.raw_stores import raw_postgres, raw_redis, raw_sqlite
from benchmarks.sdk import fill, run_resume
from benchmarks.table import DriverRow, show_drivers
from sandbox_agent import InMemorySessionPersistDriver, SessionPersistDriver, SQLiteSessionPersistDriver
from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver
from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver
from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver

__all__ = ["driver_rows"]

MILLION = 1_000_000
BATCHES = 200
SINGLES = 1_000
SESSIONS = 64
RESUMES = 20
PAGES = 100
FOLLOWERS = 50
# The longest a restore may take, by driver, in seconds.
RESUME_BARS = {"sqlite": 0.020, "postgres": 0.030, "redis": 0.030}


class _Kind(NamedTuple):
    """A driver, how another object of it on the same store is made, and the raw loop beside it."""

    driver: SessionPersistDriver
    another: Callable[[], SessionPersistDriver]
    raw: Callable[[int], Awaitable[float]] | None


async def driver_rows(url: str, agent: str, folder: Path, rounds: int) -> list[DriverRow]:
    """Run all rows against the server at ``url``, whose agent the restores are of."""
    async with _kinds(folder) as kinds:
        return [
            *await _appends(kinds, folder, rounds),
            *await _long_histories(kinds, url, agent),
            await _followed(kinds),
        ]


@asynccontextmanager
async def _kinds(folder: Path) -> AsyncGenerator[dict[str, _Kind]]:
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(PostgresServer(durable=True))
        redis_folder = folder / "redis"
        redis_folder.mkdir()
        log = ("--appendonly", "yes", "--appendfsync", "everysec")
        redis = stack.enter_context(RedisServer(redis_folder, options=log))
        dsn, redis_url = postgres.create_database(), redis.url()
        database = folder / "drivers.db"

        def memory() -> SessionPersistDriver:
            return InMemorySessionPersistDriver(max_events_per_session=2 * MILLION)

        def sqlite() -> SessionPersistDriver:
            return SQLiteSessionPersistDriver(database)

        def in_postgres() -> SessionPersistDriver:
            return PostgresSessionPersistDriver(dsn)

        def in_redis() -> SessionPersistDriver:
            return RedisSessionPersistDriver(redis_url)

        async def beside_sqlite(batches: int) -> float:
            return await asyncio.to_thread(raw_sqlite, folder / "raw.db", batches)

        kinds: dict[str, _Kind] = {
            "memory": _Kind(memory(), memory, None),
            "sqlite": _Kind(sqlite(), sqlite, beside_sqlite),
            "postgres": _Kind(in_postgres(), in_postgres, partial(raw_postgres, dsn)),
            "redis": _Kind(in_redis(), in_redis, partial(raw_redis, redis_url)),
        }
        for kind in kinds.values():
            stack.push_async_callback(kind.driver.close)
        yield kinds


def _row(work: str, figures: dict[str, str], bar: str = "", passed: bool = True) -> DriverRow:
    memory, sqlite, postgres, redis = (
        figures.get(name, "") for name in ("memory", "sqlite", "postgres", "redis")
    )
    return show_drivers(DriverRow(work, memory, sqlite, postgres, redis, bar, passed))


async def _appends(kinds: dict[str, _Kind], folder: Path, rounds: int) -> list[DriverRow]:
    single: dict[str, str] = {}
    many: dict[str, str] = {}
    batched: dict[str, str] = {}
    encrypted: dict[str, str] = {}
    read: dict[str, str] = {}
    ratios: dict[str, float] = {}
    inserts = await asyncio.to_thread(_better_sqlite, folder)
    times_npm = 0.0
    for name, kind in kinds.items():
        single[name] = f"{await append_one_by_one(kind.driver, SINGLES):,.0f}/s"
        speeds = [await append_from_sessions(kind.driver, SESSIONS, 200) for _ in range(rounds)]
        many[name] = f"{statistics.median(speeds):,.0f}/s"
        if name == "sqlite":
            times_npm = statistics.median(speeds) / inserts
            many[name] += f" ({times_npm:.1f}x of {inserts:,.0f})"
        session_id = ""
        mine: list[float] = []
        pairs: list[float] = []
        for _ in range(rounds):
            speed, session_id = await append_batches(kind.driver, BATCHES)
            mine.append(speed)
            if kind.raw is not None:
                pairs.append(speed / await kind.raw(BATCHES))
        batched[name] = f"{statistics.median(mine):,.0f}/s"
        if pairs:
            ratios[name] = statistics.median(pairs)
            batched[name] += f" ({ratios[name]:.2f}x raw)"
        wrapped = EncryptedSessionPersistDriver(kind.driver, key=secrets.token_bytes(32))
        sealed = [(await append_batches(wrapped, BATCHES))[0] for _ in range(rounds)]
        share = statistics.median(sealed) / statistics.median(mine)
        encrypted[name] = f"{statistics.median(sealed):,.0f}/s ({share:.2f}x)"
        read[name] = f"{await read_all(kind.driver, session_id, BATCHES * 100):,.0f}/s"
    return [
        _row("append one event, then the next", single),
        _row(
            f"append one event at a time, {SESSIONS} sessions",
            many,
            "SQLite >= 10x better-sqlite3",
            times_npm >= 10,
        ),
        _row("append in batches of 100", batched, ">= 0.5x raw", min(ratios.values()) >= 0.5),
        _row("append in batches of 100, encrypted", encrypted),
        _row("read in pages of 100", read),
    ]


def _better_sqlite(folder: Path) -> float:
    """Return the inserts a second of the TypeScript driver's statement, one event a call."""
    count = 3_000
    script = Path(__file__).parent / "sqlite_insert.mjs"
    file = folder / "better.db"
    command = ["node", str(script), str(node_modules(BETTER_SQLITE)), str(file), str(count), str(KILOBYTE)]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=120).stdout)
    return count / answer["seconds"]


async def _long_histories(kinds: dict[str, _Kind], url: str, agent: str) -> list[DriverRow]:
    paged: dict[str, str] = {}
    resumed: dict[str, str] = {}
    pages_pass = resumes_pass = True
    for name, bar in RESUME_BARS.items():
        driver = kinds[name].driver
        short_id = await fill(driver, agent, events=1_000)
        long_id = await fill(driver, agent, events=MILLION)
        first, last = await pages(driver, long_id, MILLION, PAGES)
        paged[name] = f"{last * 1e6:,.0f} us ({last / first:.2f}x)"
        pages_pass = pages_pass and last <= 2 * first
        short = await run_resume(url, agent, driver, short_id, rounds=RESUMES)
        long = await run_resume(url, agent, driver, long_id, rounds=RESUMES)
        resumed[name] = f"{long * 1e3:.1f} ms ({long / short:.2f}x)"
        resumes_pass = resumes_pass and long <= bar and long <= 2 * short
    return [
        _row("page of 100 at the end of 1,000,000", paged, "<= 2x of the first", pages_pass),
        _row(
            "resume_session with 1,000,000 events",
            resumed,
            "<= 20, 30, 30 ms, <= 2x of 1,000",
            resumes_pass,
        ),
    ]


async def _followed(kinds: dict[str, _Kind]) -> DriverRow:
    figures: dict[str, str] = {}
    passed = True
    for name, kind in kinds.items():
        reader = kind.driver if name == "memory" else kind.another()
        found = await follow(kind.driver, reader, followers=FOLLOWERS, events=1_000, rate=200)
        if reader is not kind.driver:
            await reader.close()
        figures[name] = f"p50 {found.p50 * 1e3:.1f} ms, p99 {found.p99 * 1e3:.1f}"
        passed = passed and found.p99 <= 0.010 and not found.wrong
    return _row(f"append to reader, {FOLLOWERS} followers", figures, "p99 <= 10 ms, none lost", passed)
