"""Sessions and prompts that begin badly: twice at once, hung agents, strangers for servers, nonsense."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import anyio
import httpx2
import pytest

from sandbox_agent import SandboxAgent, SandboxAgentError, Session, SessionAlreadyExistsError
from tests.client.checks import all_events, methods
from tests.support.servers import ServerProcess, put_launcher

pytestmark = pytest.mark.anyio


async def test_sessions_of_one_id_made_at_once_are_one(sdk: SandboxAgent) -> None:
    made = await asyncio.gather(
        *(sdk.create_session(agent="mock", id="one") for _ in range(3)), return_exceptions=True
    )
    assert sum(isinstance(result, Session) for result in made) == 1
    assert sum(isinstance(result, SessionAlreadyExistsError) for result in made) == 2


async def test_sessions_resumed_or_made_at_once_are_one(sdk: SandboxAgent) -> None:
    first, *others = await asyncio.gather(
        *(sdk.resume_or_create_session(agent="mock", id="one") for _ in range(3))
    )
    assert all(session is first for session in others)
    assert methods(await all_events(sdk, first)) == ["session/new", "result"]


async def test_an_agent_that_hangs_at_its_start_ends_with_who_waited_for_it(
    own_server: ServerProcess, tmp_path: Path
) -> None:
    put_launcher(tmp_path / "data", "codex", ["sleep", "60"])
    with anyio.fail_after(20):
        async with SandboxAgent.connect(base_url=own_server.url) as sdk:
            making = asyncio.create_task(sdk.create_session(agent="codex"))
            while not await sdk.list_acp_servers():
                assert not making.done()
            making.cancel()
            with pytest.raises(asyncio.CancelledError):
                await making
            assert await sdk.list_acp_servers() == []
            assert (await (await sdk.create_session(agent="mock")).prompt("hello")).stop_reason == "end_turn"


async def test_a_server_that_is_another_program_is_said_to_be() -> None:
    transport = httpx2.MockTransport(lambda _request: httpx2.Response(200, text="<html>"))
    async with SandboxAgent.connect(transport=transport, skip_health_check=True) as sdk:
        with pytest.raises(SandboxAgentError, match="a sandbox-agent server"):
            await sdk.create_session(agent="mock")


async def test_a_prompt_that_is_no_json_leaves_nothing_behind(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    with pytest.raises(TypeError):
        await session.prompt([{"type": "text", "text": object()}])
    assert methods(await all_events(sdk, session)) == ["session/new", "result"]
    await session.prompt("hello")


@pytest.mark.parametrize("prompt", [b"bytes", {"type": "text", "text": "one block"}, None, 3])
async def test_a_prompt_that_is_neither_text_nor_blocks_is_refused(sdk: SandboxAgent, prompt: object) -> None:
    session = await sdk.create_session(agent="mock")
    with pytest.raises(TypeError, match="a str or a list of content blocks"):
        await session.prompt(cast("str", prompt))
