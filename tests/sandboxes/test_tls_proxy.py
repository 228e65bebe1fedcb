"""The configuration of nginx in the docs, with nginx."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import anyio
import httpx2
import pytest

from sandbox_agent import SandboxAgent
from tests.docs.pages import ROOT, snippets
from tests.support.servers import free_port, our_server
from tests.support.tls import make_certificate

pytestmark = [pytest.mark.sandboxes, pytest.mark.anyio]

TOKEN = "a-token-that-is-long-enough"
TIMEOUT = 60
NAME = "localhost"


@pytest.fixture
def proxied(tmp_path: Path) -> Generator[tuple[str, httpx2.AsyncHTTPTransport]]:
    """Yield the URL of a server behind nginx, and a transport that trusts its certificate."""
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("needs nginx (Debian: nginx-light)")
    authority, own = make_certificate(NAME, tmp_path)
    [snippet] = [each for each in snippets(ROOT / "docs/tls-proxy.md") if each.language == "nginx"]
    port = free_port()
    with our_server(tmp_path, token=TOKEN) as server:
        changes = {
            "listen 443 ssl": f"listen 127.0.0.1:{port} ssl",
            "agents.example.com": NAME,
            "/etc/ssl/agents.pem": str(own),
            "127.0.0.1:2468": f"127.0.0.1:{server.port}",
        }
        configuration = snippet.code
        for written, meant in changes.items():
            assert written in configuration
            configuration = configuration.replace(written, meant)
        temporary = "".join(
            f"{kind}_temp_path {tmp_path}/{kind};\n"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = tmp_path / "nginx.conf"
        file.write_text(
            f"pid {tmp_path}/nginx.pid;\nerror_log stderr;\nevents {{}}\n"
            f"http {{\naccess_log off;\n{temporary}{configuration}}}\n"
        )
        command = [nginx, "-c", str(file), "-e", "stderr", "-p", str(tmp_path), "-g", "daemon off;"]
        if os.geteuid() == 0:
            command[-1] += " user root;"
        url = f"https://{NAME}:{port}/agents"
        context = ssl.create_default_context(cafile=str(authority))
        with subprocess.Popen(command) as process:
            try:
                begun = time.monotonic()
                while True:
                    try:
                        httpx2.get(f"{url}/v1/health", verify=context)
                        break
                    except httpx2.ConnectError:
                        assert process.poll() is None, "nginx has ended"
                        assert time.monotonic() - begun < TIMEOUT
                yield url, httpx2.AsyncHTTPTransport(verify=context)
            finally:
                process.terminate()


async def test_a_session_works_behind_nginx(proxied: tuple[str, httpx2.AsyncHTTPTransport]) -> None:
    url, transport = proxied
    with anyio.fail_after(TIMEOUT):
        async with SandboxAgent.connect(url, token=TOKEN, transport=transport) as sdk:
            session = await sdk.create_session(agent="mock", permission_policy="allow_once")
            turn = session.stream("stream 100000 20")  # its events arrive although it does not end
            async for event in turn:
                if event.sender == "agent" and event.payload.get("method") == "session/update":
                    break
            await session.cancel()
            assert "granted" in await session.ask("permission")
            await sdk.sessions.create("driven", agent="mock")
            events = [event async for event in sdk.sessions.stream_turn("driven", "echo hi")]
            assert events[-1].type == "turn.ended"


async def test_a_large_file_is_uploaded_behind_nginx(
    proxied: tuple[str, httpx2.AsyncHTTPTransport], tmp_path: Path
) -> None:
    url, transport = proxied
    content = os.urandom(20 * 1024 * 1024)
    async with SandboxAgent.connect(url, token=TOKEN, transport=transport) as sdk:
        await sdk.files.write(tmp_path / "large", content)
        assert (tmp_path / "large").read_bytes() == content
