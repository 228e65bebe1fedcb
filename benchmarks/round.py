"""One round of figures of one checkout, as JSON: what ``benchmarks/compare.py`` runs in both in turn.

Run as a file with the checkout first on PYTHONPATH: the code under test and its own benchmarks are then that
checkout's. Every figure has a direction: ``rate`` (higher is better) or ``cost`` (lower is better).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import uvloop
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer
from tests.support.servers import ServerProcess, our_server, put_launcher

from benchmarks import drivers, history, sdk
from benchmarks.footprint import idle_viewers
from benchmarks.latency import run_latency
from benchmarks.sessions import follow, idle_session_viewers, record, run_pages, run_searches
from benchmarks.stream import run_burst
from sandbox_agent import (
    InMemorySessionPersistDriver,
    PostgresSessionPersistDriver,
    RedisSessionPersistDriver,
    SessionPersistDriver,
    SQLiteSessionPersistDriver,
)

MOCK = "mock"
HISTORY = 100_000


class Figures:
    """The figures of the round, by row."""

    def __init__(self) -> None:
        self.rows: dict[str, tuple[str, float]] = {}

    def rate(self, row: str, value: float) -> None:
        """Add a figure of which more is better."""
        self.rows[row] = ("rate", value)

    def cost(self, row: str, value: float) -> None:
        """Add a figure of which less is better."""
        self.rows[row] = ("cost", value)


async def median_of(count: int, measure: Callable[[], Awaitable[float]]) -> float:
    """Return the median of that many measurements."""
    return statistics.median([await measure() for _ in range(count)])


async def server_rows(server: ServerProcess, folder: Path, figures: Figures) -> None:
    """The server's rows: requests, bursts, recording, following, memory."""
    port = server.port
    for method in ("session/list", "session/set_mode"):
        seconds = await median_of(5, lambda method=method: run_latency(port, MOCK, method, requests=300))
        figures.cost(f"request {method}, p50", seconds)
    for events, size, readers in ((20_000, 200, 1), (20_000, 200, 10), (2_000, 8192, 1)):

        async def burst(events: int = events, size: int = size, readers: int = readers) -> float:
            return (await run_burst(port, MOCK, events=events, size=size, readers=readers)).events_per_second

        figures.rate(f"burst {events} x {size} B, {readers} readers", await median_of(3, burst))

    async def turn() -> float:
        database = folder / "turn.db"
        return (await sdk.run_turn(server.url, MOCK, database, events=20_000, size=200)).events_per_second

    figures.rate("SDK end to end into SQLite", await median_of(2, turn))
    figures.rate("recorded and indexed", await record(port, MOCK, envelopes=100_000, size=300))
    followed = await follow(port, viewers=100, events=1_000, rate=200)
    figures.cost("agent to viewer, 100 viewers, p50", followed.p50)
    figures.cost("agent to viewer, 100 viewers, p99", followed.p99)


async def full_store_rows(server: ServerProcess, figures: Figures) -> None:
    """Pages and searches of a store with a long history and many texts."""
    figures.cost("server page of 100", await run_pages(server.port, events=HISTORY, rounds=200))
    figures.cost("server search", await run_searches(server.port, rounds=60))


@asynccontextmanager
async def opened_drivers(folder: Path) -> AsyncGenerator[dict[str, Callable[[], SessionPersistDriver]]]:
    """Yield what makes drivers, each kind on a store of its own."""
    async with AsyncExitStack() as stack:
        postgres = stack.enter_context(PostgresServer(durable=True))
        (folder / "redis").mkdir()
        log = ("--appendonly", "yes", "--appendfsync", "everysec")
        redis = stack.enter_context(RedisServer(folder / "redis", options=log))
        dsn, redis_url = postgres.create_database(), redis.url()
        memory = InMemorySessionPersistDriver(max_events_per_session=2 * HISTORY)
        yield {
            "memory": lambda: memory,
            "SQLite": lambda: SQLiteSessionPersistDriver(folder / "drivers.db"),
            "PostgreSQL": lambda: PostgresSessionPersistDriver(dsn),
            "Redis": lambda: RedisSessionPersistDriver(redis_url),
        }


async def driver_rows(url: str, folder: Path, figures: Figures) -> None:
    """The rows of the persist drivers."""
    async with opened_drivers(folder) as kinds:
        for kind, make in kinds.items():
            driver, reader = make(), make()
            single = await median_of(3, lambda d=driver: drivers.append_one_by_one(d, 300))
            figures.rate(f"{kind}: append one, then the next", single)
            many = await median_of(3, lambda d=driver: drivers.append_from_sessions(d, 64, 60))
            figures.rate(f"{kind}: append one, 64 sessions", many)
            batches = [await drivers.append_batches(driver, 100) for _ in range(3)]
            figures.rate(f"{kind}: append batches of 100", statistics.median(speed for speed, _ in batches))
            read = await median_of(3, lambda d=driver, s=batches[0][1]: drivers.read_all(d, s, 10_000))
            figures.rate(f"{kind}: read pages of 100", read)
            seen = await drivers.follow(driver, reader, followers=50, events=400, rate=200)
            figures.cost(f"{kind}: append to follower, p50", seen.p50)
            if kind != "memory":
                long = await sdk.fill(driver, MOCK, events=HISTORY)
                _, last = await drivers.pages(driver, long, HISTORY, 100)
                figures.cost(f"{kind}: page of 100 at the end", last)
                resumed = await sdk.run_resume(url, MOCK, driver, long, rounds=10)
                figures.cost(f"{kind}: resume_session", resumed)
            for each in {id(one): one for one in (driver, reader)}.values():
                await each.close()


def main() -> None:
    """Measure everything once and print it."""
    figures = Figures()
    with tempfile.TemporaryDirectory(prefix="sandbox-agent-round-") as name:
        folder = Path(name)
        clock = Path(drivers.__file__).parent / "clock_agent.py"
        put_launcher(folder / "data", "clock", [sys.executable, str(clock)])
        store = f"sqlite:{folder / 'server.db'}"
        with our_server(folder, "--store", store) as server:
            figures.cost("server start", server.started_in)
            uvloop.run(server_rows(server, folder, figures))
            uvloop.run(driver_rows(server.url, folder, figures))
        for row, viewers in (
            ("memory of an idle viewer", idle_viewers),
            ("memory of an idle session viewer", idle_session_viewers),
        ):
            with our_server(folder, "--store", store) as server:
                figures.cost(row, uvloop.run(viewers(server, MOCK, viewers=1_000)))
        uvloop.run(history.fill(folder / "full.db", long=HISTORY, sessions=1_000, events=100))
        with our_server(folder, "--store", f"sqlite:{folder / 'full.db'}") as server:
            uvloop.run(full_store_rows(server, figures))
    print(json.dumps(figures.rows))


if __name__ == "__main__":
    main()
