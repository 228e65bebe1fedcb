"""``sandbox-agent ps``: the agents behind a server, and what they use."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import anyio
import pytest

from sandbox_agent import SandboxAgent
from sandbox_agent.cli.ps import format_bytes, format_seconds
from tests.cli.conftest import Shell
from tests.support.servers import our_server, put_launcher

# The mock, with a tool that has left its session and its group.
ESCAPING = "setsid sleep 600 & exec {python} -P -m sandbox_agent.agents.mock"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc of Linux")
def test_agents_are_listed_with_what_they_use(shell: Shell, tmp_path: Path) -> None:
    put_launcher(tmp_path / "data", "escaping", ["sh", "-c", ESCAPING.format(python=sys.executable)])
    with our_server(tmp_path) as server:

        async def look() -> None:
            async with SandboxAgent.connect(base_url=server.url) as sdk:
                await sdk.create_session(agent="escaping")
                (found,) = await sdk.list_acp_servers(usage=True)
                assert found.usage is not None
                assert found.usage.processes == 2
                assert found.usage.memory_bytes > 10_000_000
                assert (await sdk.list_acp_servers())[0].usage is None

                def run() -> None:
                    header, row = shell.run("ps", "-e", server.url).stdout.splitlines()
                    assert " ".join(header.split()) == "SERVER ID AGENT PROCESSES MEMORY CPU AGE IDLE"
                    assert row.split()[:3] == [found.server_id, "escaping", "2"]
                    assert "MiB" in row
                    (line,) = shell.run("ps", "-e", server.url, "--json").stdout.splitlines()
                    assert json.loads(line)["usage"]["processes"] == 2

                await anyio.to_thread.run_sync(run)

        anyio.run(look)


def test_sizes_and_durations() -> None:
    assert [format_bytes(size) for size in (0, 1023, 1024, 3 << 20, 5 << 40, 5 << 50)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "3 MiB",
        "5 TiB",
        "5120 TiB",
    ]
    assert [format_seconds(seconds) for seconds in (0.4, 59.6, 61, 3_600, 90_061)] == [
        "0 s",
        "1 min 0 s",
        "1 min 1 s",
        "1 h 0 min",
        "25 h 1 min",
    ]
