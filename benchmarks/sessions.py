"""The server's own sessions: recording, following, reading, finding."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
import uuid
from typing import Any, NamedTuple

from tests.support.servers import ServerProcess

from benchmarks.history import LONG, WORDS
from benchmarks.load import Connection, EventReader, end_session, open_session, percentile

__all__ = ["follow", "idle_session_viewers", "record", "run_pages", "run_searches", "settle"]

SETTLE_SECONDS = 1.0
AGENT_TIME = re.compile(rb"@(\d+)@")


class Followed(NamedTuple):
    """What following came to: seconds from the agent's write to the viewer's read, and events lost."""

    p50: float
    p99: float
    lost: int


async def _get(connection: Connection, path: str) -> Any:
    status, body = await connection.request("GET", path)
    if status != 200:
        raise RuntimeError(f"GET {path} answered {status}: {body[:200]!r}")
    return json.loads(body)


async def _done(connection: Connection, path: str) -> Any:
    """Return the session once its newest turn is stored as done."""
    while True:
        status, body = await connection.request("GET", path)
        turns = json.loads(body).get("turns") if status == 200 else None  # it may not be stored yet
        if turns and turns[-1]["state"] == "done":
            return json.loads(body)
        await asyncio.sleep(0.02)


async def record(port: int, agent: str, *, envelopes: int, size: int) -> float:
    """Return envelopes a second from the prompt until the last of them is stored, projected and indexed."""
    connection, path, session_id = await open_session(port, agent, f"bench-{uuid.uuid4().hex}")
    prompt = {"sessionId": session_id, "prompt": [{"type": "text", "text": f"burst {envelopes} {size}"}]}
    envelope = {"jsonrpc": "2.0", "id": 3, "method": "session/prompt", "params": prompt}
    begun = time.perf_counter()
    await connection.request("POST", path, json.dumps(envelope).encode())
    # the turn's end is stored with, or after, all that came before it
    session = await _done(connection, f"/v1/sessions/{session_id}")
    took = time.perf_counter() - begun
    if session["eventCount"] < envelopes:
        raise RuntimeError(f"{session['eventCount']} events of {envelopes} envelopes")
    await end_session(connection, path)
    return envelopes / took


async def settle(port: int) -> None:
    """Wait until the newest session is stored wholly."""
    connection = Connection(port)
    session = (await _get(connection, "/v1/sessions?limit=1"))["sessions"][0]
    await _done(connection, f"/v1/sessions/{session['sessionId']}")
    connection.close()


class _Follower(asyncio.Protocol):
    """A viewer that notes when each piece came."""

    def __init__(self, path: str) -> None:
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pieces: list[tuple[int, bytes]] = []
        self._path = path
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.write(
            f"GET {self._path} HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self.pieces.append((time.monotonic_ns(), data))
        if not self.opened.done():
            self.opened.set_result(None)

    def close(self) -> None:
        self._transport.abort()


async def follow(port: int, *, viewers: int, events: int, rate: int) -> Followed:
    """Let the clock agent write ``rate`` updates a second to the viewers of a session."""
    loop = asyncio.get_running_loop()
    connection = Connection(port)
    path = f"/v1/sessions/{uuid.uuid4().hex}"
    status, body = await connection.request("POST", path, b'{"agent": "clock"}')
    if status != 200:
        raise RuntimeError(f"create answered {status}: {body[:200]!r}")
    followers: list[_Follower] = []
    for _ in range(viewers):
        _, follower = await loop.create_connection(lambda: _Follower(f"{path}/events/sse"), "127.0.0.1", port)
        await follower.opened
        followers.append(follower)
    message = json.dumps({"message": f"{events} {rate}"}).encode()
    await connection.request("POST", f"{path}/messages", message)
    await _done(connection, path)
    await asyncio.sleep(SETTLE_SECONDS)
    waits: list[float] = []
    arrived: list[int] = []
    for follower in followers:
        stamps: set[bytes] = set()
        for at, data in follower.pieces:
            for stamp in AGENT_TIME.findall(data):
                if stamp not in stamps:  # it comes again in the completed item
                    stamps.add(stamp)
                    waits.append((at - int(stamp)) / 1e9)
        arrived.append(len(stamps))
        follower.close()
    await connection.request("DELETE", path)
    connection.close()
    return Followed(percentile(waits, 0.5), percentile(waits, 0.99), events * viewers - sum(arrived))


async def idle_session_viewers(server: ServerProcess, agent: str, *, viewers: int) -> float:
    """Return the bytes of server memory that an idle viewer of a recorded session costs."""
    connection = Connection(server.port)
    path = f"/v1/sessions/{uuid.uuid4().hex}"
    await connection.request("POST", path, json.dumps({"agent": agent}).encode())
    stream = f"{path}/events/sse"
    warm = [await EventReader.connect(server.port, stream, events=1, size=0) for _ in range(50)]
    await asyncio.sleep(SETTLE_SECONDS)
    before = server.memory()
    idle = [await EventReader.connect(server.port, stream, events=1, size=0) for _ in range(viewers)]
    await asyncio.sleep(SETTLE_SECONDS)
    each = (server.memory() - before) / viewers
    for reader in (*warm, *idle):
        reader.close()
    connection.close()
    return each


async def run_pages(port: int, *, events: int, rounds: int) -> float:
    """Return the median seconds of a page of 100 events anywhere in the long session."""
    connection = Connection(port)
    chance = random.Random(2)
    times: list[float] = []
    for _ in range(rounds):
        offset = chance.randrange(events - 100)
        begun = time.perf_counter()
        page = await _get(connection, f"/v1/sessions/{LONG}/events?offset={offset}&limit=100")
        times.append(time.perf_counter() - begun)
        if [event["sequence"] for event in page["events"]] != list(range(offset + 1, offset + 101)):
            raise RuntimeError(f"the page behind {offset} is not whole")
    connection.close()
    return percentile(times, 0.5)


async def run_searches(port: int, *, rounds: int) -> float:
    """Return the median seconds of searches: a rare word, two common ones, both, in turn."""
    connection = Connection(port)
    chance = random.Random(3)
    times: list[float] = []
    for number in range(rounds):
        rare = chance.choice(WORDS)
        query = (rare, "the+file", f"error+{rare}")[number % 3]
        begun = time.perf_counter()
        found = await _get(connection, f"/v1/search?q={query}&limit=20")
        times.append(time.perf_counter() - begun)
        if not found["hits"]:
            raise RuntimeError(f"nothing found for {query}")
    connection.close()
    return percentile(times, 0.5)
