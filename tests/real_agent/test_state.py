"""Real agents keep their sessions and configuration in the files that the catalogue names."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox_agent.agents.catalogue import CATALOGUE
from sandbox_agent.testing.agents.bed import open_bed
from sandbox_agent.testing.agents.profile import profile_of
from tests.real_agent.test_matrix import AGENTS, SECONDS, install
from tests.support.npm import NpmMissingError

pytestmark = [pytest.mark.anyio, pytest.mark.agents]

# What can be deleted at any time.
CACHES = (Path(".cache"), Path(".npm"))


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("agent", AGENTS)
async def test_an_agent_writes_where_the_catalogue_says(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        monkeypatch.setenv("XDG_DATA_HOME", str(install(agent)))
    except NpmMissingError as error:
        pytest.skip(f"NOT TESTED: {agent} behind the server ({error})")
    profile = profile_of(agent)
    async with open_bed(agent, profile, tmp_path / "bed") as bed:
        session = await bed.sdk.create_session(agent=agent, cwd=bed.work)
        await session.prompt("[[say hello]]")
        files = {path.relative_to(bed.home) for path in bed.home.rglob("*") if path.is_file()}
        # The agent's $XDG_DATA_HOME, which is usually ~/.local/share, is a folder beside its home here.
        data = tmp_path / "bed/data"
        shared = (path.relative_to(data) for path in data.rglob("*") if path.is_file())
        files |= {Path(".local/share", path) for path in shared if path.parts[0] != "sandbox-agent"}
    state = [Path(path) for path in CATALOGUE[agent].state]
    written = {path for path in files if not any(path.is_relative_to(cache) for cache in CACHES)}
    assert {path for path in written if not any(path.is_relative_to(known) for known in state)} == set()
    assert written - {Path(name) for name in profile.files}, "it has written nothing"
