"""A database that hangs under a server: clients are answered in time, and it recovers without a loss."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import pytest

from tests.chaos.chats import Chat, user_texts
from tests.chaos.test_store import degraded, health, works
from tests.server.talk import client_of
from tests.support.databases import Database, database
from tests.support.proxy import TcpProxy
from tests.support.servers import ServerProcess, our_server

__all__ = ["database"]

pytestmark = pytest.mark.anyio

SECONDS = 90
# The server answers after 4.5 s at the latest; the rest is for this machine, which runs other tests.
IN_TIME = 15


async def _refused_in_time(chat: Chat, method: str, path: str, **parts: object) -> None:
    began = time.monotonic()
    response = await chat.client.request(method, path, **parts)  # pyright: ignore[reportArgumentType]
    assert time.monotonic() - began < IN_TIME
    assert response.status_code == 503, response.text
    assert response.headers["retry-after"] == "1"
    assert response.json()["type"] == "urn:sandbox-agent:error:store_unavailable"


class Hanging(NamedTuple):
    """A store that can hang: its URL, and what begins and ends it."""

    url: str
    pause: Callable[[], None]
    resume: Callable[[], None]


@pytest.fixture(params=["stopped", pytest.param("unreachable", marks=pytest.mark.soak)])
async def hanging(request: pytest.FixtureRequest, database: Database) -> AsyncGenerator[Hanging]:
    """A database that is stopped, or whose network passes nothing on and closes no connection."""
    if request.param == "stopped":
        yield Hanging(database.url, database.pause, database.resume)
        return
    parts = urlsplit(database.url)
    async with TcpProxy(parts.port or 0, parts.hostname or "127.0.0.1") as proxy:
        user = parts.netloc.rpartition("@")[0]
        yield Hanging(
            parts._replace(netloc=f"{user}@127.0.0.1:{proxy.port}").geturl(), proxy.stall, proxy.resume
        )


@pytest.mark.soak_with("redis")
@pytest.mark.soak_with("postgres")
async def test_a_store_that_hangs_is_reported_and_nothing_is_lost(tmp_path: Path, hanging: Hanging) -> None:
    server = our_server(tmp_path, env={"SANDBOX_AGENT_STORE": hanging.url})
    await anyio.to_thread.run_sync(server.start)
    try:
        await _hang_and_recover(server, hanging)
    finally:
        await anyio.to_thread.run_sync(server.stop)


async def _hang_and_recover(server: ServerProcess, hanging: Hanging) -> None:
    async with client_of(server) as client:
        with anyio.fail_after(SECONDS):
            busy, idle = Chat(client, "busy"), Chat(client, "idle")
            await busy.create()
            await idle.create()
            await busy.say("echo first", "k1")
            await busy.until("turn.ended")
            shown = await busy.events()
            await busy.say("stream 200 20", "k2")
            async with busy.stream(after=len(shown)) as watch:
                await watch.until("item.delta")
                hanging.pause()
                try:
                    key = {"idempotency-key": "r1"}
                    message = {"message": "echo once"}
                    await _refused_in_time(idle, "POST", f"{idle.path}/messages", json=message, headers=key)
                    await degraded(busy)
                    # At once, now that it is known.
                    await _refused_in_time(busy, "POST", f"{busy.path}/messages", json=message, headers=key)
                    await _refused_in_time(idle, "GET", "/v1/sessions")
                    await _refused_in_time(idle, "POST", "/v1/sessions/new", json={"agent": "mock"})
                    async with busy.stream() as memory:  # the newest events are in memory
                        assert await memory.until("turn.ended") == shown
                    assert (await health(busy))["status"] == "ok"
                finally:
                    hanging.resume()
                await watch.until("turn.ended")
            await works(busy)
            # The message may have been accepted: the same key sends it once.
            await idle.say("echo once", "r1")
            await idle.until("turn.ended")
            assert user_texts(await idle.events()) == ["echo once"]
            events = await busy.events()
            assert events[: len(shown)] == shown
            deltas = [event for event in events if event["type"] == "item.delta"]
            assert sum("00" in event["data"]["delta"] for event in deltas) >= 200
            assert [turn["state"] for turn in (await busy.info())["turns"]] == ["done", "done"]
            server.kill()
            await anyio.to_thread.run_sync(server.start)
    async with client_of(server) as client:
        assert await Chat(client, "busy").events() == events


@pytest.mark.soak_with("redis")
async def test_a_server_ends_in_time_while_its_store_hangs_and_names_what_is_lost(
    tmp_path: Path, hanging: Hanging
) -> None:
    server = our_server(tmp_path, env={"SANDBOX_AGENT_STORE": hanging.url})
    await anyio.to_thread.run_sync(server.start)
    try:
        async with client_of(server) as client:
            with anyio.fail_after(SECONDS):
                chat = Chat(client, "lost")
                await chat.create()
                await chat.say("stream 2000 10", "k1")
                async with chat.stream() as watch:
                    await watch.until("item.delta")
                hanging.pause()
                try:
                    await degraded(chat)
                    began = time.monotonic()
                    await anyio.to_thread.run_sync(server.stop)
                    # 8 seconds; the rest is for this machine, which runs other tests.
                    assert time.monotonic() - began < IN_TIME
                finally:
                    hanging.resume()
    finally:
        server.kill()
    assert "envelopes are lost, of the sessions lost" in server.log.read_text()
