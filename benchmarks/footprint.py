"""What a server costs: memory behind a stalled reader, memory of idle viewers."""

from __future__ import annotations

import asyncio
import json
import uuid

from tests.support.servers import ServerProcess

from benchmarks.load import EventReader, end_session, open_session

__all__ = ["idle_viewers", "stalled_reader"]

SETTLE_SECONDS = 1.0


async def stalled_reader(server: ServerProcess, agent: str, *, events: int, size: int) -> tuple[int, int]:
    """Let the agent write while a reader never reads; return the peak memory in bytes and events lost.

    The loss is counted by a second reader that comes when all is written and reads it from the start.
    """
    connection, path, session_id = await open_session(server.port, agent, f"bench-{uuid.uuid4().hex}")
    _, stalled = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
    stalled.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode())
    prompt = {"sessionId": session_id, "prompt": [{"type": "text", "text": f"burst {events} {size}"}]}
    envelope = {"jsonrpc": "2.0", "id": 3, "method": "session/prompt", "params": prompt}
    posted = asyncio.ensure_future(connection.request("POST", path, json.dumps(envelope).encode()))
    peak = 0
    while not posted.done():
        await asyncio.wait([posted], timeout=0.05)
        peak = max(peak, server.memory())
    late = await EventReader.connect(server.port, path, events=events, size=size)
    while not late.complete.done():
        await asyncio.wait([late.complete], timeout=0.05)
        peak = max(peak, server.memory())
    lost = events - len(set(late.numbers()))
    late.close()
    stalled.close()
    await end_session(connection, path)
    return peak, lost


async def idle_viewers(server: ServerProcess, agent: str, *, viewers: int) -> float:
    """Return the bytes of server memory that an idle viewer costs."""
    connection, path, _ = await open_session(server.port, agent, f"bench-{uuid.uuid4().hex}")
    warm = [await EventReader.connect(server.port, path, events=1, size=0) for _ in range(50)]
    await asyncio.sleep(SETTLE_SECONDS)
    before = server.memory()
    idle = [await EventReader.connect(server.port, path, events=1, size=0) for _ in range(viewers)]
    await asyncio.sleep(SETTLE_SECONDS)
    each = (server.memory() - before) / viewers
    for reader in (*warm, *idle):
        reader.close()
    connection.close()
    return each
