"""Variables that a session brings for its agent: they arrive, survive every loss, and are never shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx2
import pytest

from sandbox_agent import (
    InvalidRequestError,
    SandboxAgent,
    ServerSessions,
    SessionAlreadyExistsError,
)
from tests.support.dumping_agent import kill_agents, server, starts
from tests.support.servers import ServerProcess

__all__ = ["server"]

pytestmark = pytest.mark.anyio

SECRET = "value-that-is-secret"
ENV = {"MY_KEY": SECRET, "PATH_LIKE": "/a:/b", "EMPTY": ""}


async def turn(sessions: ServerSessions, session_id: str) -> None:
    async for _ in sessions.stream_turn(session_id, "echo hello"):
        pass


async def test_the_variables_are_there_again_after_every_loss_and_are_never_shown(
    server: ServerProcess, tmp_path: Path
) -> None:
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        await sdk.sessions.create("with", agent="claude", env=ENV)
        await sdk.sessions.create("without", agent="claude")
        assert starts(tmp_path, "MY_KEY") == [SECRET, "of the server"]
        assert starts(tmp_path, "EMPTY") == [""]
        await turn(sdk.sessions, "with")
        assert await kill_agents(sdk, server) == 2
        await turn(sdk.sessions, "with")
        assert starts(tmp_path, "MY_KEY")[2:] == [SECRET]
        assert starts(tmp_path, "PATH_LIKE") == ["/a:/b", "/a:/b"]
        server.kill()
        server.start()
        await turn(sdk.sessions, "with")
        assert starts(tmp_path, "MY_KEY")[3:] == [SECRET]

    async with httpx2.AsyncClient(base_url=server.url) as http:
        assert (await http.get("/v1/sessions/with")).json()["env"] == ["MY_KEY", "PATH_LIKE", "EMPTY"]
        assert "env" not in (await http.get("/v1/sessions/without")).json()
        paths = ["/v1/sessions", "/v1/sessions/with", "/v1/sessions/with/events?include_raw=true", "/v1/acp"]
        paths += [f"/v1/sessions/with/export?format={form}" for form in ("jsonl", "markdown", "html")]
        paths += ["/v1/sessions/with/envelopes", f"/v1/search?q={SECRET}"]
        for path in paths:
            response = await http.get(path)
            assert response.status_code == 200, path
            assert SECRET not in response.text.replace(f"q={SECRET}", ""), path
    assert SECRET not in server.log.read_text()
    assert (tmp_path / "server.db").stat().st_mode & 0o077 == 0


async def test_a_session_of_other_variables_is_another_session(server: ServerProcess) -> None:
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        first = await sdk.sessions.create("s", agent="claude", env=ENV)
        again = await sdk.sessions.create("s", agent="claude", env=dict(reversed(ENV.items())))
        assert first.native_session_id == again.native_session_id
        with pytest.raises(SessionAlreadyExistsError) as caught:
            await sdk.sessions.create("s", agent="claude", env={**ENV, "MY_KEY": "other"})
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"": "x"}, "cannot be the name"),
        ({"A=B": SECRET}, "'A=B' cannot be the name"),
        ({"A\0B": SECRET}, "cannot be the name"),
        ({"A": f"{SECRET}\0"}, "the value of 'A' has a NUL"),
        ({"SANDBOX_AGENT_TOKEN": SECRET}, "'SANDBOX_AGENT_TOKEN' is the server's"),
        ({"SANDBOX_AGENT_PROCESS_TAG": SECRET}, "'SANDBOX_AGENT_PROCESS_TAG' is the server's"),
        ({f"A{number}": "" for number in range(257)}, "257 variables: at most 256"),
        ({"A": "x" * 65536}, "65539 bytes: at most 65536"),
        ({"A": 1}, "Expected `str`"),
    ],
)
async def test_invalid_variables_are_refused_before_anything_starts(
    server: ServerProcess, tmp_path: Path, env: dict[str, Any], said: str
) -> None:
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        with pytest.raises(InvalidRequestError) as caught:
            await sdk.sessions.create("s", agent="claude", env=env)
        assert said in str(caught.value)
        assert SECRET not in str(caught.value)
        assert not (tmp_path / "starts").exists()
        assert (await sdk.sessions.list()).items == []


async def test_directories_and_mcp_servers_arrive_at_the_agent_after_a_restore_too(
    server: ServerProcess, tmp_path: Path
) -> None:
    more = tmp_path / "more"
    more.mkdir()
    servers = [{"name": "one", "command": "/bin/true", "env": {"TOKEN": "t"}}]
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        await sdk.sessions.create("s", agent="claude", additional_directories=[more], mcp_servers=servers)
        with pytest.raises(ValueError, match=r"mcp_servers\[0\]"):
            await sdk.sessions.create("t", agent="claude", mcp_servers=[{"name": "one"}])
        await turn(sdk.sessions, "s")
        assert await kill_agents(sdk, server) == 1
        await turn(sdk.sessions, "s")
    async with httpx2.AsyncClient(base_url=server.url) as http:
        found = (await http.get("/v1/sessions/s/envelopes", params={"limit": 1000})).json()["envelopes"]
    opened = [
        each["envelope"]["params"]
        for each in found
        if str(each["envelope"].get("method")).startswith("session/")
        and "cwd" in each["envelope"].get("params", {})
    ]
    assert len(opened) >= 2
    for params in opened:
        assert params["additionalDirectories"] == [str(more)]
        assert params["mcpServers"] == [
            {"name": "one", "command": "/bin/true", "args": [], "env": [{"name": "TOKEN", "value": "t"}]}
        ]
