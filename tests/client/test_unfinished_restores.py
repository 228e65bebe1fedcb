"""A program that is killed while it restores a session leaves no second agent on its agent session."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from sandbox_agent import SandboxAgent, SessionBusyError
from tests.client.checks import all_events, said
from tests.client.conftest import Front
from tests.client.programs import Program, agents
from tests.support.servers import ServerProcess, our_server, put_launcher

pytestmark = pytest.mark.anyio

# Loads a session when a file exists.
SLOW_AGENT = """
import json, os, pathlib, sys, time

may_load = pathlib.Path(sys.argv[1])
for line in sys.stdin:
    message = json.loads(line)
    method, params = message["method"], message.get("params") or {}
    result = {}
    if method == "initialize":
        result = {"protocolVersion": 1, "agentCapabilities": {"loadSession": True}}
    elif method == "session/new":
        result = {"sessionId": str(os.getpid())}
    elif method == "session/load":
        while not may_load.exists():
            time.sleep(0.01)
    elif method == "session/prompt":
        content = {"type": "text", "text": params["prompt"][-1]["text"]}
        update = {"sessionUpdate": "agent_message_chunk", "content": content}
        notice = {"method": "session/update", "params": {"sessionId": params["sessionId"], "update": update}}
        print(json.dumps({"jsonrpc": "2.0", **notice}), flush=True)
        result = {"stopReason": "end_turn"}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
RESUMING = """
import asyncio, sys
from sandbox_agent import SandboxAgent

async def main(url, store):
    async with SandboxAgent.connect(base_url=url, persist=store) as sdk:
        session = await sdk.get_session("s")
        session.on_event(lambda event: print(event.event_index, flush=True))
        await sdk.resume_session("s")

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def server(tmp_path: Path, front: Front) -> Iterator[ServerProcess]:
    command = [sys.executable, str(tmp_path / "agent.py"), str(tmp_path / "may-load")]
    (tmp_path / "agent.py").write_text(SLOW_AGENT)
    put_launcher(tmp_path / "data", "claude", command)
    with our_server(tmp_path, "--store", f"sqlite:{tmp_path / 'server.db'}") as running:
        yield front(running)


async def _begin_restore(server: ServerProcess, store: str) -> Program:
    """Return a program that waits for the agent to load the session of one that was killed."""
    first = Program(server, store, "one", agent="claude")
    first.wait_stored(1_000)
    first.kill()
    server.kill()
    server.start()
    second = Program.running(RESUMING, server.url, store)
    second.wait_stored(5)  # session/load is stored, and then sent
    while await agents(server) < 1:  # noqa: ASYNC110 - another process
        await anyio.sleep(0.01)
    return second


async def test_the_agent_of_a_restore_that_was_killed_ends(server: ServerProcess, tmp_path: Path) -> None:
    store = f"sqlite:{tmp_path / 'client.db'}"
    with anyio.fail_after(60):
        program = await _begin_restore(server, store)
        program.kill()
        (tmp_path / "may-load").touch()
        async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
            session = await sdk.resume_session("s")
            assert await agents(server) == 1
            await session.prompt("two")
            assert said(await all_events(sdk, session)) == "onetwo"


@pytest.mark.no_gateway("the other program is asked for longer than the gateway lets it be heard")
async def test_a_session_that_another_program_restores_is_busy(
    server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_agent.client.unfinished.HOLD_TIMEOUT", 0.5)
    store = f"sqlite:{tmp_path / 'client.db'}"
    with anyio.fail_after(60):
        program = await _begin_restore(server, store)
        try:
            async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
                with pytest.raises(SessionBusyError):
                    await sdk.resume_session("s")
                assert await agents(server) == 1
                # The other program's agent has the agent session: it continues in a new one.
                session = await sdk.resume_session("s", take_over=True)
                (tmp_path / "may-load").touch()
                await session.prompt("two")
                events = await all_events(sdk, session)
                assert said(events).endswith("two")
                (load,) = [event for event in events if event.payload.get("method") == "session/load"]
                assert session.agent_session_id != load.payload["params"]["sessionId"]
        finally:
            program.kill()
