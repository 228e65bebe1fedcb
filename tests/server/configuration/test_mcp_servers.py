"""Sessions get the MCP servers of their folder, however they are opened; clients' own come first."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from sandbox_agent import (
    InvalidRequestError,
    SandboxAgent,
    SQLiteSessionPersistDriver,
    StatusPart,
    TurnEventData,
)
from sandbox_agent.server.agents.openings import add_servers
from sandbox_agent.server.configuration.mcp import NotUsableError, to_acp
from sandbox_agent.wire.configuration import McpLocalServer, McpRemoteServer
from tests.client.checks import all_events
from tests.server.talk import envelope
from tests.support.dumping_agent import kill_agents
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio

SECRET = "value-that-is-secret"
LOCAL = {"type": "local", "command": ["server", "-a"], "args": ["-b"], "env": {"KEY": SECRET}}
REMOTE = {
    "type": "remote",
    "url": "http://127.0.0.1:1/mcp",
    "headers": {"x": "y"},
    "envHeaders": {"z": "MY_KEY"},
    "bearerTokenEnvVar": "MY_TOKEN",
}
IN_ACP = [
    {"name": "local", "command": "server", "args": ["-a", "-b"], "env": [{"name": "KEY", "value": SECRET}]},
    {
        "name": "remote",
        "type": "http",
        "url": "http://127.0.0.1:1/mcp",
        "headers": [
            {"name": "x", "value": "y"},
            {"name": "z", "value": "of the server"},
            {"name": "Authorization", "value": "Bearer token"},
        ],
    },
]
AGENT = Path(__file__).with_name("recording_agent.py")
OPENINGS = ("session/new", "session/load", "session/resume")


def recording(folder: Path, transports: str) -> list[str]:
    """Return the command of an agent that writes to the file ``received`` what it receives."""
    return [sys.executable, str(AGENT), str(folder / "received"), transports, "sandbox_agent.agents.mock"]


@pytest.fixture
def server(tmp_path: Path) -> Generator[ServerProcess]:
    """A server whose agents are recording; ``codex`` does not support MCP over SSE."""
    for agent, transports in (("claude", "http,sse"), ("codex", "http")):
        put_launcher(tmp_path / "data", agent, recording(tmp_path, transports))
    options = ("--store", f"sqlite:{tmp_path}/server.db")
    variables = {"MY_KEY": "of the server", "MY_TOKEN": "token"}
    with our_server(tmp_path, *options, env=variables) as running:
        yield running


@pytest.fixture
def work(tmp_path: Path) -> Path:
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def configure(folder: Path, entries: Any) -> None:
    path = folder / ".sandbox-agent/config/mcp.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))


def stored(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.glob("server.db*"))


def opened(folder: Path) -> list[tuple[str, Any]]:
    """Return the requests that opened sessions, as the agent has received them: method and MCP servers."""
    lines = [json.loads(line) for line in (folder / "received").read_text().splitlines()]
    return [
        (line["method"], line["params"].get("mcpServers")) for line in lines if line.get("method") in OPENINGS
    ]


async def test_a_session_over_acp_gets_the_servers_of_its_folder(
    server: ServerProcess, tmp_path: Path, work: Path
) -> None:
    configure(work, {"local": LOCAL, "remote": REMOTE, "off": {**LOCAL, "enabled": False}})
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        own: dict[str, Any] = {"name": "local", "command": "mine", "args": [], "env": []}
        await sdk.create_session(agent="claude", cwd=work)
        await sdk.create_session(agent="claude", cwd=work, mcp_servers=[own])
        await sdk.create_session(agent="claude", cwd=tmp_path)
    assert opened(tmp_path) == [
        ("session/new", IN_ACP),
        ("session/new", [own, IN_ACP[1]]),
        ("session/new", []),
    ]


async def test_a_session_of_the_server_gets_the_servers_of_its_folder(
    server: ServerProcess, tmp_path: Path, work: Path
) -> None:
    configure(work, {"local": LOCAL, "remote": REMOTE})
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        await sdk.sessions.create("s", agent="claude", directory=str(work), env={"MY_KEY": "of the session"})
    ((method, servers),) = opened(tmp_path)
    assert method == "session/new"
    assert servers[0] == IN_ACP[0]
    assert {"name": "z", "value": "of the session"} in servers[1]["headers"]


async def test_what_is_recorded_is_what_the_client_has_sent(
    server: ServerProcess, tmp_path: Path, work: Path
) -> None:
    configure(work, {"local": LOCAL})
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        session = await sdk.create_session(agent="claude", cwd=work)
        await sdk.sessions.create("s", agent="claude", directory=str(work))
        await session.prompt("echo hello")
        async with httpx2.AsyncClient(base_url=server.url) as client:
            sessions = (await client.get("/v1/sessions")).json()["sessions"]
            assert len(sessions) == 2
            for each in sessions:
                found = (await client.get(f"/v1/sessions/{each['sessionId']}/envelopes")).json()
                recorded = [each["envelope"] for each in found["envelopes"]]
                requests = [each for each in recorded if each.get("method") == "session/new"]
                assert [each["params"]["mcpServers"] for each in requests] == [[]]
    server.stop()
    assert [servers for _, servers in opened(tmp_path)] == [[IN_ACP[0]]] * 2
    assert SECRET.encode() not in stored(tmp_path)
    assert SECRET not in server.log.read_text()


async def test_a_restored_session_gets_the_servers_that_are_configured_then(
    server: ServerProcess, tmp_path: Path, work: Path
) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "sdk.db")
    async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="claude", cwd=work)
        await sdk.sessions.create("s", agent="claude", directory=str(work))
        configure(work, {"local": LOCAL})
        assert await kill_agents(sdk, server) == 2
        await session.prompt("echo hello")
        async for _ in sdk.sessions.stream_turn("s", "echo hello"):
            pass
    await driver.close()
    assert opened(tmp_path)[:2] == [("session/new", [])] * 2
    later = opened(tmp_path)[2:]
    assert len(later) >= 2
    assert [servers for _, servers in later] == [[IN_ACP[0]]] * len(later)


async def test_a_session_is_restored_when_its_damaged_configuration_was_repaired(
    server: ServerProcess, tmp_path: Path, work: Path
) -> None:
    driver = SQLiteSessionPersistDriver(tmp_path / "sdk.db")
    async with SandboxAgent.connect(base_url=server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="claude", cwd=work)
        await sdk.sessions.create("s", agent="claude", directory=str(work))
        configure(work, "{ broken")
        assert await kill_agents(sdk, server) == 2
        with pytest.raises(InvalidRequestError, match=r"mcp\.json is damaged"):
            await session.prompt("echo hello")
        events = [event.data async for event in sdk.sessions.stream_turn("s", "echo hello")]
        assert isinstance(events[-1], TurnEventData)
        assert "mcp.json is damaged" in str(events[-1].metadata)
        configure(work, {"local": LOCAL})
        assert (await session.prompt("echo hello")).stop_reason == "end_turn"
        events = [event.data async for event in sdk.sessions.stream_turn("s", "echo hello")]
        assert isinstance(events[-1], TurnEventData)
        assert (events[-1].metadata or {})["stop_reason"] == "end_turn"
    await driver.close()
    assert opened(tmp_path)[-1][1] == [IN_ACP[0]]


async def test_a_server_that_the_agent_cannot_use_is_left_out_and_reported(
    server: ServerProcess, tmp_path: Path, work: Path
) -> None:
    configure(
        work,
        {
            "sse": {"type": "remote", "url": "http://127.0.0.1/", "transport": "sse"},
            "gone": {"type": "remote", "url": "http://127.0.0.1/", "bearerTokenEnvVar": "NO_SUCH"},
            "local": LOCAL,
        },
    )
    reasons = [
        "MCP server gone: the agent has no variable NO_SUCH, which a header needs",
        "MCP server sse: the agent does not support MCP over sse",
    ]
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        other = await sdk.create_session(agent="codex", cwd=tmp_path)
        session = await sdk.create_session(agent="codex", cwd=work)
        await sdk.sessions.create("s", agent="codex", directory=str(work))
        await session.prompt("echo hello")
        await other.prompt("echo hello")
        for each, expected in ((session, reasons), (other, [])):
            events = [event.payload for event in await all_events(sdk, each)]
            found = [event["params"] for event in events if event.get("method") == "_adapter/left_out"]
            assert sorted(params["message"] for params in found) == expected
        async for _ in sdk.sessions.stream_turn("s", "echo hello"):
            pass
        page = await sdk.sessions.get_events("s")
        statuses = [
            part.detail
            for event in page.events
            if event.type == "item.completed"
            for part in event.data.item.content
            if isinstance(part, StatusPart) and part.label == "mcp"
        ]
        assert sorted(map(str, statuses)) == reasons
    assert opened(tmp_path)[1:] == [("session/new", [IN_ACP[0]])] * 2
    assert all(f"left out: {reason.partition(': ')[2]}" in server.log.read_text() for reason in reasons)


async def test_the_servers_own_token_is_no_variable_of_a_header(tmp_path: Path, work: Path) -> None:
    token = "a-token-that-is-secret"
    configure(
        work,
        {"x": {"type": "remote", "url": "http://127.0.0.1/", "bearerTokenEnvVar": "SANDBOX_AGENT_TOKEN"}},
    )
    put_launcher(tmp_path / "data", "claude", recording(tmp_path, "http"))
    with our_server(tmp_path, token=token, env={"SANDBOX_AGENT_TOKEN": token}) as server:
        async with SandboxAgent.connect(base_url=server.url, token=token) as sdk:
            await sdk.create_session(agent="claude", cwd=work)
    assert opened(tmp_path) == [("session/new", [])]


async def test_a_damaged_configuration_opens_no_session_and_says_why(
    server: ServerProcess, tmp_path: Path, work: Path, fresh: Callable[[], str]
) -> None:
    configure(work, "{ broken")
    async with httpx2.AsyncClient(base_url=server.url, timeout=60) as client:
        path = f"/v1/acp/{fresh()}"
        first = envelope("initialize", {"protocolVersion": 1, "clientCapabilities": {}}, 1)
        await client.post(path, params={"agent": "claude"}, json=first)
        body = envelope("session/new", {"cwd": str(work), "mcpServers": []}, 2)
        for headers in (dict[str, str](), {"sandbox-agent-client": "ann"}):
            response = await client.post(path, json=body, headers=headers)
            assert response.status_code == 400
            assert "mcp.json is damaged" in response.json()["detail"]
        response = await client.post("/v1/sessions/s", json={"agent": "claude", "directory": str(work)})
        assert response.status_code == 400
        assert "mcp.json is damaged" in response.json()["detail"]
        assert (await client.get("/v1/sessions")).json()["sessions"] == []
        configure(work, {})
        response = await client.post(path, json=body, headers={"sandbox-agent-client": "ann"})
        assert response.status_code == 200
        assert "result" in response.json()
    assert opened(tmp_path) == [("session/new", [])]


def test_a_request_keeps_the_bytes_of_all_else() -> None:
    line = b'{"id":1,"params":{"cwd":"/w","x":[1.50],"mcpServers":[{"name":"a","y":2.0}]},"z":1e3}'
    added = add_servers(line, [{"name": "a"}, {"name": "b"}])
    assert b'"x":[1.50]' in added
    assert b'"z":1e3' in added
    assert json.loads(added)["params"]["mcpServers"] == [{"name": "a", "y": 2.0}, {"name": "b"}]
    assert add_servers(line, []) is line


def test_a_request_without_a_list_of_servers_gets_one() -> None:
    assert json.loads(add_servers(b'{"params":{"cwd":"/w"}}', [{"name": "b"}])) == {
        "params": {"cwd": "/w", "mcpServers": [{"name": "b"}]}
    }
    wrong = b'{"params":{"cwd":"/w","mcpServers":"x"}}'
    assert add_servers(wrong, [{"name": "b"}]) is wrong
    surrogate = b'{"params":{"cwd":"/w","t":"\\ud800"}}'
    assert json.loads(add_servers(surrogate, [{"name": "b"}]))["params"]["t"] == "\ud800"


def test_a_working_directory_is_entered_before_the_server_starts(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    made = to_acp("x", McpLocalServer(command="pwd", cwd="sub"), str(tmp_path), {}, {})
    output = subprocess.check_output([made["command"], *made["args"]], text=True)
    assert output.strip() == str(tmp_path / "sub")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (McpLocalServer(command=[]), "command is empty"),
        (McpLocalServer(command=""), "command is empty"),
        (McpRemoteServer(url="ftp://x"), "not that of an HTTP server"),
        (McpRemoteServer(url="http://x"), "does not support MCP over http"),
    ],
)
def test_a_server_that_cannot_be_used_says_why(config: Any, reason: str) -> None:
    with pytest.raises(NotUsableError, match=reason):
        to_acp("x", config, "/", {}, {"sse": True})
