"""Sessions and prompts that begin badly: twice at once, hung agents, strangers for servers, nonsense."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, cast

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
from tests.client.checks import all_events, methods, until
from tests.client.scripted import ScriptedServer
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


class SlowServer(ScriptedServer):
    """Its agent answers session/new, and changes of the mode, when the test says so.

    Attributes:
        held: the method whose responses wait.
    """

    held: str = ""

    def __init__(self) -> None:
        super().__init__()
        self.released = asyncio.Event()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.held and self.held.encode() in await request.aread():
            self.paths.append(f"held {self.held}")
            await self.released.wait()
        return await super().handle_async_request(request)

    def _result(self, envelope: dict[str, Any]) -> dict[str, Any]:
        modes = {"currentModeId": "ask", "availableModes": [{"id": "ask"}, {"id": "code"}]}
        results: dict[str, dict[str, Any]] = {
            "initialize": {"agentCapabilities": {"sessionCapabilities": {"close": {}}}},
            "session/new": {"sessionId": f"agent-session-{envelope.get('id')}", "modes": modes},
        }
        return results.get(envelope["method"]) or super()._result(envelope)


async def cancel_creation(sdk: SandboxAgent, server: SlowServer, held: str) -> None:
    """Cancel the creation of a session when the server holds a method's response."""
    server.held = held
    creating = asyncio.create_task(sdk.create_session(agent="mock", id="cancelled", mode="code"))
    await until(lambda: f"held {held}" in server.paths)
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    server.held = ""


@pytest.mark.parametrize("held", ["session/new", "session/set_mode"])
async def test_a_creation_that_is_cancelled_ends_its_agent(held: str) -> None:
    server = SlowServer()
    with anyio.fail_after(20):
        async with SandboxAgent.connect(transport=server, skip_health_check=True) as sdk:
            await cancel_creation(sdk, server, held)
            assert server.paths[-1].startswith("DELETE /v1/acp/sdk-mock-")
            session = await sdk.create_session(agent="mock", id="again")
            assert (await session.prompt("hello")).stop_reason == "end_turn"
            record = await sdk.persist.get_session("cancelled")
            assert record is None or record.destroyed_at is not None


async def test_a_creation_that_is_cancelled_closes_its_session_at_an_agent_with_others() -> None:
    server = SlowServer()
    with anyio.fail_after(20):
        async with SandboxAgent.connect(transport=server, skip_health_check=True) as sdk:
            session = await sdk.create_session(agent="mock")
            await cancel_creation(sdk, server, "session/new")
            assert not any(path.startswith("DELETE") for path in server.paths)
            server.released.set()
            await until(lambda: server.posted[-1]["method"] == "session/close")
            cancelled = next(each for each in reversed(server.posted) if each["method"] == "session/new")
            assert server.posted[-1]["params"] == {"sessionId": f"agent-session-{cancelled['id']}"}
            assert (await session.prompt("hello")).stop_reason == "end_turn"


async def test_the_process_of_a_cancelled_creation_ends(own_server: ServerProcess, tmp_path: Path) -> None:
    agent = tmp_path / "agent.py"
    agent.write_text(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    message = json.loads(line)\n"
        "    if message['method'] == 'initialize':\n"
        "        print(json.dumps({'jsonrpc': '2.0', 'id': message['id'], 'result': {}}), flush=True)\n"
        "    elif message['method'] == 'session/new':\n"
        "        open(sys.argv[1], 'w').close()\n"
    )
    asked = tmp_path / "asked"
    put_launcher(tmp_path / "data", "codex", [sys.executable, str(agent), str(asked)])
    with anyio.fail_after(20):
        async with SandboxAgent.connect(base_url=own_server.url) as sdk:
            creating = asyncio.create_task(sdk.create_session(agent="codex"))
            while not await anyio.Path(asked).exists():
                await sdk.get_health()
            creating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await creating
            assert await sdk.list_acp_servers() == []


async def test_a_cancelled_creation_of_a_server_session_is_cancelled_on_the_server(
    own_server: ServerProcess, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    hangs = 'import sys; open(sys.argv[1], "w").close(); sys.stdin.read()'
    put_launcher(tmp_path / "data", "codex", [sys.executable, "-c", hangs, str(asked)])
    with anyio.fail_after(20):
        async with SandboxAgent.connect(base_url=own_server.url) as sdk:
            await sdk.sessions.create("mine", agent="mock")
            with anyio.move_on_after(0):  # it exists, and stays
                await sdk.sessions.create("mine", agent="mock")
            creating = asyncio.create_task(sdk.sessions.create("s", agent="codex"))
            while not await anyio.Path(asked).exists():
                await sdk.get_health()
            creating.cancel()
            with pytest.raises(asyncio.CancelledError):
                await creating
        # The client has gone at once: it told the server before.
        async with SandboxAgent.connect(base_url=own_server.url) as sdk:
            assert [session.session_id for session in (await sdk.sessions.list()).items] == ["mine"]
            assert [server.agent for server in await sdk.list_acp_servers()] == ["mock"]


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
