"""A gateway between client and server breaks requests: no prompt fails, and none is sent twice."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import anyio
import httpx2
import pytest

from sandbox_agent import SandboxAgent, SandboxAgentError, SessionEvent, SQLiteSessionPersistDriver
from sandbox_agent.client import delivery
from tests.client.checks import all_events, said, sent_prompts
from tests.client.gateway import Faults, Gateway
from tests.client.scripted import ScriptedServer
from tests.support.servers import ServerProcess, published_server

pytestmark = [pytest.mark.anyio, pytest.mark.no_gateway("each test has a gateway of its own")]

TIMEOUT = 120.0


def check_numbers(events: list[SessionEvent], count: int) -> None:
    """Check that the chunks of ``stream COUNT`` are stored once each, in order."""
    assert said(events).split() == [f"{number:06d}" for number in range(1, count + 1)]


def is_prompt(line: str, body: bytes) -> bool:
    return line.startswith("POST") and b'"session/prompt"' in body


@pytest.mark.parametrize("prefix", ["", "/some/prefix"])
async def test_an_idle_limit_does_not_end_a_turn(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver, prefix: str
) -> None:
    faults = Faults(idle=0.3, prefix=prefix)
    with anyio.fail_after(TIMEOUT):
        async with (
            Gateway(shared_server.port, faults) as gateway,
            SandboxAgent.connect(base_url=gateway.url, persist=driver) as sdk,
        ):
            session = await sdk.create_session(agent="mock")
            assert (await session.prompt("stream 40 25")).stop_reason == "end_turn"
            check_numbers(await all_events(sdk, session), 40)


async def test_connections_that_are_cut_again_and_again_lose_nothing(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(TIMEOUT):
        async with (
            Gateway(shared_server.port, Faults(cut_every=0.4)) as gateway,
            SandboxAgent.connect(base_url=gateway.url, persist=driver) as sdk,
        ):
            session = await sdk.create_session(agent="mock")
            assert (await session.prompt("stream 60 25")).stop_reason == "end_turn"
            check_numbers(await all_events(sdk, session), 60)


@pytest.mark.parametrize("status", [400, 403, 404, 408, 429, 500, 502, 503, 504, 524])
async def test_a_page_of_the_gateway_is_no_answer(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver, status: int
) -> None:
    """Each POST is answered with a page at first, before the server gets it; the DELETE at the end is not."""
    refused: set[int] = set()

    def answer(line: str) -> tuple[int, dict[str, str]] | None:
        count = sum(seen.startswith("POST") for seen in faults.seen)
        if line.startswith("POST") and count % 2 == 1 and count not in refused:
            refused.add(count)
            return status, {}
        return None

    faults = Faults(answer=answer)
    with anyio.fail_after(TIMEOUT):
        async with (
            Gateway(shared_server.port, faults) as gateway,
            SandboxAgent.connect(base_url=gateway.url, persist=driver) as sdk,
        ):
            session = await sdk.create_session(agent="mock", model="mock-fast")
            await session.prompt("echo hello")
            events = await all_events(sdk, session)
    assert said(events) == "hello"
    assert len(refused) >= 4


async def test_a_server_that_fails_at_the_start_of_an_agent_is_not_asked_for_minutes() -> None:
    """Unlike the page of a gateway, its own error is an answer."""
    posts = 0

    class Failing(ScriptedServer):
        async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
            nonlocal posts
            if request.method != "POST":
                return await super().handle_async_request(request)
            posts += 1
            problem = {"type": "about:blank", "status": 500, "detail": "see the server's log"}
            headers = {"content-type": "application/problem+json"}
            return httpx2.Response(500, json=problem, headers=headers)

    async with SandboxAgent.connect(base_url="http://server", transport=Failing()) as sdk:
        with anyio.fail_after(20), pytest.raises(SandboxAgentError, match="status 500: see the server's log"):
            await sdk.create_session(agent="mock")
    assert posts < 10


async def test_a_request_whose_answer_is_swallowed_is_sent_once(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    """The server has received each envelope, and the client is told that it has not."""
    swallowed: set[bytes] = set()

    def swallow(line: str, body: bytes) -> bool:
        first = line.startswith("POST") and body not in swallowed
        swallowed.add(body)
        return first

    with anyio.fail_after(TIMEOUT):
        async with (
            Gateway(shared_server.port, Faults(swallow=swallow)) as gateway,
            SandboxAgent.connect(base_url=gateway.url, persist=driver) as sdk,
        ):
            session = await sdk.create_session(agent="mock", permission_policy="always")
            await session.prompt("permission")
            await session.prompt("echo once")
            events = await all_events(sdk, session)
    methods = [json.loads(body).get("method") for body in swallowed if body]
    assert methods.count("session/prompt") == 2
    assert None in methods  # the answer to the permission request
    assert len(sent_prompts(events)) == 2
    assert said(events).count("once") == 1
    assert said(events).count("Permission granted") == 1


async def test_a_cancellation_that_is_sent_again_does_not_end_the_next_turn(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    held: list[bytes] = []

    def swallow(line: str, body: bytes) -> bool:
        if b"session/cancel" not in body:
            return False
        held.append(body)
        return len(held) < 4  # by the last one, the next turn runs

    with anyio.fail_after(TIMEOUT):
        async with (
            Gateway(shared_server.port, Faults(swallow=swallow)) as gateway,
            SandboxAgent.connect(base_url=gateway.url, persist=driver) as sdk,
        ):
            session = await sdk.create_session(agent="mock")
            started = asyncio.Event()
            session.on_event(lambda event: started.set() if event.update is not None else None)
            turn = asyncio.create_task(session.prompt("stream 1000 20"))
            await started.wait()
            cancel = asyncio.create_task(session.cancel())
            assert (await turn).stop_reason == "cancelled"
            assert (await session.prompt("stream 30 20")).stop_reason == "end_turn"
            await cancel
    assert len(held) == 4


@pytest.mark.soak
async def test_a_sandbox_that_wakes_up_slowly_answers_later(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    asleep = False
    waits: list[float] = []

    def answer(_line: str) -> tuple[int, dict[str, str]] | None:
        nonlocal asleep
        if asleep:
            waits.append(asyncio.get_running_loop().time())
            asleep = len(waits) < 4
            return 503, {"retry-after": "1"}
        return None

    with anyio.fail_after(TIMEOUT):
        async with (
            Gateway(shared_server.port, Faults(answer=answer)) as gateway,
            SandboxAgent.connect(base_url=gateway.url, persist=driver) as sdk,
        ):
            session = await sdk.create_session(agent="mock")
            await session.prompt("echo one")
            asleep = True
            await session.prompt("echo two")
            events = await all_events(sdk, session)
    assert [blocks[0]["text"] for blocks in sent_prompts(events)] == ["echo one", "echo two"]
    assert waits[-1] - waits[0] >= 1.0


async def test_a_gateway_that_swallows_everything_for_a_while_delays_a_turn(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "ANSWER_TIMEOUT", 0.3)
    faults = Faults()
    with anyio.fail_after(TIMEOUT):
        async with (
            Gateway(shared_server.port, faults) as gateway,
            SandboxAgent.connect(base_url=gateway.url, persist=driver) as sdk,
        ):
            session = await sdk.create_session(agent="mock")
            hole = faults.black_hole = asyncio.Event()
            posts: list[str] = []

            def on_request(line: str, _body: bytes) -> None:
                posts.extend([line] if line.startswith("POST") else [])
                if len(posts) == 3:
                    hole.set()  # all three arrive now

            faults.on_request = on_request
            turn = asyncio.create_task(session.prompt("stream 20 10"))
            assert (await turn).stop_reason == "end_turn"
            events = await all_events(sdk, session)
    check_numbers(events, 20)
    assert len(sent_prompts(events)) == 1
    assert len(posts) >= 3


async def test_a_client_that_is_disposed_ends_its_agents_although_its_requests_are_lost(
    own_server: ServerProcess,
) -> None:
    def answer(line: str) -> tuple[int, dict[str, str]] | None:
        tries = sum(seen.startswith(line.split("?")[0]) for seen in faults.seen)
        return (503, {}) if line.startswith(("DELETE", "GET /v1/acp ")) and tries == 1 else None

    def swallow(line: str, _body: bytes) -> bool:
        return line.startswith("DELETE") and sum(seen.startswith("DELETE") for seen in faults.seen) == 2

    faults = Faults(answer=answer, swallow=swallow)
    with anyio.fail_after(TIMEOUT):
        async with (
            SandboxAgent.connect(base_url=own_server.url) as observer,
            Gateway(own_server.port, faults) as gateway,
        ):
            async with SandboxAgent.connect(base_url=gateway.url) as sdk:
                await sdk.create_session(agent="mock")
                assert len(await sdk.list_acp_servers()) == 1
            assert await observer.list_acp_servers() == []
    assert sum(seen.startswith("DELETE") for seen in faults.seen) == 3


async def test_a_redirect_of_a_post_names_the_address(shared_server: ServerProcess) -> None:
    def answer(line: str) -> tuple[int, dict[str, str]] | None:
        return (308, {"location": "https://elsewhere.example/v1"}) if line.startswith("POST") else None

    async with (
        Gateway(shared_server.port, Faults(answer=answer)) as gateway,
        SandboxAgent.connect(base_url=gateway.url) as sdk,
    ):
        with pytest.raises(SandboxAgentError, match=r"redirects to https://elsewhere\.example/v1"):
            await sdk.create_session(agent="mock")


async def test_a_redirect_of_a_get_is_followed(shared_server: ServerProcess) -> None:
    def answer(line: str) -> tuple[int, dict[str, str]] | None:
        method, path, _ = line.split(" ")
        return (307, {"location": f"{shared_server.url}{path}"}) if method == "GET" else None

    with anyio.fail_after(TIMEOUT):
        async with (
            Gateway(shared_server.port, Faults(answer=answer)) as gateway,
            SandboxAgent.connect(base_url=gateway.url) as sdk,
        ):
            session = await sdk.create_session(agent="mock")
            assert (await session.prompt("echo hello")).stop_reason == "end_turn"


async def test_an_agent_that_cannot_be_started_is_an_error_at_once(shared_server: ServerProcess) -> None:
    with anyio.fail_after(TIMEOUT):
        async with SandboxAgent.connect(base_url=shared_server.url) as sdk:
            with pytest.raises(SandboxAgentError):
                await sdk.create_session(agent="no-such-agent")


async def test_a_published_server_gets_each_prompt_once(
    tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    """It does not recognize repetitions: a prompt whose POST was answered with 504 waits for the stream."""
    counts: list[str] = []

    def swallow(line: str, body: bytes) -> bool:
        if is_prompt(line, body):
            counts.append(line)
        return False

    with published_server(tmp_path) as server, anyio.fail_after(TIMEOUT):
        async with (
            Gateway(server.port, Faults(idle=0.5, swallow=swallow)) as gateway,
            SandboxAgent.connect(base_url=gateway.url, persist=driver) as sdk,
        ):
            session = await sdk.create_session(agent="claude")
            assert (await session.prompt("stream 40 30")).stop_reason == "end_turn"
            events = await all_events(sdk, session)
    check_numbers(events, 40)
    assert len(sent_prompts(events)) == 1
