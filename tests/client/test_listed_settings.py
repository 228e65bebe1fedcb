"""Agents that list modes and models, boolean options, and agents that list nothing."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import httpx2
import pytest

from sandbox_agent import (
    InvalidRequestError,
    SandboxAgent,
    SessionAlreadyExistsError,
    SessionEvent,
    UnsupportedSessionValueError,
)
from tests.client.conftest import Front
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio

LISTING = Path(__file__).parents[1] / "support/listing_agent.py"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def server(tmp_path: Path, log: Path, front: Front) -> Iterator[ServerProcess]:
    put_launcher(tmp_path / "data", "gemini", [sys.executable, str(LISTING), str(log)])
    put_launcher(tmp_path / "data", "silent", [sys.executable, str(LISTING), str(log), "silent"])
    with our_server(tmp_path) as running:
        yield front(running)


@pytest.fixture
async def sdk(server: ServerProcess) -> AsyncIterator[SandboxAgent]:
    async with SandboxAgent.connect(base_url=server.url) as sdk:
        yield sdk


def noted(log: Path, kind: str) -> list[str]:
    """Return what the agents have noted of a kind."""
    words = (line.partition(" ") for line in log.read_text().splitlines())
    return [rest for first, _, rest in words if first == kind]


def prompts(log: Path) -> list[str]:
    """Return the settings that each prompt ran with."""
    return noted(log, "prompt")


def starts(log: Path) -> list[int]:
    """Return the process ids of the agents that were started."""
    return [int(pid) for pid in noted(log, "start")]


async def test_listed_modes_and_models_are_options(sdk: SandboxAgent, log: Path) -> None:
    session = await sdk.create_session(agent="gemini", model="m2", mode="plan")
    options = {option["id"]: option for option in await session.get_config_options()}
    assert {name: option["currentValue"] for name, option in options.items()} == {
        "fast": False,
        "model": "m2",
        "mode": "plan",
    }
    assert [choice["value"] for choice in options["model"]["options"]] == ["m1", "m2"]
    with pytest.raises(UnsupportedSessionValueError):
        await session.set_model("m3")
    await session.prompt("go")
    await session.set_config_option("mode", "default")
    await session.set_config_option("model", "m1")
    await session.prompt("go")
    assert prompts(log) == ["m2 plan False", "m1 default False"]
    assert len(starts(log)) == 1  # no second process was asked for the options


async def test_boolean_options(sdk: SandboxAgent, log: Path) -> None:
    session = await sdk.create_session(agent="gemini")
    await session.set_config_option("fast", True)
    await session.prompt("go")
    await session.set_config_option("fast", "false")
    await session.prompt("go")
    with pytest.raises(UnsupportedSessionValueError) as caught:
        await session.set_config_option("fast", "maybe")
    assert caught.value.allowed_values == ["true", "false"]
    assert prompts(log) == ["m1 default True", "m1 default False"]


@pytest.mark.parametrize("agent", ["gemini", "silent"])
async def test_they_are_set_again_after_restores(sdk: SandboxAgent, log: Path, agent: str) -> None:
    mode = None if agent == "silent" else "yolo"
    session = await sdk.create_session(agent=agent, model="m2", mode=mode)
    await session.prompt("go")
    for _ in range(3):
        exited = anyio.Event()
        forget = session.on_event(lambda event, exited=exited: _set_if_exited(event, exited))
        os.kill(starts(log)[-1], signal.SIGKILL)
        await exited.wait()
        forget()
        await session.prompt("go")
    assert prompts(log) == [f"m2 {mode or 'default'} False"] * 4
    assert len(starts(log)) == 4


async def test_what_a_client_can_do_is_offered_to_agents(sdk: SandboxAgent, log: Path) -> None:
    await sdk.create_session(agent="gemini")
    sdk.on_request("elicitation/create", lambda _: {"action": "decline"})
    await sdk.create_session(agent="silent")
    await sdk.sessions.create("s", agent="gemini")
    assert noted(log, "client") == [
        "sandbox-agent-sdk ['plan', 'session']",
        "sandbox-agent-sdk ['elicitation', 'plan', 'session']",
        "sandbox-agent ['elicitation', 'plan', 'session']",
    ]


def _set_if_exited(event: SessionEvent, exited: anyio.Event) -> None:
    if event.payload.get("method") == "_adapter/agent_exited":
        exited.set()


async def test_sessions_of_the_server_set_them_too(
    sdk: SandboxAgent, server: ServerProcess, log: Path
) -> None:
    await sdk.sessions.create("s", agent="gemini", model="m2", agent_mode="plan")
    async for _ in sdk.sessions.stream_turn("s", "go"):
        pass
    assert prompts(log) == ["m2 plan False"]
    async with httpx2.AsyncClient(base_url=server.own_url) as http:
        models = (await http.get("/v1/agents/gemini/models")).json()
        modes = (await http.get("/v1/agents/gemini/modes")).json()
    assert [model["id"] for model in models["models"]] == ["m1", "m2"]
    assert [mode["id"] for mode in modes["modes"]] == ["default", "plan", "yolo"]


async def test_a_session_of_the_server_shows_a_model_that_the_agent_took_and_does_not_report(
    sdk: SandboxAgent, log: Path
) -> None:
    await sdk.sessions.create("s", agent="silent", model="m2")
    assert (await sdk.sessions.get("s")).model == "m2"
    os.kill(starts(log)[-1], signal.SIGKILL)
    while (await sdk.list_acp_servers()) != []:
        await anyio.lowlevel.checkpoint()
    async for _ in sdk.sessions.stream_turn("s", "go"):
        pass
    assert prompts(log) == ["m2 default False"]
    assert (await sdk.sessions.get("s")).model == "m2"


async def test_other_options_of_a_session_of_the_server_are_set_again_after_every_loss(
    sdk: SandboxAgent, server: ServerProcess, log: Path
) -> None:
    await sdk.sessions.create("s", agent="gemini", model="m2", config_options={"fast": True})
    for _ in range(2):
        async for _event in sdk.sessions.stream_turn("s", "go"):
            pass
        os.kill(starts(log)[-1], signal.SIGKILL)
        while (await sdk.list_acp_servers()) != []:
            await anyio.lowlevel.checkpoint()
    server.kill()
    server.start()
    async for _event in sdk.sessions.stream_turn("s", "go"):
        pass
    assert prompts(log) == ["m2 default True"] * 3
    with pytest.raises(SessionAlreadyExistsError):
        await sdk.sessions.create("s", agent="gemini", model="m2", config_options={"fast": False})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fast": "maybe"}, "gemini has no fast 'maybe': it has true, false"),
        ({"slow": True}, "gemini has no slow 'True'"),
        ({"mode": "yolo"}, "set by agentMode"),
        ({"model": "m2"}, "set by model"),
        ({"": "x"}, "printable"),
        ({f"o{number}": "x" for number in range(257)}, "at most 256"),
    ],
)
async def test_options_that_a_session_of_the_server_cannot_have_are_refused(
    sdk: SandboxAgent, options: dict[str, str | bool], said: str
) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        await sdk.sessions.create("s", agent="gemini", config_options=options)
    assert (await sdk.sessions.list()).items == []


async def test_an_option_of_the_mode_does_not_go_around_the_permission_mode(
    sdk: SandboxAgent, log: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(LISTING), str(log), "option"]
    put_launcher(tmp_path / "data", "qwen", command)
    with pytest.raises(InvalidRequestError, match=r"'how', which is set by agentMode"):
        await sdk.sessions.create("s", agent="qwen", permission_mode="ask", config_options={"how": "yolo"})
