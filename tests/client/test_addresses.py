"""What a client makes of addresses, proxies and text in headers."""

from __future__ import annotations

import httpx2
import pytest

from sandbox_agent import SandboxAgent
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
