"""Claude Code behind our server, its language model a script, everything on loopback."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sandbox_agent.testing.llm import ScriptedLLM
from tests.interop.leftovers import Leftovers
from tests.support.npm import CLAUDE_AGENT, npm_or_skip
from tests.support.servers import ServerProcess, our_server, put_launcher

ENTRY = "@agentclientprotocol/claude-agent-acp/dist/index.js"


@dataclass(frozen=True)
class ClaudeServer:
    """Our server with Claude Code on it.

    Attributes:
        process: the server.
        llm: what Claude Code takes for its model.
        work: the folder where the agent works.
        leftovers: finds the agent's processes.
    """

    process: ServerProcess
    llm: ScriptedLLM
    work: Path
    leftovers: Leftovers

    @property
    def url(self) -> str:
        """Its base URL."""
        return self.process.url


@pytest.fixture(scope="session")
def claude_entry() -> Path:
    """The adapter's script; without npm the tests of this folder are skipped, loudly."""
    return npm_or_skip(CLAUDE_AGENT, "a real agent behind the server") / ENTRY


@pytest.fixture
async def claude(claude_entry: Path, tmp_path: Path) -> AsyncGenerator[ClaudeServer]:
    """A server, a model and a folder of the test's own."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    put_launcher(tmp_path / "data", "claude", ["node", str(claude_entry)])
    leftovers = Leftovers()
    async with ScriptedLLM() as llm:
        env = {
            **leftovers.env,
            "HOME": str(home),
            "CLAUDE_CONFIG_DIR": str(home / ".claude"),
            "ANTHROPIC_BASE_URL": llm.url,
            "ANTHROPIC_API_KEY": "sk-ant-scripted",
            "ANTHROPIC_AUTH_TOKEN": "",
            "ANTHROPIC_MODEL": "",
            # As root Claude Code refuses to start if the adapter takes the machine for a sandbox.
            "IS_SANDBOX": "",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "DISABLE_ERROR_REPORTING": "1",
            "DISABLE_TELEMETRY": "1",
            # Nothing but loopback: whatever goes elsewhere ends at a port where nobody listens.
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        with our_server(tmp_path, "--store", f"sqlite:{tmp_path}/server.db", env=env) as process:
            yield ClaudeServer(process, llm, work, leftovers)
        assert not leftovers.find(), "processes outlived the server"
        assert llm.unknown == []
