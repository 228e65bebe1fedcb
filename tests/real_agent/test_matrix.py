"""Eight real agents behind the server, with a scripted model: each does what its profile says, and no more.

The results are written to ``build/agents-matrix``; ``scripts/agents_matrix.py`` makes the page of the docs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sandbox_agent.testing.agents import check_agent
from tests.docs.pages import ROOT
from tests.support.npm import NpmMissingError, cache_folder, node_wheel

pytestmark = [pytest.mark.anyio, pytest.mark.agents]

# A loaded machine; the slowest takes two minutes on two cores of its own.
SECONDS = 900.0
RESULTS = ROOT / "build/agents-matrix"
# The slowest first, for the end of a run in several processes.
AGENTS = ["opencode", "qwen", "claude", "copilot", "gemini", "pi", "codex", "goose"]


def install(agent: str) -> Path:
    """Install an agent in the catalogue's version, once, and return the data folder."""
    data = cache_folder() / "agents"
    command = [sys.executable, "-m", "sandbox_agent.cli.main", "agents", "install", agent]
    env = {
        **os.environ,
        "XDG_DATA_HOME": str(data),
        "PYTHONPATH": str(node_wheel()),
        "npm_config_cache": str(cache_folder() / "npm"),
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode:
        raise NpmMissingError(done.stderr.strip()[-300:])
    return data


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agent_does_what_is_known_about_it(agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        data = install(agent)
    except NpmMissingError as error:
        pytest.skip(f"NOT TESTED: {agent} behind the server ({error})")
    monkeypatch.setenv("XDG_DATA_HOME", str(data))
    report = await check_agent(agent, patience=4.0)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{agent}.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    unknown = [result for result in report.results if not result.expected]
    assert not unknown, "\n".join(
        f"{each.route} {each.scenario}: {each.outcome}: {each.reason}" for each in unknown
    )
