"""Which variables of a program the agents of its local servers inherit."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sandbox_agent import local
from tests.server.talk import envelope
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip, rust_server
from tests.support.servers import put_launcher

pytestmark = pytest.mark.anyio

SHELL = {"ANTHROPIC_API_KEY": "key", "ANTHROPIC_BASE_URL": "url", "DEPLOY_KEY": "secret"}
# Writes its environment when it is asked anything.
AGENT = """
import json, os, sys
sys.stdin.readline()
print(json.dumps({"jsonrpc": "2.0", "id": 1, "result": dict(os.environ)}), flush=True)
sys.stdin.read()
"""


async def inherited(
    folder: Path, monkeypatch: pytest.MonkeyPatch, env: Mapping[str, str], **options: Any
) -> dict[str, str]:
    """Return the environment of ``claude`` under a local server."""
    for name, value in SHELL.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SANDBOX_AGENT_TOKEN", "of-another-server")
    program = folder / "agent.py"
    program.write_text(AGENT)
    put_launcher(folder / "data", "claude", [sys.executable, str(program)])
    variables = {"XDG_DATA_HOME": str(folder / "data"), **env}
    provider = local(log=folder / "server.log", env=variables, **options)
    raw_id = await provider.create()
    try:
        headers = {"authorization": f"Bearer {await provider.get_token(raw_id)}"}
        async with httpx2.AsyncClient(base_url=f"http://{raw_id}", headers=headers, timeout=60) as client:
            response = await client.post(
                "/v1/acp/spy", params={"agent": "claude"}, json=envelope("initialize", {}, 1)
            )
            found: dict[str, str] = response.json()["result"]
    finally:
        await provider.destroy(raw_id)
    assert "of-another-server" not in found.values()
    assert await provider.get_token(raw_id) not in found.values()
    return found


async def test_claude_has_its_key_and_what_was_given_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await inherited(tmp_path, monkeypatch, {"GIVEN": "yes", "PGPASSWORD": "given too"})
    assert found["ANTHROPIC_API_KEY"] == "key"
    assert found["ANTHROPIC_BASE_URL"] == "url"
    assert (found["GIVEN"], found["PGPASSWORD"]) == ("yes", "given too")
    assert "PATH" in found
    assert "DEPLOY_KEY" not in found


async def test_the_default_policy_gives_an_agent_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await inherited(tmp_path, monkeypatch, {}, agent_env_policy="default")
    assert SHELL.items() <= found.items()


async def test_arguments_change_what_an_agent_inherits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["--agent-env", "DEPLOY_*", "--agent-env-deny", "ANTHROPIC_BASE_URL"]
    found = await inherited(tmp_path, monkeypatch, {}, args=args)
    assert found["DEPLOY_KEY"] == "secret"
    assert found["ANTHROPIC_API_KEY"] == "key"
    assert "ANTHROPIC_BASE_URL" not in found


async def test_the_agents_of_the_published_server_have_no_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    npm_or_skip(PUBLISHED_SERVER, "the environment of its agents")
    env = {"SANDBOX_AGENT_REQUIRE_PREINSTALL": "1"}
    found = await inherited(tmp_path, monkeypatch, env, binary=rust_server(), args=["--no-telemetry"])
    assert found["ANTHROPIC_API_KEY"] == "key"
