"""The persist drivers side by side: append, read, page, restore and follow, beside raw loops."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from typing import NamedTuple

from sandbox_agent import SessionPersistDriver
from sandbox_agent.wire.records import SessionEvent, SessionRecord

__all__ = [
    "KILOBYTE",
    "Followed",
    "append_batches",
    "append_from_sessions",
    "append_one_by_one",
    "follow",
    "new_events",
    "pages",
    "read_all",
]

KILOBYTE = 1_024
PAGE = 100


class Followed(NamedTuple):
    """From append to reader: seconds, and how many events a follower missed or saw twice."""

    p50: float
    p99: float
    wrong: int


def new_events(session_id: str, count: int) -> list[SessionEvent]:
    """Return events of a kilobyte each, with ids of their own."""
    prefix = uuid.uuid4().hex
    head = (
        b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"s","update":'
        b'{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"'
    )
    payload = head + b"x" * (KILOBYTE - len(head) - 5) + b'"}}}}'
    return [
        SessionEvent(f"{prefix}-{number:08x}", 0, session_id, number, "connection", "agent", payload)
        for number in range(count)
    ]


async def new_session(driver: SessionPersistDriver) -> str:
    """Store an empty session and return its id."""
    session_id = uuid.uuid4().hex
    await driver.update_session(
        SessionRecord(id=session_id, agent="mock", agent_session_id="a", last_connection_id="c", created_at=1)
    )
    return session_id


async def append_one_by_one(driver: SessionPersistDriver, events: int) -> float:
    """Return events a second of one session that waits for each."""
    session_id = await new_session(driver)
    generation = await driver.claim_session(session_id)
    given = new_events(session_id, events)
    begun = time.perf_counter()
    for event in given:
        await driver.append_events(session_id, [event], generation=generation)
    return events / (time.perf_counter() - begun)


async def append_from_sessions(driver: SessionPersistDriver, sessions: int, each: int) -> float:
    """Return events a second of many sessions, each of which waits for each of its events."""
    given: list[tuple[str, int, list[SessionEvent]]] = []
    for _ in range(sessions):
        session_id = await new_session(driver)
        given.append((session_id, await driver.claim_session(session_id), new_events(session_id, each)))

    async def one(session_id: str, generation: int, events: Sequence[SessionEvent]) -> None:
        for event in events:
            await driver.append_events(session_id, [event], generation=generation)

    begun = time.perf_counter()
    await asyncio.gather(*(one(*session) for session in given))
    return sessions * each / (time.perf_counter() - begun)


async def append_batches(driver: SessionPersistDriver, batches: int) -> tuple[float, str]:
    """Return events a second in batches of a hundred, and the session that holds them."""
    session_id = await new_session(driver)
    generation = await driver.claim_session(session_id)
    given = [new_events(session_id, PAGE) for _ in range(batches)]
    begun = time.perf_counter()
    for batch in given:
        await driver.append_events(session_id, batch, generation=generation)
    return batches * PAGE / (time.perf_counter() - begun), session_id


async def read_all(driver: SessionPersistDriver, session_id: str, events: int) -> float:
    """Return events a second, page by page of a hundred.

    Raises:
        RuntimeError: it read another number than there are.
    """
    seen = 0
    cursor: str | None = None
    begun = time.perf_counter()
    while True:
        page = await driver.list_events(session_id, limit=PAGE, cursor=cursor)
        seen += len(page.items)
        cursor = page.next_cursor
        if cursor is None:
            break
    elapsed = time.perf_counter() - begun
    if seen != events:
        raise RuntimeError(f"{seen} events were read, {events} are stored")
    return events / elapsed


async def pages(
    driver: SessionPersistDriver, session_id: str, events: int, rounds: int
) -> tuple[float, float]:
    """Return the median seconds of the first page of a hundred and of the last.

    Raises:
        RuntimeError: a page is short.
    """
    before_last = driver.cursor_after(events - PAGE)
    first: list[float] = []
    last: list[float] = []
    for _ in range(rounds):
        begun = time.perf_counter()
        beginning = await driver.list_events(session_id, limit=PAGE)
        first.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        end = await driver.list_events(session_id, limit=PAGE, cursor=before_last)
        last.append(time.perf_counter() - begun)
        if len(beginning.items) != PAGE or len(end.items) != PAGE:
            raise RuntimeError("a page is short")
    return statistics.median(first), statistics.median(last)


async def follow(
    writer: SessionPersistDriver, reader: SessionPersistDriver, *, followers: int, events: int, rate: float
) -> Followed:
    """Append events at a rate, and follow them; the time begins before the append."""
    session_id = await new_session(writer)
    generation = await writer.claim_session(session_id)
    first, *given = new_events(session_id, events + 1)
    began: dict[str, float] = {}
    delays: list[float] = []
    wrong = 0
    ready = asyncio.Semaphore(0)

    async def one() -> None:
        nonlocal wrong
        expected = 1
        async with aclosing(reader.follow_events(session_id)) as followed:
            async for event in followed:
                wrong += event.event_index != expected
                expected = event.event_index + 1
                if event.event_index == 1:
                    ready.release()
                else:
                    delays.append(time.perf_counter() - began[event.id])
                if event.event_index > events:
                    return

    tasks = [asyncio.ensure_future(one()) for _ in range(followers)]
    await writer.append_events(session_id, [first], generation=generation)
    for _ in range(followers):
        await ready.acquire()
    due = time.perf_counter()
    for event in given:
        due += 1 / rate
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        began[event.id] = time.perf_counter()
        await writer.append_events(session_id, [event], generation=generation)
    await asyncio.wait_for(asyncio.gather(*tasks), 60)
    delays.sort()
    return Followed(delays[len(delays) // 2], delays[int(len(delays) * 0.99)], wrong)
