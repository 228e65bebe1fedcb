"""Agents are authenticated by the method whose key is there; without one, errors name the variables."""

from __future__ import annotations

import sys
from pathlib import Path

import httpx2
import pytest

from sandbox_agent import AcpRpcError, SandboxAgent, StreamError
from sandbox_agent.wire.universal import ErrorData, TurnEventData
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio

LOCKED = Path(__file__).parents[1] / "support/locked_agent.py"
NO_KEYS = {"CODEX_API_KEY": "", "OPENAI_API_KEY": ""}


def locked_server(tmp_path: Path, **keys: str) -> ServerProcess:
    put_launcher(tmp_path / "data", "codex", [sys.executable, str(LOCKED)])
    return our_server(tmp_path, env={**NO_KEYS, **keys})


@pytest.mark.parametrize(
    ("variable", "method"), [("CODEX_API_KEY", "api-key"), ("OPENAI_API_KEY", "openai-api-key")]
)
async def test_the_method_is_that_whose_key_is_there(tmp_path: Path, variable: str, method: str) -> None:
    with locked_server(tmp_path, **{variable: "a-key"}) as server:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            assert (await sdk.create_session(agent="codex")).agent_session_id == method
            assert (await sdk.sessions.create("s", agent="codex")).native_session_id == method


async def test_without_a_key_the_error_names_the_variables(tmp_path: Path) -> None:
    with locked_server(tmp_path) as server:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            with pytest.raises(AcpRpcError) as caught:
                await sdk.create_session(agent="codex")
            assert str(caught.value) == (
                "Authentication required: "
                "set OPENAI_API_KEY or CODEX_API_KEY in the environment of the server"
            )
            with pytest.raises(StreamError, match="set OPENAI_API_KEY or CODEX_API_KEY in the environment"):
                await sdk.sessions.create("s", agent="codex")


async def test_the_error_names_the_variables_of_an_agent_without_authentication_methods(
    tmp_path: Path,
) -> None:
    put_launcher(tmp_path / "data", "copilot", [sys.executable, str(LOCKED)])
    said = (
        "set COPILOT_GITHUB_TOKEN, GH_TOKEN, GITHUB_TOKEN, or COPILOT_PROVIDER_BASE_URL with COPILOT_MODEL "
    )
    with our_server(tmp_path) as server:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            with pytest.raises(AcpRpcError, match=said):
                await sdk.create_session(agent="copilot")
            with pytest.raises(StreamError, match=said):
                await sdk.sessions.create("s", agent="copilot")


async def test_the_methods_of_an_agent_are_listed(tmp_path: Path) -> None:
    with locked_server(tmp_path, CODEX_API_KEY="a-key") as server:
        async with httpx2.AsyncClient(base_url=server.url) as http:
            codex = (await http.get("/v1/agents/codex")).json()
            mock = (await http.get("/v1/agents/mock")).json()
            asked = (await http.get("/v1/agents/codex", params={"config": "true"})).json()
    variables = ["CODEX_API_KEY", "OPENAI_API_KEY"]
    assert codex["authMethods"] == [
        {"method": "api-key", "variables": variables, "satisfied": True, "required": True},
        {"method": "codex-api-key", "variables": variables[:1], "satisfied": True, "required": True},
        {"method": "openai-api-key", "variables": variables[1:], "satisfied": False, "required": True},
    ]
    assert "authMethods" not in mock
    assert "configError" not in asked


async def test_a_turn_that_is_refused_without_a_key_names_the_variables(tmp_path: Path) -> None:
    put_launcher(tmp_path / "data", "codex", [sys.executable, str(LOCKED), "late"])
    said = "Authentication required: set OPENAI_API_KEY or CODEX_API_KEY in the environment of the server"
    with our_server(tmp_path, env=NO_KEYS) as server:
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            session = await sdk.create_session(agent="codex")
            with pytest.raises(AcpRpcError, match=said):
                await session.prompt("hello")
            await sdk.sessions.create("s", agent="codex")
            events = [event async for event in sdk.sessions.stream_turn("s", "hello")]
            (error,) = [event.data for event in events if isinstance(event.data, ErrorData)]
            assert error.message == said
            ended = events[-1].data
            assert isinstance(ended, TurnEventData)
            assert ended.metadata["error"] == {"message": said, "code": "-32000"}
            (turn,) = (await sdk.sessions.get("s")).turns or []
            assert turn.error is not None
            assert said in turn.error
