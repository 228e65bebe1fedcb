"""``create_session(env=...)``: variables of a session's own agent. Their values are nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sandbox_agent import (
    AgentProcessExitedError,
    ConflictError,
    InvalidRequestError,
    SandboxAgent,
    SQLiteSessionPersistDriver,
    UnsupportedSessionValueError,
)
from sandbox_agent.client.http import Http
from tests.client.checks import all_events
from tests.support.dumping_agent import MOCK, kill_agents, server, starts
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import ServerProcess, published_server, put_launcher

__all__ = ["server"]

pytestmark = pytest.mark.anyio

SECRET = "value-that-is-secret"


def files_with(folder: Path, text: str) -> list[Path]:
    """Return the stores and logs that have a text."""
    files = [*folder.glob("*.db*"), folder / "server.log"]
    assert len(files) > 2
    return [file for file in files if text.encode() in file.read_bytes()]


async def test_a_session_has_an_agent_with_its_variables_after_every_loss(
    server: ServerProcess, tmp_path: Path
) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "sdk.db")
    async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
        first = await sdk.create_session(agent="claude", env={"MY_KEY": SECRET})
        second = await sdk.create_session(agent="claude")
        third = await sdk.create_session(agent="claude", env={"MY_KEY": f"{SECRET}-2"})
        assert starts(tmp_path) == [SECRET, "of the server", f"{SECRET}-2"]
        for session in (first, second, third):
            await session.prompt("echo hello")
        assert len(starts(tmp_path)) == 3

        assert await kill_agents(sdk, server) == 3
        await first.prompt("echo again")
        assert starts(tmp_path)[3:] == [SECRET]
        server.kill()
        server.start()
        await third.prompt("echo again")
        assert starts(tmp_path)[4:] == [f"{SECRET}-2"]

        assert not any(SECRET in str(event.payload) for event in await all_events(sdk, first))
        assert not any(SECRET in repr(each) for each in await sdk.list_acp_servers())
        await sdk.destroy_session(third.id)
        assert [each.agent for each in await sdk.list_acp_servers()] == []
    await driver.close()
    assert files_with(tmp_path, SECRET) == []


async def test_another_process_has_to_pass_the_values_before_an_agent_can_start(
    server: ServerProcess, tmp_path: Path
) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "sdk.db")
    async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="claude", id="s", env={"MY_KEY": SECRET})
        await session.prompt("echo hello")
        same = await sdk.create_session(agent="claude", id="s", env={"MY_KEY": SECRET})
        assert same.id == "s"
    async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
        with pytest.raises(InvalidRequestError, match=r"variables of its own \(MY_KEY\).*pass env="):
            await sdk.resume_session("s")
        session = await sdk.resume_session("s", env={"MY_KEY": f"{SECRET}-2"})
        await session.prompt("echo hello")
        assert starts(tmp_path) == [SECRET, f"{SECRET}-2"]
        handed = await sdk.resume_session("s", agent="mock")
        assert [each.agent for each in await sdk.list_acp_servers()] == ["mock"]
        await handed.prompt("echo hello")
    await driver.close()


async def test_an_agent_that_ends_at_its_start_is_not_started_without_its_variables(
    server: ServerProcess, tmp_path: Path
) -> None:
    put_launcher(tmp_path / "data", "codex", ["sh", "-c", f'[ -z "$BAD" ] || exit 1; exec {MOCK}'])
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        for _ in range(6):
            with pytest.raises(AgentProcessExitedError):
                await sdk.create_session(agent="codex", env={"BAD": "1"})
        assert await sdk.create_session(agent="codex", env={"GOOD": "1"})


async def test_variables_are_checked(server: ServerProcess) -> None:
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        wrong: Any
        for wrong in ({"A": 1}, {1: "a"}, ["A"], "A=B"):
            with pytest.raises(TypeError, match="env must be a mapping"):
                await sdk.create_session(agent="claude", env=wrong)
        with pytest.raises(InvalidRequestError, match="'SANDBOX_AGENT_TOKEN' is the server's"):
            await sdk.create_session(agent="claude", env={"SANDBOX_AGENT_TOKEN": SECRET})
        assert await sdk.list_acp_servers() == []
        assert (await sdk.list_sessions()).items == []
        with pytest.raises(UnsupportedSessionValueError):
            await sdk.create_session(agent="claude", env={"MY_KEY": SECRET}, mode="nope")
        assert await sdk.list_acp_servers() == []


async def test_a_connection_is_opened_once_with_its_variables(server: ServerProcess, tmp_path: Path) -> None:
    http = Http(base_url=server.url)
    initialize = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1}}
    for _ in range(2):
        body = {"agent": "claude", "env": {"MY_KEY": SECRET}}
        assert (await http.fetch("PUT", "/v1/acp/one", body=body)).status_code == 204
    await http.json("POST", "/v1/acp/one", params={"agent": "claude"}, body=initialize)
    assert starts(tmp_path) == [SECRET]
    with pytest.raises(ConflictError, match="runs with other variables") as caught:
        await http.fetch("PUT", "/v1/acp/one", body={"agent": "claude"})
    assert SECRET not in str(caught.value)
    with pytest.raises(ConflictError, match="already exists for agent"):
        await http.fetch("PUT", "/v1/acp/one", body={"agent": "mock"})
    await http.aclose()


async def test_a_server_that_cannot_do_that_is_an_error(tmp_path: Path) -> None:
    npm_or_skip(PUBLISHED_SERVER, "compatibility with the published server")
    with published_server(tmp_path) as server:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            with pytest.raises(InvalidRequestError, match="cannot give a session variables of its own"):
                await sdk.create_session(agent="claude", env={"A": "b"})
            await sdk.create_session(agent="claude")
