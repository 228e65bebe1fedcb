"""A server that is stopped in good order lets the viewers of its sessions read what it stored, and end."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from tests.server.talk import client_of
from tests.support.servers import our_server

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("query", ["", "?include_raw=true"])
async def test_the_viewers_of_a_running_turn_get_its_end_and_the_end_of_the_stream(
    tmp_path: Path, query: str
) -> None:
    with our_server(tmp_path) as server:
        async with client_of(server) as client:
            await client.post("/v1/sessions/s", json={"agent": "mock"})
            async with client.stream("GET", f"/v1/sessions/s/events/sse{query}") as response:
                await client.post("/v1/sessions/s/messages", json={"message": "stall"})
                read, begun = b"", time.monotonic()
                with anyio.fail_after(20):
                    async for data in response.aiter_bytes():
                        read += data
                        if b"turn.started" in data:
                            begun = time.monotonic()
                            os.kill(server.pid, signal.SIGTERM)
                code = await anyio.to_thread.run_sync(server.stop)
                took = time.monotonic() - begun
        # uvicorn looks every 0.1 s; a stream that had to be cut would last the 2 s of the drain
        assert (code, took < 1.9) == (0, True)
        ends = [json.loads(line[6:]) for line in read.split(b"\n") if line.startswith(b"data: {")]
        told = [event["sequence"] for event in ends]
        assert told == list(range(1, len(told) + 1))
        assert ends[-1]["type"] == "turn.ended"
        assert ends[-1]["data"]["metadata"]["reason"] == "server_stopped"
