"""Both servers with the same scripted agent, and the npm packages that they are held against."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.leftovers import Leftovers
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import ServerProcess, our_server, published_server

OURS, PUBLISHED = "our server", "the published server"
# A word of the command line of the scripted agent.
AGENT_PROCESS = "sandbox_agent.agents.mock"


@dataclass(frozen=True)
class RunningServer:
    """A server, the agent that it runs, and what it leaves behind.

    Attributes:
        process: the server.
        agent: the id of the scripted agent: the same program on both servers.
        leftovers: finds its processes.
        spoken: the folder where the agent writes down what it is told.
    """

    process: ServerProcess
    agent: str
    leftovers: Leftovers
    spoken: Path

    @property
    def url(self) -> str:
        """Its base URL."""
        return self.process.url

    def restart(self) -> None:
        """SIGKILL it and start it again on the same port."""
        self.process.kill()
        self.process.start()

    def told(self, agent_session_id: str) -> list[str]:
        """Return what the agent was told in that session: each text block of each prompt."""
        lines = (self.spoken / f"{agent_session_id}.jsonl").read_text().splitlines()
        updates = [json.loads(line).get("update", {}) for line in lines]
        said = [update for update in updates if update.get("sessionUpdate") == "user_message_chunk"]
        return [update["content"]["text"] for update in said]


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[RunningServer]:
    """A server; ours unless the test is parametrised with ``PUBLISHED``."""
    leftovers = Leftovers()
    spoken = tmp_path / "spoken"
    env = {**leftovers.env, "SANDBOX_AGENT_MOCK_STATE": str(spoken)}
    ours = getattr(request, "param", OURS) == OURS
    if ours:
        process, agent = our_server(tmp_path, "--store", f"sqlite:{tmp_path}/server.db", env=env), "mock"
    else:
        npm_or_skip(PUBLISHED_SERVER, "compatibility with the published server")
        process, agent = published_server(tmp_path, env=env), "claude"
    with process:
        yield RunningServer(process, agent, leftovers, spoken)
    if not ours:
        leftovers.wait()  # the published server doesn't wait for its agents' end
    assert not leftovers.find(), "processes outlived the server"
