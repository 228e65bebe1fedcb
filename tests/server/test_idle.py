"""Agents whose clients are gone: ended after the idle timeout, unless something still uses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from sandbox_agent.engine.correlate import UNNAMED
from sandbox_agent.engine.feed import FeedMemory
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.agents.spill import Spiller
from sandbox_agent.server.children import Children
from sandbox_agent.server.streams.usage import MAX_CLIENTS, Usage
from tests.server.talk import Talk, client_of, envelope
from tests.support.memory_spill import MemorySpill
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

JsonObject = dict[str, Any]
SECONDS = 30.0
ASYNC = {"prefer": "respond-async", "content-type": "application/json"}


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    """A server that soon ends the agents of named clients that are gone."""
    with our_server(tmp_path_factory.mktemp("idle"), "--acp-idle-timeout", "0.3") as running:
        yield running


async def listed(client: httpx2.AsyncClient) -> dict[str, JsonObject]:
    """Return the live connections by server id."""
    servers: list[JsonObject] = (await client.get("/v1/acp")).json()["servers"]
    return {server["serverId"]: server for server in servers}


async def until_ended(client: httpx2.AsyncClient, server_id: str) -> None:
    """Wait until the server has ended the connection."""
    with anyio.fail_after(SECONDS):
        while server_id in await listed(client):
            pass


async def opened(client: httpx2.AsyncClient, server_id: str, name: str = "ann") -> Talk:
    """Return a client with a session on a new connection."""
    talking = Talk(client, server_id, name)
    await talking.open()
    return talking


async def send_prompt(talking: Talk, text: str) -> None:
    """Start a turn, and return when the agent has received the prompt."""
    body = envelope("session/prompt", talking.prompting(text), 99)
    headers = {**ASYNC, "sandbox-agent-client": "ann"}
    assert (await talking.client.post(talking.path, json=body, headers=headers)).status_code == 202


async def test_the_agent_of_a_named_client_that_is_gone_is_ended(impatient: ServerProcess) -> None:
    async with client_of(impatient) as client:
        ann = await opened(client, "left")
        await until_ended(client, "left")
        # As after a DELETE: the connection is unknown, and a POST that names the agent starts it again.
        assert (await client.get(ann.path, headers={"accept": "text/event-stream"})).status_code == 404
        assert (await ann.post(envelope("session/list", {}, 7))).status_code == 400
        answer = await ann.request("initialize", {"protocolVersion": 1}, agent="mock")
        assert answer["result"]["protocolVersion"] == 1
        assert "agent mock for left is ended: it was idle for 0 s" in impatient.log.read_text()


@asynccontextmanager
async def open_stream(client: httpx2.AsyncClient) -> AsyncGenerator[str]:
    ann = await opened(client, "streaming")
    async with ann.stream():
        yield "streaming"


@asynccontextmanager
async def post_in_flight(client: httpx2.AsyncClient) -> AsyncGenerator[str]:
    ann = await opened(client, "posting")
    # The agent waits for an answer that no stream shows: only the POST counts.
    prompt = ann.start("permission")
    yield "posting"
    await ann.delete()
    assert (await prompt).status_code == 500


@asynccontextmanager
async def running_turn(client: httpx2.AsyncClient) -> AsyncGenerator[str]:
    await send_prompt(await opened(client, "working"), "stall")
    yield "working"


@asynccontextmanager
async def watched_permission(client: httpx2.AsyncClient) -> AsyncGenerator[str]:
    ann = await opened(client, "watched")
    async with ann.stream() as stream:
        await send_prompt(ann, "permission")
        await stream.until("session/request_permission")
        yield "watched"


@asynccontextmanager
async def unnamed_client(client: httpx2.AsyncClient) -> AsyncGenerator[str]:
    await opened(client, "unnamed")
    await Talk(client, "unnamed", "").request("session/list", {})
    yield "unnamed"


@asynccontextmanager
async def managed_session(client: httpx2.AsyncClient) -> AsyncGenerator[str]:
    assert (await client.post("/v1/sessions/mine", json={"agent": "mock"})).status_code == 200
    yield next(server_id for server_id in await listed(client) if server_id.startswith("session-"))


async def test_a_connection_that_is_in_use_is_not_ended(impatient: ServerProcess) -> None:
    users = (
        open_stream,
        post_in_flight,
        running_turn,
        watched_permission,
        unnamed_client,
        managed_session,
    )
    async with client_of(impatient) as client, AsyncExitStack() as stack:
        used = {await stack.enter_async_context(user(client)) for user in users}
        # They are older than two connections that come and go one after the other.
        for number in range(2):
            await opened(client, f"gone-{number}")
            await until_ended(client, f"gone-{number}")
        assert used <= set(await listed(client))
        await client.delete("/v1/sessions/mine")
        for server_id in used:
            await client.delete(f"/v1/acp/{server_id}")


async def test_a_turn_that_waits_for_a_permission_that_no_stream_shows_is_idle(
    impatient: ServerProcess,
) -> None:
    async with client_of(impatient) as client:
        ann = await opened(client, "unwatched")
        await send_prompt(ann, "permission")
        await until_ended(client, "unwatched")


@pytest.mark.parametrize("name", ["ann", ""])
async def test_a_client_that_disconnects_during_its_prompt_is_gone(
    impatient: ServerProcess, tmp_path: Path, name: str
) -> None:
    async with AsyncExitStack() as stack:
        server = impatient
        if not name:  # its prompt takes the fast path
            options = ["--acp-idle-timeout", "0.3", "--acp-idle-timeout-all"]
            server = stack.enter_context(our_server(tmp_path, *options))
        observer = await stack.enter_async_context(client_of(server))
        async with client_of(server) as client:
            talking = await opened(client, "vanished", name)
            async with talking.stream() as stream:
                prompt = talking.start("permission")
                await stream.until("session/request_permission")
            prompt.cancel()
        await until_ended(observer, "vanished")


async def test_a_connection_is_ended_after_its_turn_and_its_stream(impatient: ServerProcess) -> None:
    async with client_of(impatient) as client:
        ann = await opened(client, "done")
        async with ann.stream() as stream:
            await ann.prompt("echo done")
            await stream.until("end_turn")
            await opened(client, "canary")
            await until_ended(client, "canary")
            assert "done" in await listed(client)
        await until_ended(client, "done")


async def test_connections_of_clients_without_a_name_are_ended_if_that_is_chosen(tmp_path: Path) -> None:
    options = ["--acp-idle-timeout", "0.2", "--acp-idle-timeout-all"]
    with our_server(tmp_path, *options) as server:
        async with client_of(server) as client:
            await opened(client, "unnamed", "")
            await until_ended(client, "unnamed")


async def test_the_list_of_connections_shows_their_clients_and_how_long_they_are_idle(
    tmp_path: Path,
) -> None:
    with our_server(tmp_path) as server:
        async with client_of(server) as client:
            ann = await opened(client, "shared")
            idle = (await listed(client))["shared"]
            assert idle["clients"] == [{"name": "ann", "streams": 0}]
            assert 0 <= idle["idleMs"] < SECONDS * 1000
            unnamed = Talk(client, "shared")
            async with ann.stream(), unnamed.stream(), Talk(client, "shared").stream():
                used = (await listed(client))["shared"]
                assert used["clients"] == [{"name": "ann", "streams": 1}, {"streams": 2}]
                assert "idleMs" not in used


async def test_a_session_is_watched_by_a_stream_of_its_events(tmp_path: Path) -> None:
    with our_server(tmp_path, "--session-idle-timeout", "0.3") as server:
        async with client_of(server) as client:

            async def create(session_id: str) -> str:
                before = await listed(client)
                path = f"/v1/sessions/{session_id}"
                assert (await client.post(path, json={"agent": "mock"})).status_code == 200
                (server_id,) = set(await listed(client)) - set(before)
                return server_id

            for query in ("", "?include_raw=true"):
                watched = await create(f"watched{bool(query)}")
                path = f"/v1/sessions/watched{bool(query)}/events/sse{query}"
                async with client.stream("GET", path):
                    await until_ended(client, await create(f"alone{bool(query)}"))
                    assert watched in await listed(client)
                await until_ended(client, watched)


@asynccontextmanager
async def bridge(idle_timeout: float) -> AsyncGenerator[Bridge]:
    spiller = Spiller(FeedMemory(2**20), MemorySpill())
    async with (
        Children().run() as children,
        Bridge(spiller, children, request_timeout=SECONDS, idle_timeout=idle_timeout).run() as running,
    ):
        yield running


async def test_a_client_that_arrives_while_the_agent_is_ended_finds_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with anyio.fail_after(SECONDS):
        async with bridge(0.1) as running:
            old = await running.open("s", "mock")
            stopping, stop = asyncio.Event(), old.stop

            async def watched_stop() -> None:
                stopped = asyncio.ensure_future(stop())
                await asyncio.sleep(0)
                stopping.set()
                await stopped

            monkeypatch.setattr(old, "stop", watched_stop)
            await stopping.wait()
            assert old.alive
            assert running.peek("s") is None
            with pytest.raises(InvalidRequestError, match="missing required 'agent'"):
                await running.open("s", None)
            assert not old.alive
            assert await running.open("s", "mock") is not old


async def test_a_client_that_arrives_first_keeps_the_agent() -> None:
    with anyio.fail_after(SECONDS):
        async with bridge(0.1) as running:
            used, idle = await running.open("used", "mock"), await running.open("idle", "mock")
            with used.usage.used("ann"):
                await idle.ended.wait()
                assert await running.open("used", None) is used
            await used.ended.wait()


async def test_no_agent_is_ended_without_a_timeout() -> None:
    async with bridge(0) as running:
        connection = await running.open("s", "mock")
        assert connection.idle_seconds is not None
        assert running.live() == [connection]


def test_many_clients_that_are_gone_are_forgotten_and_those_that_are_there_are_not() -> None:
    usage = Usage()
    usage.begin(UNNAMED)()
    end = usage.begin("first", streams=1)
    for number in range(3 * MAX_CLIENTS):
        with usage.used(f"client {number}"):
            pass
    assert len(usage.streams) == MAX_CLIENTS
    assert list(usage.streams)[:2] == [UNNAMED, "first"]
    assert usage.idle_seconds is None
    for _ in range(2):
        end()
        assert usage.streams["first"] == 0
    assert usage.idle_seconds is not None
