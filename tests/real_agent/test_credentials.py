"""Credentials count as available only where the real agent starts with them; errors name what is missing."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from sandbox_agent import AcpRpcError, AgentMessageChunk, AgentProcessExitedError, StreamError
from sandbox_agent.testing.agents.bed import AgentBed, open_bed
from sandbox_agent.testing.agents.profile import profile_of
from sandbox_agent.wire.universal import TurnEventData
from tests.real_agent.test_matrix import SECONDS, install
from tests.support.npm import NpmMissingError

pytestmark = [pytest.mark.anyio, pytest.mark.agents]

KEYS = {"ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GOOSE_PROVIDER", "GOOSE_MODEL", "OPENAI_MODEL"}
COPILOT = {"COPILOT_PROVIDER_BASE_URL", "COPILOT_PROVIDER_TYPE", "COPILOT_PROVIDER_API_KEY", "COPILOT_MODEL"}
# The variables that each has, besides those of its profile that are not above, and what its error names.
NOT_ENOUGH: list[tuple[str, dict[str, str], str]] = [
    ("claude", {}, "ANTHROPIC_API_KEY, CLAUDE_CODE_OAUTH_TOKEN, or ANTHROPIC_AUTH_TOKEN"),
    ("claude", {"CLAUDE_API_KEY": "sk-ant-scripted"}, "ANTHROPIC_API_KEY"),
    ("pi", {}, "ANTHROPIC_API_KEY"),
    ("qwen", {"OPENAI_API_KEY": "key"}, "OPENAI_API_KEY with OPENAI_MODEL"),
    ("goose", {"OPENAI_API_KEY": "key"}, "Missing provider"),
    ("goose", {"OPENAI_API_KEY": "key", "GOOSE_PROVIDER": "openai"}, "GOOSE_MODEL"),
    ("copilot", {}, "copilot ended with exit code"),
]
# OpenCode and Gemini are not here: they start without a key, with free models or for the user's endpoint.
ENOUGH = ["claude", "pi", "qwen", "goose", "copilot", "codex"]


def installed(agent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        monkeypatch.setenv("XDG_DATA_HOME", str(install(agent)))
    except NpmMissingError as error:
        pytest.skip(f"NOT TESTED: {agent} behind the server ({error})")


async def said_to_the_sdk(bed: AgentBed) -> str:
    session = await bed.sdk.create_session(agent=bed.agent, cwd=bed.work)
    await session.prompt("[[say It works.]]")
    events = (await bed.sdk.get_events(session_id=session.id, limit=1000)).items
    return "".join(event.update.text for event in events if isinstance(event.update, AgentMessageChunk))


async def error_of_a_server_session(bed: AgentBed) -> str:
    """Return why a session of the server cannot be created, or how its first turn ended."""
    try:
        await bed.sdk.sessions.create("s", agent=bed.agent, directory=str(bed.work))
    except (StreamError, AgentProcessExitedError) as error:
        return str(error)
    events = [event async for event in bed.sdk.sessions.stream_turn("s", "[[say It works.]]")]
    assert isinstance(events[-1].data, TurnEventData)
    return str(events[-1].data.metadata)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(("agent", "variables", "named"), NOT_ENOUGH)
async def test_an_agent_that_would_not_start_has_no_credentials(
    agent: str, variables: dict[str, str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(agent, monkeypatch)
    known = profile_of(agent)
    env = {name: value for name, value in known.env.items() if name not in KEYS | COPILOT} | variables
    async with open_bed(agent, msgspec.structs.replace(known, env=env, files={}), tmp_path / "bed") as bed:
        assert not (await bed.sdk.get_agent(agent)).credentials_available
        with pytest.raises((AcpRpcError, AgentProcessExitedError)) as caught:
            await said_to_the_sdk(bed)
        assert named in str(caught.value)
        assert named in await error_of_a_server_session(bed)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("agent", ENOUGH)
async def test_an_agent_with_credentials_answers(
    agent: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(agent, monkeypatch)
    async with open_bed(agent, profile_of(agent), tmp_path / "bed") as bed:
        assert (await bed.sdk.get_agent(agent)).credentials_available
        assert "It works." in await said_to_the_sdk(bed)
