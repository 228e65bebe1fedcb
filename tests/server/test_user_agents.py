"""Agents of a user's file and of ``--agent-command``, behind a real server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from sandbox_agent import InvalidRequestError, SandboxAgent, SandboxAgentError, local
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

MOCK = [sys.executable, "-P", "-m", "sandbox_agent.agents.mock"]
FILE = f"""
[mine]
title = "Mine"
command = {MOCK!r}
env = ["MINE_*"]
permission_modes = {{ ask = ["plan"], plan = ["plan"] }}

[wild]
command = {MOCK!r}
never_asks = true
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    file = tmp_path / "agents.toml"
    file.write_text(FILE)
    with our_server(
        tmp_path, "--agents", str(file), "--agent-command", f"given={' '.join(MOCK)}", "--store", "memory"
    ) as running:
        yield running


async def test_the_server_lists_them_with_their_options(server: ServerProcess) -> None:
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        found = {info.id: info for info in await sdk.list_agents(config=True)}
        assert [name for name in ("mine", "wild", "given") if found[name].installed] == [
            "mine",
            "wild",
            "given",
        ]
        assert found["wild"].permission_modes == {"allow": []}
        assert found["given"].permission_modes is None
        assert found["mine"].version == "1.0.0"  # as the agent has reported
        options = {option["id"]: option for option in found["mine"].config_options or []}
        assert options["model"]["currentValue"] == "mock"
    async with httpx2.AsyncClient(base_url=server.url) as http:
        modes = (await http.get("/v1/agents/mine/modes")).json()["modes"]
        assert [mode["id"] for mode in modes] == ["default", "acceptEdits", "plan"]
        assert (await http.get("/v1/agents/given/models")).json()["defaultModel"] == "mock"


async def test_their_permission_modes_count_in_both_kinds_of_sessions(server: ServerProcess) -> None:
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        session = await sdk.create_session(agent="mine", permission_mode="ask")
        assert (await session.get_modes() or {})["currentModeId"] == "plan"
        await sdk.sessions.create("driven", agent="mine", permission_mode="ask")
        assert (await sdk.sessions.get("driven")).agent_mode == "plan"
        with pytest.raises(ValueError, match="never asks for permission"):
            await sdk.create_session(agent="wild", permission_mode="ask")
        with pytest.raises(InvalidRequestError, match="never asks for permission"):
            await sdk.sessions.create("refused", agent="wild", permission_mode="ask")
        session = await sdk.create_session(agent="given")
        await session.set_permission_mode("plan")
        assert (await session.get_modes() or {})["currentModeId"] == "plan"
        handed = await sdk.resume_session(session.id, agent="mine")
        await handed.set_permission_mode("ask")
        assert (await handed.get_modes() or {})["currentModeId"] == "plan"
        with pytest.raises(ValueError, match="never asks for permission"):
            await sdk.resume_session(session.id, agent="wild")


async def test_their_variables_are_inherited_with_the_strict_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MINE_KEY", "OTHER_KEY"):
        monkeypatch.setenv(name, "value")
    program = tmp_path / "printing"
    program.write_text(f'#!/bin/sh\nenv > "{tmp_path}/env"\nexec {" ".join(MOCK)}\n')
    program.chmod(0o755)
    file = tmp_path / "agents.toml"
    file.write_text(
        f'[mine]\ncommand = ["{program}"]\nenv = ["MINE_*"]\ndefaults = {{ MINE_URL = "there" }}\n'
    )
    async with SandboxAgent.start(sandbox=local(log="silent", agents=file)) as sdk:
        await sdk.create_session(agent="mine")
        await sdk.destroy_sandbox()
    lines = (tmp_path / "env").read_text().splitlines()
    variables = {name: value for name, _, value in (line.partition("=") for line in lines)}
    assert (variables.get("MINE_KEY"), variables.get("MINE_URL")) == ("value", "there")
    assert "OTHER_KEY" not in variables


async def test_a_local_server_has_the_agents_of_its_options(tmp_path: Path) -> None:
    provider = local(log="silent", agent_commands={"words": MOCK, "line": " ".join(MOCK)})
    async with SandboxAgent.start(sandbox=provider) as sdk:
        for agent in ("words", "line"):
            session = await sdk.create_session(agent=agent)
            assert (await session.prompt("echo hello")).stop_reason == "end_turn"
        await sdk.destroy_sandbox()
    with pytest.raises(ValueError, match="agents and agent_commands"):
        local(binary="/bin/true", agent_commands={"a": "b"})
    with pytest.raises(SandboxAgentError, match="invalid agent command"):
        async with SandboxAgent.start(sandbox=local(log="silent", agent_commands={"a b": "c"})):
            pass
