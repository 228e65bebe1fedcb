"""What a client makes of addresses, proxies and text in headers."""

from __future__ import annotations

import sys

import httpx2
import pytest

from sandbox_agent import ConnectionLostError, SandboxAgent, local
from tests.support.proxy import TcpProxy
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:1?token=x", "http://127.0.0.1:1/box#part"])
def test_a_base_url_with_a_query_or_a_fragment_is_refused(base_url: str) -> None:
    with pytest.raises(ValueError, match=r"base_url must be an http.* without"):
        SandboxAgent(base_url=base_url)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
async def test_a_server_on_this_machine_is_reached_without_a_proxy(
    shared_server: ServerProcess, monkeypatch: pytest.MonkeyPatch, variable: str, proxy: str
) -> None:
    monkeypatch.setenv(variable, proxy)
    async with SandboxAgent.connect(base_url=shared_server.url, health_timeout=5) as sdk:
        assert (await sdk.get_health()).status == "ok"


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("", "127.0.0.1", True),
        # An address that is not loopback by its name, and of this machine all the same.
        ("127.0.0.1", "0.0.0.0", False),
        ("127.0.0.1,0.0.0.0", "0.0.0.0", True),
        ("*", "0.0.0.0", True),
    ],
)
async def test_no_proxy_is_honored(
    shared_server: ServerProcess, monkeypatch: pytest.MonkeyPatch, no_proxy: str, host: str, *, direct: bool
) -> None:
    async with TcpProxy(shared_server.port) as proxy:
        proxy.refuse()
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", no_proxy)
        url = f"http://{host}:{shared_server.port}"
        async with SandboxAgent.connect(base_url=url, skip_health_check=True) as sdk:
            if direct:
                assert (await sdk.get_health()).status == "ok"
            else:
                with pytest.raises(ConnectionLostError):
                    await sdk.get_health()
    assert (proxy.accepted == 0) is direct


async def test_a_socks_proxy_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "socksio", None)
    with pytest.raises(ImportError, match=r'pip install "sandbox-agent-py\[socks\]"'):
        SandboxAgent(base_url="http://box.example")
    SandboxAgent(base_url="http://127.0.0.1:1")


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "ALL_PROXY"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_local_never_uses_a_proxy(monkeypatch: pytest.MonkeyPatch, variable: str, host: str) -> None:
    monkeypatch.setenv(variable, "socks5://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "socksio", None)
    async with SandboxAgent.start(sandbox=local(host=host, log="silent")) as sdk:
        assert (await sdk.get_health()).status == "ok"
        session = await sdk.create_session(agent="mock")
        assert (await session.prompt("hello")).stop_reason == "end_turn"
        await sdk.destroy_sandbox()


@pytest.mark.parametrize("name", ["", ".", ".."])
async def test_an_id_that_no_path_can_have_is_refused(name: str) -> None:
    transport = httpx2.MockTransport(lambda _: pytest.fail("a request was sent"))
    async with SandboxAgent.connect(transport=transport, skip_health_check=True) as sdk:
        for call in (
            sdk.get_agent(name),
            sdk.install_agent(name),
            sdk.sessions.create(name, agent="mock"),
            sdk.sessions.get(name),
            sdk.sessions.delete(name),
            sdk.sessions.reply_permission("s", name, "once"),
            anext(sdk.sessions.stream_events(name)),
        ):
            with pytest.raises(ValueError, match=r"must not be empty, '\.' or '\.\.'"):
                await call


async def test_text_that_becomes_a_header_is_encoded() -> None:
    seen: list[httpx2.Request] = []

    def respond(request: httpx2.Request) -> httpx2.Response:
        seen.append(request)
        return httpx2.Response(204, headers={"Sandbox-Agent-Turn": "t"})

    transport = httpx2.MockTransport(respond)
    async with SandboxAgent.connect(transport=transport, skip_health_check=True) as sdk:
        await sdk.sessions.reply_permission("s", "p", "once", by="Jürgen\r\nX: 1 50% ☺")
        await sdk.sessions.post_message("s", "hi", idempotency_key="ключ")
    assert seen[0].headers["Sandbox-Agent-Client"] == "J%C3%BCrgen%0D%0AX: 1 50% %E2%98%BA"
    assert seen[1].headers["Idempotency-Key"] == "%D0%BA%D0%BB%D1%8E%D1%87"
