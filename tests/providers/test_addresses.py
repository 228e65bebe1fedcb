"""The client asks the provider for the server's address again when the server was started again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anyio
import httpx2
import pytest

from sandbox_agent import SandboxAgent, SandboxProvider, TokenInvalidError
from tests.client.checks import until
from tests.client.scripted import ScriptedServer

pytestmark = pytest.mark.anyio


class Box(ScriptedServer):
    """A server at an address that can change.

    Attributes:
        address: the host that it can be reached at, and the token that it wants; others are refused with 401.
        is_gone: it refuses connections.
        is_behind_gateway: if it is gone, a gateway in front of it answers with 502 instead.
        requests: all requests that came.
        prompted: the response to a prompt waits until it is set.
    """

    def __init__(self, host: str, token: str) -> None:
        super().__init__()
        self.address = (host, token)
        self.is_gone = False
        self.is_behind_gateway = False
        self.is_closed = False
        self.requests: list[httpx2.Request] = []
        self.prompted = asyncio.Event()
        self.prompted.set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        if self.is_gone and self.is_behind_gateway:
            return httpx2.Response(502, text="bad gateway")
        if self.is_gone:
            raise httpx2.ConnectError("connection refused")
        if (request.url.host, request.headers["Authorization"].removeprefix("Bearer ")) != self.address:
            return httpx2.Response(401, json={"type": "urn:sandbox-agent:error:token_invalid"})
        if request.url.path == "/v1/agents":
            return httpx2.Response(200, json={"agents": []})
        if b'"session/prompt"' in (await request.aread()):
            await self.prompted.wait()
        return await super().handle_async_request(request)

    async def aclose(self) -> None:
        self.is_closed = True


class Moving(SandboxProvider):
    """A provider whose sandboxes are elsewhere after each ``ensure_server``."""

    name = "moving"

    def __init__(self, *, restarts: bool) -> None:
        self.boxes: list[Box] = [Box("box-1", "token-1")]
        self.ensured = 0
        self._restarts = restarts

    async def create(self) -> str:
        return "box"

    async def destroy(self, sandbox_id: str, /) -> None:
        return

    async def get_url(self, sandbox_id: str, /) -> str:
        return f"http://{self.boxes[-1].address[0]}"

    async def get_token(self, sandbox_id: str, /) -> str:
        return self.boxes[-1].address[1]

    async def get_transport(self, sandbox_id: str, /) -> httpx2.AsyncBaseTransport:
        return self.boxes[-1]

    async def ensure_server(self, sandbox_id: str, /) -> None:
        self.ensured += 1
        host, token = f"box-{self.ensured + 1}", f"token-{self.ensured + 1}"
        if self._restarts:
            self.boxes.append(Box(host, token))
        else:
            self.boxes[0].address = (host, token)


async def test_a_server_that_is_gone_is_restarted_at_once_and_found_at_its_new_address() -> None:
    provider = Moving(restarts=True)
    (first,) = provider.boxes
    with anyio.fail_after(20):
        async with SandboxAgent.start(sandbox=provider) as sdk:
            session = await sdk.create_session(agent="mock")
            await session.prompt("one")
            before = len(first.requests)
            first.is_gone = True
            first.end_feed()
            assert (await session.prompt("two")).stop_reason == "end_turn"
            probes = [r for r in first.requests[before:] if r.url.path == "/v1/health"]
            assert (len(probes), provider.ensured) == (1, 1)
            second = provider.boxes[1]
            assert sdk.base_url == "http://box-2"
            assert sdk.inspector_url == "http://box-2/ui/"
            assert {r.headers["Authorization"] for r in second.requests} == {"Bearer token-2"}
            assert first.is_closed
        assert second.is_closed


@pytest.mark.parametrize("is_behind_gateway", [False, True])
async def test_a_server_that_is_gone_is_restarted_for_a_request_that_is_no_prompt(
    is_behind_gateway: bool,
) -> None:
    provider = Moving(restarts=True)
    (first,) = provider.boxes
    first.is_behind_gateway = is_behind_gateway
    with anyio.fail_after(20):
        async with SandboxAgent.start(sandbox=provider) as sdk:
            assert await sdk.list_agents() == []
            first.is_gone = True
            assert await sdk.list_agents() == []
            assert (provider.ensured, sdk.base_url) == (1, "http://box-2")


async def test_an_address_that_expired_is_renewed() -> None:
    provider = Moving(restarts=False)
    (box,) = provider.boxes
    with anyio.fail_after(20):
        async with SandboxAgent.start(sandbox=provider) as sdk:
            session = await sdk.create_session(agent="mock")
            box.prompted.clear()
            turn = asyncio.create_task(session.prompt("a long one"))
            await until(lambda: b"session/prompt" in box.requests[-1].content)
            box.address = ("elsewhere", "expired")
            gets = len(box.gets)
            box.end_feed()
            await until(
                lambda: len(box.gets) > gets
            )  # the feed of the running turn is read at the new address
            assert box.gets[-1].url.host == "box-2"
            assert "Last-Event-ID" in box.gets[-1].headers
            box.prompted.set()
            assert (await turn).stop_reason == "end_turn"
            assert not box.is_closed


async def test_a_refused_token_is_asked_for_again_once() -> None:
    provider = Moving(restarts=False)
    provider.boxes[0].address = ("box-1", "another")
    with anyio.fail_after(20):
        async with SandboxAgent.start(sandbox=provider) as sdk:
            provider.boxes[0].address = ("elsewhere", "expired")
            await sdk.dispose()
        with pytest.raises(TokenInvalidError):
            await SandboxAgent.start(sandbox=provider, token="mine", skip_health_check=False)
    assert provider.ensured == 1


async def test_the_callers_token_and_transport_take_precedence() -> None:
    provider = Moving(restarts=True)
    mine = Box("box-1", "mine")
    with anyio.fail_after(20):
        async with SandboxAgent.start(sandbox=provider, token="mine", transport=mine) as sdk:
            mine.address = ("box-2", "mine")
            mine.is_gone = True
            prompting = asyncio.create_task(sdk.create_session(agent="mock"))
            await until(lambda: provider.ensured == 1)
            mine.is_gone = False
            await prompting
    assert provider.boxes[-1].requests == []


@pytest.mark.parametrize("default", [None, "/home/agent"])
async def test_the_clients_folder_is_never_the_default_of_a_remote_server(default: str | None) -> None:
    provider = Moving(restarts=False)
    provider.default_cwd = default
    async with SandboxAgent.start(sandbox=provider) as sdk:
        await sdk.create_session(agent="mock")
        await sdk.create_session(agent="mock", cwd=Path("/work"))
    opened = [
        posted["params"]["cwd"] for posted in provider.boxes[0].posted if posted["method"] == "session/new"
    ]
    assert opened == [default or "/", "/work"]


async def test_the_clients_folder_is_the_default_on_this_machine() -> None:
    server = ScriptedServer()
    async with SandboxAgent.connect(base_url="http://localhost:1", transport=server) as sdk:
        await sdk.create_session(agent="mock")
    assert server.posted[-1]["params"]["cwd"] == str(Path.cwd())
