"""Events through the server: bursts to one reader and to many."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import NamedTuple

from benchmarks.load import EventReader, end_session, open_session

__all__ = ["Burst", "run_burst"]

# A server that loses events never completes: this long without one more, and it is over.
QUIET_SECONDS = 2.0


class Burst(NamedTuple):
    """What a burst came to: events a second of the slowest reader, and how many events all lost."""

    events_per_second: float
    lost: int


async def run_burst(port: int, agent: str, *, events: int, size: int, readers: int) -> Burst:
    """Let the agent write ``events`` updates of ``size`` bytes to ``readers`` viewers, and time it."""
    connection, path, session_id = await open_session(port, agent, f"bench-{uuid.uuid4().hex}")
    viewers = [await EventReader.connect(port, path, events=events, size=size) for _ in range(readers)]
    prompt = {"sessionId": session_id, "prompt": [{"type": "text", "text": f"burst {events} {size}"}]}
    envelope = {"jsonrpc": "2.0", "id": 3, "method": "session/prompt", "params": prompt}
    begun = time.perf_counter()
    posted = asyncio.ensure_future(connection.request("POST", path, json.dumps(envelope).encode()))
    while not all(viewer.complete.done() for viewer in viewers):
        before = [viewer.size for viewer in viewers]
        waiting = [viewer.complete for viewer in viewers if not viewer.complete.done()]
        await asyncio.wait(waiting, timeout=QUIET_SECONDS)
        if [viewer.size for viewer in viewers] == before:
            break
    ended = max(viewer.last_at for viewer in viewers)
    await posted
    arrived = [len(set(viewer.numbers())) for viewer in viewers]
    for viewer in viewers:
        viewer.close()
    await end_session(connection, path)
    return Burst(min(arrived) / (ended - begun), sum(events - each for each in arrived))
