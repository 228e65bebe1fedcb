"""``python -m benchmarks.chain``: what the chain of an encrypted session costs an append.

The encrypted driver appends beside the same driver as it was without the chain: each payload is sealed for
its event, and the store allocates the index. Both use one store, each with sessions of its own; their rounds
alternate, and so does which of them is first. Each figure is the median of its rounds, each ratio the median
of the rounds' ratios. CPU is that of this process: of the event loop and of the SQLite thread.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import secrets
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import uvloop
from tests.support.postgres import PostgresServer
from tests.support.redis import RedisServer

from benchmarks.table import as_markdown
from sandbox_agent import InMemorySessionPersistDriver, SessionPersistDriver, SQLiteSessionPersistDriver
from sandbox_agent.persist.base import UNFENCED, check_session
from sandbox_agent.persist.encrypted.chains import in_thread_if_large
from sandbox_agent.persist.encrypted.cipher import SessionCipher
from sandbox_agent.persist.encrypted.driver import (
    EncryptedSessionPersistDriver,
    _check_id,  # pyright: ignore[reportPrivateUsage] - what the driver did then
)
from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver
from sandbox_agent.persist.redis.driver import RedisSessionPersistDriver
from sandbox_agent.wire.records import SessionEvent

SESSIONS: Final = 50
STORES: Final = ("memory", "sqlite", "postgres", "redis")
BAR: Final = 1.10
_PAYLOAD: Final = (
    b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"x","update":{"sessionUpdate":'
    b'"agent_message_chunk","content":{"type":"text","text":"' + b"w" * 120 + b'"}}}}'
)


class Unchained(EncryptedSessionPersistDriver):
    """The encrypted driver before it had chains."""

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        _check_id(session_id)
        for event in events:
            check_session(session_id, event)
        cipher = await self._keys.obtain(session_id)
        sealed = await in_thread_if_large(events, lambda events: [_seal(cipher, event) for event in events])
        await self.inner.append_events(session_id, sealed, generation=generation)
        for event, stored in zip(events, sealed, strict=True):
            event.event_index = stored.event_index


def _seal(cipher: SessionCipher, event: SessionEvent) -> SessionEvent:
    sealed = event.copy()
    place = ("event", event.session_id, event.id, event.created_at, event.connection_id, event.sender)
    sealed.payload_json = cipher.seal(event.payload_json, place)
    return sealed


class Cost(NamedTuple):
    """Seconds of CPU and of time."""

    cpu: float
    wall: float


Work = Callable[[SessionPersistDriver, int], Awaitable[tuple[Cost, int]]]


def _events(session_id: str, count: int) -> list[SessionEvent]:
    # Ids of one length, made before the clock starts.
    return [
        SessionEvent(str(uuid.uuid4()), 0, session_id, 1_700_000_000_000, "connection", "agent", _PAYLOAD)
        for _ in range(count)
    ]


async def _open(driver: SessionPersistDriver) -> tuple[str, int]:
    """Return a new session that has an event, and its generation."""
    session_id = str(uuid.uuid4())
    generation = await driver.claim_session(session_id)
    await driver.append_events(session_id, _events(session_id, 1), generation=generation)
    return session_id, generation


async def _measure(work: Callable[[], Awaitable[None]]) -> Cost:
    gc.collect()
    gc.disable()
    cpu, wall = time.process_time(), time.perf_counter()
    await work()
    cost = Cost(time.process_time() - cpu, time.perf_counter() - wall)
    gc.enable()
    return cost


async def append_batches(driver: SessionPersistDriver, scale: int, *, size: int) -> tuple[Cost, int]:
    """Append batches to one session, each after the one before."""
    session_id, generation = await _open(driver)
    batches = [_events(session_id, size) for _ in range(max(1, scale // size))]

    async def work() -> None:
        for batch in batches:
            await driver.append_events(session_id, batch, generation=generation)

    return await _measure(work), size * len(batches)


async def append_at_once(driver: SessionPersistDriver, scale: int, *, size: int) -> tuple[Cost, int]:
    """Append batches to 50 sessions at once, each after the one before of its session."""
    opened = [await _open(driver) for _ in range(SESSIONS)]
    times = max(1, scale // size // SESSIONS)
    batches = [[_events(session_id, size) for _ in range(times)] for session_id, _ in opened]

    async def one(session_id: str, generation: int, mine: list[list[SessionEvent]]) -> None:
        for batch in mine:
            await driver.append_events(session_id, batch, generation=generation)

    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            for (session_id, generation), mine in zip(opened, batches, strict=True):
                group.create_task(one(session_id, generation, mine))

    return await _measure(work), SESSIONS * times * size


# Each row: its name, the work, and how many events of it are a round.
ROWS: Final[tuple[tuple[str, Work, int], ...]] = (
    ("one event, then the next", partial(append_batches, size=1), 400),
    ("batches of 100", partial(append_batches, size=100), 6_000),
    (f"one event at a time, {SESSIONS} sessions at once", partial(append_at_once, size=1), 5_000),
    (f"batches of 4, {SESSIONS} sessions at once", partial(append_at_once, size=4), 10_000),
)


@asynccontextmanager
async def _store(name: str, folder: Path) -> AsyncGenerator[SessionPersistDriver]:
    async with AsyncExitStack() as stack:
        if name == "memory":
            driver: SessionPersistDriver = InMemorySessionPersistDriver(
                max_sessions=100_000, max_events_per_session=100_000
            )
        elif name == "sqlite":
            driver = SQLiteSessionPersistDriver(folder / "chain.db")
        elif name == "postgres":
            postgres = stack.enter_context(PostgresServer(durable=True))
            driver = PostgresSessionPersistDriver(postgres.create_database())
        else:
            log = ("--appendonly", "yes", "--appendfsync", "everysec")
            redis = stack.enter_context(RedisServer(folder, options=log))
            driver = RedisSessionPersistDriver(redis.url())
        stack.push_async_callback(driver.close)
        yield driver


async def run(name: str, folder: Path, rounds: int) -> list[tuple[object, ...]]:
    """Return the rows of a store."""
    rows: list[tuple[object, ...]] = []
    async with _store(name, folder) as inner:
        key = secrets.token_bytes(32)
        chained, unchained = EncryptedSessionPersistDriver(inner, key=key), Unchained(inner, key=key)
        for work, measure, scale in ROWS:
            # Memory is fast: a round of it is longer, so that the clock's steps do not count.
            scale = scale * (5 if name == "memory" else 1)
            pairs: list[tuple[Cost, Cost]] = []
            count = 1
            for number in range(rounds + 1):
                order = (chained, unchained) if number % 2 else (unchained, chained)
                costs: dict[SessionPersistDriver, Cost] = {}
                for driver in order:
                    costs[driver], count = await measure(driver, scale)
                pairs.append((costs[chained], costs[unchained]))
            # The first round warms the caches.
            del pairs[0]
            cpu = statistics.median(mine.cpu / theirs.cpu for mine, theirs in pairs)
            wall = statistics.median(mine.wall / theirs.wall for mine, theirs in pairs)
            mine_us, theirs_us = (
                statistics.median(pair[which].cpu for pair in pairs) / count * 1e6 for which in (0, 1)
            )
            rows.append(
                (
                    name,
                    work,
                    f"{mine_us:.1f} us",
                    f"{theirs_us:.1f} us",
                    f"{cpu:.3f}x",
                    f"{wall:.3f}x",
                    cpu <= BAR,
                )
            )
            print(*rows[-1], sep=" | ", flush=True)
    return rows


def main() -> int:
    """Run all rows; the exit code is 1 if one of them costs more than the bar."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chain", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of each row (default: 9)")
    parser.add_argument("--stores", default=",".join(STORES), help="stores (default: all)")
    options = parser.parse_args()
    rows: list[tuple[object, ...]] = []
    for name in options.stores.split(","):
        with tempfile.TemporaryDirectory(prefix="sandbox-agent-bench-") as folder:
            rows += uvloop.run(run(name, Path(folder), options.rounds))
    columns = ("store", "append", "CPU/event", "CPU without chain", "CPU ratio", "wall ratio", "<= 1.10x CPU")
    print("\n".join(["", *as_markdown(columns, rows)]))
    return 0 if all(row[-1] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
