"""Eight agents on one server, which has two cores: all finish their turns, and no process is left."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import pytest

from sandbox_agent import SandboxAgent
from sandbox_agent.agents.catalogue import agent_modes
from sandbox_agent.testing.agents.profile import profile_of
from sandbox_agent.testing.llm import ScriptedLLM
from tests.interop.leftovers import Leftovers
from tests.real_agent.test_matrix import AGENTS, SECONDS, install
from tests.support.npm import NpmMissingError
from tests.support.servers import our_server

pytestmark = [pytest.mark.anyio, pytest.mark.agents]

NOWHERE = "http://127.0.0.1:9"
# Nothing but loopback.
PROXY = {
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
}


@pytest.mark.timeout(SECONDS)
async def test_eight_agents_at_once_on_two_cores_all_finish(tmp_path: Path) -> None:
    try:
        for agent in AGENTS[1:]:
            await anyio.to_thread.run_sync(install, agent)
        data = await anyio.to_thread.run_sync(install, AGENTS[0])
    except NpmMissingError as error:
        pytest.skip(f"NOT TESTED: eight agents at once ({error})")
    leftovers = Leftovers()
    server = our_server(tmp_path, env={**leftovers.env, **PROXY, "XDG_DATA_HOME": str(data)})
    cores = ",".join(str(core) for core in sorted(os.sched_getaffinity(0))[:2])
    server.wrap(lambda command: ["taskset", "--cpu-list", cores, *command])
    # Requests without tools are agents' own, such as for a title.
    async with ScriptedLLM(lambda request: None if request.tools else "An aside") as llm:
        with server:
            async with SandboxAgent.connect(base_url=server.url) as sdk:

                async def work(agent: str) -> None:
                    home, profile, modes = tmp_path / agent, profile_of(agent), agent_modes(agent)
                    home.mkdir()
                    profile.write_files(llm.url, home)
                    assert profile.write is not None
                    never_asks = modes is not None and modes.never_asks
                    session = await sdk.create_session(
                        agent=agent,
                        cwd=str(home),
                        permission_mode="allow" if never_asks else "ask",
                        permission_policy="allow_once",
                        env={
                            "HOME": str(home),
                            "XDG_CONFIG_HOME": str(home / ".config"),
                            "XDG_CACHE_HOME": str(home / ".cache"),
                            "XDG_STATE_HOME": str(home / ".local/state"),
                            **profile.variables(llm.url, home),
                        },
                    )
                    response = await session.prompt(profile.write.directive(home / "written.txt", agent))
                    assert response.stop_reason == "end_turn", agent
                    assert (home / "written.txt").read_text().strip() == agent

                async with anyio.create_task_group() as tasks:
                    for agent in AGENTS:
                        tasks.start_soon(work, agent)
    assert not leftovers.find()
