"""Request and response over one keep-alive connection."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from benchmarks.load import end_session, open_session, percentile

__all__ = ["run_latency"]


async def run_latency(port: int, agent: str, *, requests: int) -> float:
    """Return the median seconds of a small request that the agent answers at once, with one line."""
    connection, path, _ = await open_session(port, agent, f"bench-{uuid.uuid4().hex}")
    times: list[float] = []
    for number in range(requests):
        envelope: dict[str, Any] = {
            "jsonrpc": "2.0",
            "id": 10 + number,
            "method": "session/list",
            "params": {},
        }
        body = json.dumps(envelope).encode()
        begun = time.perf_counter()
        status, _ = await connection.request("POST", path, body)
        times.append(time.perf_counter() - begun)
        if status != 200:
            raise RuntimeError(f"session/list answered {status}")
    await end_session(connection, path)
    return percentile(times, 0.5)
