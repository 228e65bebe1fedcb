"""Waits of the SDK that end because their time is over; docs/timeouts.md lists all of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import httpx2
import pytest

from sandbox_agent import ConnectionLostError, RequestTimeoutError, SandboxAgent
from tests.client.conftest import GARBLING_AGENT, Front
from tests.client.gateway import Faults, Gateway
from tests.client.scripted import ScriptedServer
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio

SECONDS = 30


class FailingServer(ScriptedServer):
    """A scripted server to which some requests don't get through.

    Attributes:
        refuses: the JSON-RPC method whose POSTs are refused.
        hangs: whether a DELETE is never answered.
    """

    refuses = ""
    hangs = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "DELETE" and self.hangs:
            await asyncio.Event().wait()
        if request.method == "POST" and json.loads(request.content).get("method") == self.refuses:
            raise httpx2.ConnectError("refused")
        return await super().handle_async_request(request)


@pytest.fixture
async def gateway(shared_server: ServerProcess) -> AsyncIterator[tuple[Gateway, Faults]]:
    """A gateway in front of the shared server, and what it does."""
    faults = Faults()
    async with Gateway(shared_server.port, faults) as running:
        yield running, faults


async def test_a_prompt_fails_when_its_event_stream_cannot_be_opened_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sandbox_agent.client.feed.UNREACHABLE_FOR", 0.1)
    server = ScriptedServer()
    server.feed_answers = False
    with anyio.fail_after(SECONDS):
        async with SandboxAgent.connect(transport=server, skip_health_check=True) as sdk:
            session = await sdk.create_session(agent="mock", cwd="/")
            server.failing_gets = 1_000_000
            server.end_feed()
            with pytest.raises(ConnectionLostError, match="is gone"):
                await session.prompt("hello")


@pytest.mark.no_gateway("has a proxy of its own")
async def test_a_prompt_fails_when_no_post_gets_a_usable_answer(
    gateway: tuple[Gateway, Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_agent.client.delivery.GIVE_UP_AFTER", 0.1)
    running, faults = gateway
    with anyio.fail_after(SECONDS):
        async with SandboxAgent.connect(base_url=running.url) as sdk:
            session = await sdk.create_session(agent="mock")
            faults.answer = lambda line: (502, {}) if line.startswith("POST") else None
            with pytest.raises(ConnectionLostError, match="outcome is unknown"):
                await session.prompt("echo hello")


@pytest.mark.no_gateway("has a proxy of its own")
async def test_a_silent_event_stream_is_opened_again(
    gateway: tuple[Gateway, Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_agent.client.feed.READ_TIMEOUT", 0.2)
    running, faults = gateway
    streams = 0
    opened_again = asyncio.Event()

    def on_request(line: str, _body: bytes) -> None:
        nonlocal streams
        streams += line.startswith("GET /v1/acp/")
        if streams == 4:
            opened_again.set()

    faults.on_request = on_request
    with anyio.fail_after(SECONDS):
        async with SandboxAgent.connect(base_url=running.url) as sdk:
            session = await sdk.create_session(agent="mock")
            turn = asyncio.create_task(session.prompt("stall"))
            await opened_again.wait()
            await session.cancel()
            assert (await turn).stop_reason == "cancelled"


async def test_a_prompt_that_never_reaches_the_agent_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox_agent.client.session_core.RESEND_FOR", 0.1)
    server = FailingServer()
    with anyio.fail_after(SECONDS):
        async with SandboxAgent.connect(transport=server, skip_health_check=True) as sdk:
            session = await sdk.create_session(agent="mock", cwd="/")
            server.refuses = "session/prompt"
            with pytest.raises(ConnectionLostError, match="was not sent"):
                await session.prompt("hello")


async def test_a_request_that_the_agent_does_not_answer_fails(tmp_path: Path, front: Front) -> None:
    put_launcher(tmp_path / "data", "garbling", [sys.executable, str(GARBLING_AGENT)])
    with our_server(tmp_path, "--request-timeout", "0.5") as server, anyio.fail_after(SECONDS):
        async with SandboxAgent.connect(base_url=front(server).url) as sdk:
            session = await sdk.create_session(agent="garbling")
            with pytest.raises(RequestTimeoutError, match="did not answer silence"):
                await session.raw_send("silence")


async def test_dispose_does_not_wait_for_a_server_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sandbox_agent.client.connection.CLOSE_TIMEOUT", 0.05)
    server = FailingServer()
    with anyio.fail_after(SECONDS):
        async with SandboxAgent.connect(transport=server, skip_health_check=True) as sdk:
            await sdk.create_session(agent="mock", cwd="/")
            server.hangs = True


@pytest.mark.no_gateway("has a proxy of its own")
async def test_a_call_of_a_server_session_that_is_not_answered_fails(
    gateway: tuple[Gateway, Faults], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_agent.client.server_sessions.calls.CALL_TIMEOUT", 0.2)
    running, faults = gateway
    with anyio.fail_after(SECONDS):
        async with SandboxAgent.connect(base_url=running.url) as sdk:
            await sdk.list_acp_servers()  # the server is healthy
            faults.black_hole = asyncio.Event()
            with pytest.raises(ConnectionLostError):
                await sdk.sessions.create("never", agent="mock")


async def test_any_other_call_has_a_time_limit() -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.extensions["timeout"]["read"] == 600.0
        raise httpx2.ReadTimeout("600 s are over")

    transport = httpx2.MockTransport(answer)
    async with SandboxAgent.connect(transport=transport, skip_health_check=True) as sdk:
        with pytest.raises(ConnectionLostError, match="600 s are over"):
            await sdk.list_agents()
