"""Sessions and prompts that begin badly: twice at once, hung agents, strangers for servers, nonsense."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import cast

import anyio
import httpx2
import pytest

from sandbox_agent import (
    SandboxAgent,
    SandboxAgentError,
    SessionAlreadyExistsError,
    SQLiteSessionPersistDriver,
    UnsupportedSessionValueError,
)
from sandbox_agent.client.options import SessionOptions
from tests.client.checks import all_events, methods
from tests.support.servers import ServerProcess, put_launcher

pytestmark = pytest.mark.anyio


async def test_sessions_of_one_id_made_at_once_are_one(sdk: SandboxAgent) -> None:
    first, *others = await asyncio.gather(
        *(sdk.create_session(agent="mock", id="one", model="mock-fast") for _ in range(3))
    )
    assert all(session is first for session in others)
    assert methods(await all_events(sdk, first)).count("session/new") == 1


SERVER = {"name": "files", "command": "true", "env": {"KEY": "a-secret-value"}}


async def test_a_session_that_is_created_again_with_the_same_arguments_is_resumed(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver, tmp_path: Path
) -> None:
    given: SessionOptions = {
        "cwd": tmp_path,
        "mode": "plan",
        "mcp_servers": [SERVER],
        "permission_policy": "reject",
    }
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        first = await sdk.create_session(agent="mock", id="job", **given)
        await first.prompt("echo first")
        again = await sdk.create_session(agent="mock", id="job", **given)
        assert again is first
        assert "_sandbox_agent/session_restored" not in methods(await all_events(sdk, first))
        record = await driver.get_session("job")
        assert record is not None
        meta = (record.session_init or {})["_meta"]
        assert "a-secret-value" not in json.dumps(meta)
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        same: SessionOptions = {**given, "cwd": str(tmp_path), "model": None}
        session = await sdk.create_session(agent="mock", id="job", **same)
        assert (await session.prompt("echo second")).stop_reason == "end_turn"
        events = await all_events(sdk, session)
        assert methods(events).count("_sandbox_agent/session_restored") == 1
        assert [each.id for each in (await sdk.list_sessions()).items] == ["job"]


@pytest.mark.parametrize(
    ("agent", "given"),
    [
        ("mock", {"mode": "plan"}),
        ("mock", {"cwd": "/tmp"}),
        ("mock", {"permission_policy": "always"}),
        ("mock", {"mcp_servers": [SERVER]}),
        ("mock", {"mcp_servers": [{**SERVER, "env": {"KEY": "another"}}], "permission_policy": "reject"}),
        ("claude", {}),
    ],
)
async def test_a_session_that_exists_is_not_created_with_other_arguments(
    sdk: SandboxAgent, agent: str, given: SessionOptions
) -> None:
    await sdk.create_session(agent="mock", id="job", permission_policy="reject", mcp_servers=[SERVER])
    with pytest.raises(SessionAlreadyExistsError, match="other arguments"):
        await sdk.create_session(agent=agent, id="job", **given)


async def test_a_session_that_was_destroyed_is_not_created_again(sdk: SandboxAgent) -> None:
    await sdk.create_session(agent="mock", id="job")
    await sdk.destroy_session("job")
    with pytest.raises(SessionAlreadyExistsError):
        await sdk.create_session(agent="mock", id="job")


async def test_a_session_whose_setting_fails_is_not_found_by_a_creation_at_the_same_time(
    sdk: SandboxAgent,
) -> None:
    made = await asyncio.gather(
        *(sdk.create_session(agent="mock", id="one", model="gpt-0") for _ in range(2)),
        return_exceptions=True,
    )
    assert [type(error) for error in made] == [UnsupportedSessionValueError, SessionAlreadyExistsError]


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
