"""A server whose agent ``claude`` is the mock, and appends its environment to a file when it starts."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest

from sandbox_agent import SandboxAgent
from tests.support.servers import ServerProcess, descendants, our_server, put_launcher

__all__ = ["MOCK", "kill_agents", "kill_processes", "server", "starts"]

MOCK = shlex.join([sys.executable, "-P", "-m", "sandbox_agent.agents.mock"])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with the agent, and with the variable MY_KEY."""
    dump = f"env -0 >> {shlex.quote(str(tmp_path / 'starts'))}; exec {MOCK}"
    put_launcher(tmp_path / "data", "claude", ["sh", "-c", dump])
    options = ("--store", f"sqlite:{tmp_path}/server.db", "--log-level", "debug")
    with our_server(tmp_path, *options, env={"MY_KEY": "of the server"}) as running:
        yield running


def starts(folder: Path, name: str = "MY_KEY") -> list[str]:
    """Return a variable's value in each start of the agent."""
    lines = (folder / "starts").read_text().split("\0")
    return [line.partition("=")[2] for line in lines if line.startswith(f"{name}=")]


def kill_processes(server: ServerProcess) -> int:
    """Kill the processes of all agents, and return their number."""
    killed = 0
    for pid in descendants(server.pid):
        if b"sandbox_agent.agents.mock" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, 9)
            killed += 1
    return killed


async def kill_agents(sdk: SandboxAgent, server: ServerProcess) -> int:
    """Kill all agents, and return their number when the server has noticed."""
    killed = kill_processes(server)
    with anyio.fail_after(20):
        while await sdk.list_acp_servers():
            await anyio.lowlevel.checkpoint()
    return killed
