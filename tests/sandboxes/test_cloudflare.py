"""cloudflare() with a Worker on loopback, and the Worker that the docs have."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sandbox_agent import (
    CloudflareProvider,
    SandboxAgent,
    SandboxAgentError,
    SandboxDestroyedError,
    cloudflare,
)
from sandbox_agent.testing.providers import run_command
from tests.sandboxes.fakes.cloudflare import API_KEY, FakeCloudflare
from tests.sandboxes.remote_suite import ENV, METADATA, Make, RemoteSuite
from tests.support import shell_agent
from tests.support.servers import free_port

pytestmark = [pytest.mark.anyio, pytest.mark.sandboxes]

PAGE = Path(__file__).parents[2] / "docs/sandboxes/cloudflare.md"
HOST = Path(__file__).with_name("worker_host.mjs")


class TestCloudflare(RemoteSuite):
    fake = FakeCloudflare
    title = "The Worker"
    variable = "CLOUDFLARE_SANDBOX_API_KEY"
    has_pause = False

    @staticmethod
    def provider_of(service: FakeCloudflare, options: dict[str, Any]) -> CloudflareProvider:
        return cloudflare(service.url, api_key=API_KEY, **options)

    def renewal(self, raw_id: str, timeout: int) -> list[tuple[str, str, Any]]:
        return [("POST", f"/v1/sandbox/{raw_id}/timeout", {"timeout": timeout})]

    async def test_the_requests_to_the_service_are_these(self, make: Make, service: FakeCloudflare) -> None:
        provider = make(env={"A": "1"}, create={"enableInternet": False})
        raw_id = await provider.create()
        await provider.reconnect(raw_id)
        await provider.destroy(raw_id)
        sandbox = f"/v1/sandbox/{raw_id}"
        body = {"timeout": 3600, "enableInternet": False, "metadata": METADATA}
        assert service.requests == [
            ("PUT", sandbox, body),
            ("GET", sandbox, None),
            ("POST", f"{sandbox}/timeout", {"timeout": 3600}),
            ("DELETE", sandbox, None),
        ]

    async def test_the_url_and_the_key_are_in_variables(
        self, service: FakeCloudflare, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("CLOUDFLARE_SANDBOX_URL", raising=False)
        monkeypatch.delenv("CLOUDFLARE_SANDBOX_API_KEY", raising=False)
        with pytest.raises(ValueError, match="set CLOUDFLARE_SANDBOX_URL"):
            cloudflare()
        monkeypatch.setenv("CLOUDFLARE_SANDBOX_URL", service.url)
        with pytest.raises(SandboxAgentError, match="set CLOUDFLARE_SANDBOX_API_KEY"):
            await cloudflare().reconnect("sandbox-agent-0123")
        monkeypatch.setenv("CLOUDFLARE_SANDBOX_API_KEY", API_KEY)
        with pytest.raises(SandboxDestroyedError):
            await cloudflare().reconnect("sandbox-agent-0123")
        with pytest.raises(SandboxAgentError, match="does not list"):
            await cloudflare().list_sandboxes()

    async def test_a_worker_that_is_not_there_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sandbox_agent.providers.service._FIRST_WAIT", 0.0)
        provider = cloudflare(f"http://127.0.0.1:{free_port()}", api_key=API_KEY)
        with pytest.raises(SandboxAgentError, match="could not be reached"):
            await provider.reconnect("sandbox-agent-0123")


@pytest.mark.skipif(shutil.which("node") is None, reason="THE WORKER IS NOT TESTED: there is no node")
async def test_the_worker_of_the_docs_runs_sandboxes(tmp_path: Path) -> None:
    found = re.search(r"```js\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    (tmp_path / "worker.js").write_text(found[1].replace('"cloudflare:workers"', '"./cloudflare.js"'))
    (tmp_path / "cloudflare.js").write_text(
        "export class DurableObject { constructor(ctx, env) { this.ctx = ctx; this.env = env; } }"
    )
    (tmp_path / "package.json").write_text('{"type": "module"}')
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "sandbox-agent").symlink_to(Path(sys.executable).with_name("sandbox-agent"))
    with subprocess.Popen(  # noqa: ASYNC220 - it prints its port at once
        ["node", HOST, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"API_KEY": API_KEY}
    ) as host:
        assert host.stdout is not None
        assert host.stdin is not None
        try:
            await _use(f"http://127.0.0.1:{int(host.stdout.readline())}", tmp_path)
        finally:
            host.stdin.close()
    assert host.returncode == 0


async def _use(url: str, folder: Path) -> None:
    project = folder / "project"
    project.mkdir()
    (project / "bytes").write_bytes(bytes(range(256)) * 1000)
    provider = cloudflare(
        url,
        api_key=API_KEY,
        home=str(folder / "home"),
        agent_port=free_port(),
        workspace=project,
        env=ENV,
        args=["--agent-command", f"shell={sys.executable} {shell_agent.__file__}"],
    )
    async with SandboxAgent.start(sandbox=provider) as sdk:
        raw_id = str(sdk.sandbox_id).partition("/")[2]
        session = await sdk.create_session(agent="shell")
        said = await run_command(session, 'printf %s "$GREETING"; cat bytes | wc -c')
        assert ENV["GREETING"] in said
        assert "256000" in said
        async with httpx2.AsyncClient(base_url=f"{url}/v1/sandbox/") as client:
            right = {"X-Sandbox-Key": API_KEY}
            assert (await client.get(raw_id)).status_code == 401
            assert (await client.get(raw_id, headers={"X-Sandbox-Key": "wrong"})).status_code == 401
            assert (await client.get("short", headers=right)).status_code == 404
            assert (await client.get(raw_id, headers=right)).json() == {"metadata": METADATA}
            assert (await client.put(raw_id, headers=right, json={})).status_code == 409
        second = cloudflare(url, api_key=API_KEY, home=str(folder / "home"))
        assert await second.get_token(raw_id) == await provider.get_token(raw_id)
        (folder / "home/.sandbox-agent/token").unlink()
        with pytest.raises(SandboxAgentError, match="lacks a file"):
            await cloudflare(url, api_key=API_KEY, home=str(folder / "home")).get_token(raw_id)
        await sdk.destroy_sandbox()
    with pytest.raises(SandboxDestroyedError):
        await provider.reconnect(raw_id)
