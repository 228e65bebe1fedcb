"""A server with an egress proxy: what agents get of it, and where refusals are shown."""

from __future__ import annotations

import sys
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from sandbox_agent import SandboxAgent
from sandbox_agent.wire.universal import ItemEventData, StatusPart
from tests.egress.kit import Origin, proxying
from tests.support import shell_agent
from tests.support.servers import our_server, put_launcher

pytestmark = pytest.mark.anyio

GET = f"""cat > get.py <<'END'
import urllib.request, urllib.error, sys
try:
    print(urllib.request.urlopen(sys.argv[1]).read().decode())
except urllib.error.HTTPError as error:
    print(error.code)
END
{sys.executable} get.py"""
NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")


async def test_agents_reach_hosts_through_the_proxy_and_refusals_are_status_items(tmp_path: Path) -> None:
    put_launcher(tmp_path / "data", "shell", [sys.executable, shell_agent.__file__])
    env = dict.fromkeys(NAMES, "http://127.0.0.1:9") | {"NO_PROXY": "*"}
    async with Origin().run() as origin, proxying(f"web.test:{origin.port}=127.0.0.1") as proxy:
        server = our_server(tmp_path, "--egress-proxy", f"http://127.0.0.1:{proxy.port}", env=env)
        await anyio.to_thread.run_sync(server.start)
        try:
            async with SandboxAgent.connect(base_url=server.url) as sdk:
                await sdk.sessions.create("s", agent="shell", directory=str(tmp_path))

                async def run(command: str) -> str:
                    async for event in sdk.sessions.stream_turn("s", command):
                        data = event.data
                        if event.type == "item.completed" and isinstance(data, ItemEventData):
                            said = "".join(getattr(part, "text", "") for part in data.item.content)
                            if data.item.kind == "message" and data.item.role == "assistant":
                                return said
                    raise AssertionError("the agent said nothing")

                variables = dict(
                    line.split("=", 1) for line in (await run("env")).splitlines() if "=" in line
                )
                assert len({variables[name] for name in NAMES}) == 1
                assert variables["HTTPS_PROXY"].startswith("http://")
                assert variables["HTTPS_PROXY"] != "http://127.0.0.1:9"
                assert variables["NO_PROXY"] == variables["no_proxy"] == "localhost,127.0.0.1,::1"
                assert variables["NODE_USE_ENV_PROXY"] == "1"
                assert await run(f"{GET} http://web.test:{origin.port}/") == "hello\n[0]"
                with anyio.fail_after(30):
                    # The server may not read the refusals yet when its agent asks first.
                    while not (found := await refusals(sdk)):
                        assert await run(f"{GET} http://example.com/") == "403\n[0]"
                expected = "the sandbox does not allow example.com:80: it is not in the list. To allow it, "
                assert found == [expected + "add 'example.com' to allow_hosts"]
        finally:
            await anyio.to_thread.run_sync(server.stop)


async def refusals(sdk: SandboxAgent) -> list[str | None]:
    """Return what the session shows of refused hosts."""
    found: list[str | None] = []
    for event in (await sdk.sessions.get_events("s", limit=1_000)).events:
        if event.type == "item.completed":
            part = event.data.item.content[0]
            if isinstance(part, StatusPart) and part.label == "egress":
                found.append(part.detail)
    return found


async def test_an_agent_gets_an_error_while_there_is_no_proxy(tmp_path: Path) -> None:
    put_launcher(tmp_path / "data", "shell", [sys.executable, shell_agent.__file__])
    server = our_server(tmp_path, "--egress-proxy", f"unix:{tmp_path}/none.sock")
    await anyio.to_thread.run_sync(server.start)
    try:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            await sdk.sessions.create("s", agent="shell", directory=str(tmp_path))
            events = [event async for event in sdk.sessions.stream_turn("s", f"{GET} http://example.com/")]
            assert "502\\n[0]" in str([event.data for event in events])
    finally:
        await anyio.to_thread.run_sync(server.stop)
