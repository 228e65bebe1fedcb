"""``sdk.config``: MCP servers and skills of folders, on both servers."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from sandbox_agent import (
    InvalidRequestError,
    McpLocalServer,
    McpOAuth,
    McpRemoteServer,
    NotFoundError,
    SandboxAgent,
    SkillSource,
    StreamError,
)
from tests.interop.conftest import OURS, PUBLISHED
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import our_server, published_server

pytestmark = pytest.mark.anyio

SERVERS = {
    "least": McpLocalServer(command="server"),
    "local": McpLocalServer(
        command=["server", "-a"], args=["-b"], env={"A": "é"}, cwd="sub", enabled=False, timeout_ms=5
    ),
    "remote": McpRemoteServer(
        url="http://127.0.0.1/mcp",
        headers={"x": "y"},
        bearer_token_env_var="TOKEN",
        env_headers={"z": "KEY"},
        oauth=McpOAuth(client_id="id", client_secret="secret", scope="all"),
        enabled=True,
        timeout_ms=5,
        transport="sse",
    ),
    "without OAuth": McpRemoteServer(url="http://127.0.0.1/mcp", oauth=False),
}
SOURCES = [
    SkillSource(type="github", source="o/r", skills=["a"], ref="main", subpath="skills"),
    SkillSource(type="local", source="/skills"),
]


@pytest.fixture(params=[OURS, PUBLISHED])
async def sdk(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[SandboxAgent]:
    if request.param == PUBLISHED:
        npm_or_skip(PUBLISHED_SERVER, "compatibility with the published server")
    with our_server(tmp_path) if request.param == OURS else published_server(tmp_path) as server:
        async with SandboxAgent.connect(base_url=server.url) as found:
            yield found


async def test_mcp_servers_are_set_returned_and_deleted(sdk: SandboxAgent, tmp_path: Path) -> None:
    work = tmp_path / "work"
    for name, server in SERVERS.items():
        with pytest.raises(NotFoundError, match=name):
            await sdk.config.get_mcp(work, name)
        await sdk.config.set_mcp(work, name, server)
    for name, server in SERVERS.items():
        assert await sdk.config.get_mcp(work, name) == server
    await sdk.config.delete_mcp(work, "local")
    await sdk.config.delete_mcp(work, "local")
    with pytest.raises(NotFoundError):
        await sdk.config.get_mcp(str(work), "local")
    assert await sdk.config.get_mcp(str(work), "least") == SERVERS["least"]


async def test_skills_are_set_returned_and_deleted(sdk: SandboxAgent, tmp_path: Path) -> None:
    work = tmp_path / "work"
    with pytest.raises(NotFoundError, match="team"):
        await sdk.config.get_skills(work, "team")
    await sdk.config.set_skills(work, "team", SOURCES)
    assert await sdk.config.get_skills(work, "team") == SOURCES
    await sdk.config.set_skills(work, "team", [])
    assert await sdk.config.get_skills(work, "team") == []
    await sdk.config.delete_skills(work, "team")
    with pytest.raises(NotFoundError):
        await sdk.config.get_skills(work, "team")


async def test_a_damaged_file_is_an_error(sdk: SandboxAgent, tmp_path: Path) -> None:
    await sdk.config.set_mcp(tmp_path, "x", SERVERS["least"])
    (tmp_path / ".sandbox-agent/config/mcp.json").write_text("{")
    with pytest.raises(InvalidRequestError, match=r"mcp\.json"):
        await sdk.config.set_mcp(tmp_path, "y", SERVERS["least"])


async def test_a_session_whose_skills_cannot_be_provided_is_an_error(tmp_path: Path) -> None:
    with our_server(tmp_path) as server:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            missing = SkillSource(type="local", source=str(tmp_path / "missing"))
            await sdk.config.set_skills(tmp_path, "team", [missing])
            with pytest.raises(StreamError, match="the skills 'team'"):
                await sdk.create_session(agent="mock", cwd=tmp_path)
            assert (await sdk.list_sessions()).items == []
            with pytest.raises(StreamError, match="the skills 'team'"):
                await sdk.sessions.create("s", agent="mock", directory=str(tmp_path))
            await sdk.config.delete_skills(tmp_path, "team")
            session = await sdk.create_session(agent="mock", cwd=tmp_path)
            assert (await session.prompt("echo hello")).stop_reason == "end_turn"
