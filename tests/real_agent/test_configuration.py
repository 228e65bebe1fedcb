"""Real agents use what is configured for their folder: the tools of an MCP server, and skills."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from sandbox_agent.testing.agents.bed import AgentBed, open_bed
from sandbox_agent.testing.agents.profile import profile_of
from tests.real_agent.test_matrix import SECONDS, install
from tests.support.npm import NpmMissingError

pytestmark = [pytest.mark.anyio, pytest.mark.agents]

# Some agents connect to an MCP server in the background.
ATTEMPTS = 10
AGENTS = ["goose", "opencode"]
WITH_SKILLS = ["claude", "codex", "copilot", "gemini", "goose", "opencode", "qwen"]
SKILL = "---\nname: tidy\ndescription: Use it to tidy up the quokka files.\n---\nTidy up.\n"


def installed(agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv("XDG_DATA_HOME", str(install(agent)))
    except NpmMissingError as error:
        pytest.skip(f"NOT TESTED: {agent} behind the server ({error})")


async def adds(bed: AgentBed, work: Path) -> bool:
    """Whether the agent calls the tool of an MCP server that only the folder's configuration names."""
    session = await bed.sdk.create_session(agent=bed.agent, cwd=work, permission_policy="allow_once")
    for attempt in range(ATTEMPTS):
        await session.prompt(f"attempt {attempt} {bed.profile.mcp_call}")
        requests = await bed.requests_with(f"attempt {attempt}")
        if any("The sum is 42." in result for request in requests for result in request.results):
            return True
    return False


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agent_uses_the_mcp_server_of_its_folder(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(agent, monkeypatch)
    async with open_bed(agent, profile_of(agent), tmp_path / "bed") as bed:
        server = {"type": "local", "command": [sys.executable, "-P", "-m", "sandbox_agent.testing.mcp"]}
        path = bed.work / ".sandbox-agent/config/mcp.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"tiny": server}))
        assert await adds(bed, bed.work)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("agent", WITH_SKILLS)
async def test_the_model_of_an_agent_knows_the_skills_of_its_folder(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(agent, monkeypatch)
    async with open_bed(agent, profile_of(agent), tmp_path / "bed") as bed:
        (tmp_path / "source/tidy").mkdir(parents=True)
        (tmp_path / "source/tidy/SKILL.md").write_text(SKILL)
        source = {"type": "local", "source": str(tmp_path / "source")}
        path = bed.work / ".sandbox-agent/config/skills.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"mine": {"sources": [source]}}))
        session = await bed.sdk.create_session(agent=agent, cwd=bed.work, permission_policy="allow_once")
        await session.prompt("attempt [[say hello]]")
        requests = await bed.requests_with("attempt")
        assert any("tidy up the quokka files" in json.dumps(dict(request.body)) for request in requests)
