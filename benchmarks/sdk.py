"""The SDK end to end: a long turn with every event in SQLite; restoring a session with a long history."""

from __future__ import annotations

import statistics
import time
import uuid
from pathlib import Path
from typing import NamedTuple

from sandbox_agent import SandboxAgent, SessionPersistDriver, SQLiteSessionPersistDriver
from sandbox_agent.wire.records import SessionEvent, SessionRecord

__all__ = ["Turn", "fill", "run_resume", "run_turn"]


class Turn(NamedTuple):
    """What a turn came to: events a second until prompt() returned, and how many updates are stored."""

    events_per_second: float
    stored: int


async def run_turn(url: str, agent: str, database: Path, *, events: int, size: int) -> Turn:
    """Prompt for a burst and count what the store holds when prompt() has returned."""
    persist = SQLiteSessionPersistDriver(database)
    async with SandboxAgent.connect(base_url=url, persist=persist) as sdk:
        session = await sdk.create_session(agent=agent, cwd="/tmp")
        seen = 0

        def count(_: SessionEvent) -> None:
            nonlocal seen
            seen += 1

        session.on_event(count)
        begun = time.perf_counter()
        await session.prompt(f"burst {events} {size}")
        elapsed = time.perf_counter() - begun
        stored = 0
        cursor: str | None = None
        while True:
            page = await persist.list_events(session.id, limit=10_000, cursor=cursor)
            stored += sum(b'"agent_message_chunk"' in event.payload_json for event in page.items)
            cursor = page.next_cursor
            if cursor is None:
                break
        if seen < stored:
            raise RuntimeError(f"{stored} events are stored, the listener saw {seen}")
    await persist.close()
    return Turn(events / elapsed, stored)


async def fill(persist: SessionPersistDriver, agent: str, *, events: int) -> str:
    """Write a session with that much history and return its id."""
    session_id = uuid.uuid4().hex
    record = SessionRecord(
        id=session_id,
        agent=agent,
        agent_session_id="gone",
        last_connection_id="gone",
        created_at=1,
        session_init={"cwd": "/tmp", "mcpServers": []},
    )
    await persist.update_session(record)
    text = "x" * 150
    for first in range(0, events, 5000):
        batch = [
            SessionEvent(
                f"{session_id}-{number}",
                0,
                session_id,
                number,
                "gone",
                "agent",
                b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"gone","update":'
                b'{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"%d %b"}}}}'
                % (number, text.encode()),
            )
            for number in range(first, min(events, first + 5000))
        ]
        await persist.append_events(session_id, batch)
    return session_id


async def run_resume(
    url: str, agent: str, persist: SessionPersistDriver, session_id: str, *, rounds: int
) -> float:
    """Return the median seconds that resume_session took, each time in a new client."""
    times: list[float] = []
    for _ in range(rounds):
        async with SandboxAgent.connect(base_url=url, persist=persist) as sdk:
            # the agent's own start is not what is measured
            await sdk.create_session(agent=agent, cwd="/tmp")
            begun = time.perf_counter()
            await sdk.resume_session(session_id)
            times.append(time.perf_counter() - begun)
    return statistics.median(times)
