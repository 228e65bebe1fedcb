"""The demo on a real agent: Claude Code, its language model a script."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from sandbox_agent.testing.llm import ScriptedLLM
from tests.cli.conftest import Shell
from tests.support.npm import CLAUDE_AGENT, npm_or_skip
from tests.support.servers import put_launcher

pytestmark = pytest.mark.agents

ENTRY = "@agentclientprotocol/claude-agent-acp/dist/index.js"


@pytest.fixture(scope="module")
def entry() -> Path:
    """The adapter; without npm the test is skipped, loudly."""
    return npm_or_skip(CLAUDE_AGENT, "the demo on a real agent") / ENTRY


def test_the_demo_runs_on_claude_code(shell: Shell, entry: Path, tmp_path: Path) -> None:
    put_launcher(tmp_path / "data", "claude", ["node", str(entry)])
    home = tmp_path / "home"
    home.mkdir()
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(ScriptedLLM()) as llm:
        env = {
            "HOME": str(home),
            "CLAUDE_CONFIG_DIR": str(home / ".claude"),
            "ANTHROPIC_BASE_URL": llm.url,
            "ANTHROPIC_API_KEY": "sk-ant-scripted",
            "ANTHROPIC_AUTH_TOKEN": "",
            "ANTHROPIC_MODEL": "",
            "IS_SANDBOX": "",
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
            "DISABLE_AUTOUPDATER": "1",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1,localhost",
        }
        done = shell.run("demo", "--agent", "claude", "--folder", tmp_path / "demo", env=env)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "very first thing" in llm.requests[-1].text
        assert "Create the file hello.txt" in llm.requests[-1].text, "the history was not given again"
    counts = re.findall(r"^(?:sent|stored|seen) +(\d+) ", done.stdout, flags=re.MULTILINE)
    assert len(counts) == 3
    assert len(set(counts)) == 1
