"""Request and response over one keep-alive connection."""

from __future__ import annotations

import json
import time
import uuid

from benchmarks.load import end_session, open_session, percentile

__all__ = ["run_latency"]


async def run_latency(port: int, agent: str, method: str, *, requests: int) -> float:
    """Return the median seconds of a small request.

    Args:
        port: the server's.
        agent: the mock agent's name there.
        method: "session/list", which the agent answers with one line, or "session/set_mode", with three:
            two updates and the answer.
        requests: how many are timed.
    """
    connection, path, session_id = await open_session(port, agent, f"bench-{uuid.uuid4().hex}")
    params = {"sessionId": session_id, "modeId": "plan"} if method == "session/set_mode" else {}
    times: list[float] = []
    for number in range(requests):
        body = json.dumps({"jsonrpc": "2.0", "id": 10 + number, "method": method, "params": params}).encode()
        begun = time.perf_counter()
        status, answer = await connection.request("POST", path, body)
        times.append(time.perf_counter() - begun)
        if status != 200 or b'"result"' not in answer:
            raise RuntimeError(f"{method} answered {status}: {answer[:200]!r}")
    await end_session(connection, path)
    return percentile(times, 0.5)
