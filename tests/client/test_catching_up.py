"""What the server has recorded reaches the store, though the stream that would bring it is gone."""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import msgspec
import pytest

from sandbox_agent import SandboxAgent, SessionEvent, local
from sandbox_agent.client.catch_up import after_stored
from sandbox_agent.persist.store.view import sqlite_store_driver
from sandbox_agent.persist.transfer.history import read_events
from sandbox_agent.wire.jsonrpc import members
from sandbox_agent.wire.records import RESTORED_METHOD
from sandbox_agent.wire.sessions import SessionEnvelope
from tests.client.checks import all_events, said
from tests.client.programs import Program, agents, envelopes
from tests.support.effort import repeats
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import ServerProcess, our_server, published_server, put_launcher

pytestmark = pytest.mark.anyio


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'client.db'}"


def _server(folder: Path, *options: str) -> AbstractContextManager[ServerProcess]:
    return our_server(folder, "--store", f"sqlite:{folder / 'server.db'}", *options)


def _before_the_restore(events: Sequence[SessionEvent]) -> list[SessionEvent]:
    """Return the events of the connection that was lost."""
    first = events[0].connection_id
    return [event for event in events if event.connection_id == first]


def _agent_session(events: Sequence[SessionEvent]) -> str:
    """Return the id of the agent session that was created first."""
    results = (members(event.payload.get("result")) for event in events if event.sender == "agent")
    return next(str(result["sessionId"]) for result in results if "sessionId" in result)


async def _recorded(folder: Path, agent_session: str) -> list[SessionEvent]:
    """Return what the server's store has of a session."""
    reader = sqlite_store_driver(folder / "server.db")
    assert reader is not None
    try:
        records = (await reader.list_sessions(limit=1_000)).items
        (record,) = [each for each in records if each.agent_session_id == agent_session]
        return [event async for event in read_events(reader, record.id)]
    finally:
        await reader.close()


async def _wait_recorded(server: ServerProcess, text: bytes, times: int) -> None:
    """Wait until the server has recorded so many envelopes with this text."""
    async with httpx2.AsyncClient(base_url=server.own_url) as http:
        (session,) = (await http.get("/v1/sessions")).json()["sessions"]
        path = f"/v1/sessions/{session['sessionId']}/envelopes"
        while (await http.get(path)).content.count(text) < times:  # noqa: ASYNC110 - another process
            await anyio.sleep(0.01)


async def test_a_server_that_was_killed_has_recorded_more(tmp_path: Path, store: str) -> None:
    with _server(tmp_path) as server:
        program = Program(server, store, "echo one", "stream 400 5")
        program.wait_stored(20)
        program.kill()
        with anyio.fail_after(60):
            await _wait_recorded(server, b"agent_message_chunk", 100)
            server.kill()
            server.start()
            async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
                session = await sdk.resume_session("s")
                stored = await all_events(sdk, session)
                before = _before_the_restore(stored)
                agent_session = _agent_session(before)
                recorded = await _recorded(tmp_path, agent_session)
                assert sum(b"agent_message_chunk" in event.payload_json for event in before) >= 100
                assert envelopes(before, agent_session) == envelopes(recorded, agent_session)
                assert any(RESTORED_METHOD in str(event.payload) for event in stored)
                await session.prompt("echo the end")
                assert said(await all_events(sdk, session)).endswith("the end")


async def test_an_agent_that_was_idle_for_too_long_has_ended_its_turn_before(
    tmp_path: Path, store: str
) -> None:
    with _server(tmp_path, "--acp-idle-timeout", "0.2") as server:
        program = Program(server, store, "echo one", "mode plan", "stream 200 5")
        program.wait_stored(20)
        program.kill()
        with anyio.fail_after(60):
            while await agents(server):  # noqa: ASYNC110 - another process
                await anyio.sleep(0.01)
            async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
                session = await sdk.resume_session("s")
                stored = await all_events(sdk, session)
                restored = next(n for n, event in enumerate(stored) if RESTORED_METHOD in str(event.payload))
                turn = [event.payload for event in stored[:restored] if "stopReason" in str(event.payload)]
                assert len(turn) == 2
                chunks = [event for event in stored if b"agent_message_chunk" in event.payload_json]
                assert len({event.id for event in chunks}) == len(chunks) == 201
                # once more: nothing is added
                await session.prompt("echo two")
            async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
                while await agents(server):  # noqa: ASYNC110 - another process
                    await anyio.sleep(0.01)
                session = await sdk.resume_session("s")
                again = await all_events(sdk, session)
                assert sum(b"agent_message_chunk" in event.payload_json for event in again) == 202


# Answers session/set_mode when a file exists; says in which mode it was prompted.
SLOW_AGENT = """
import json, pathlib, sys, time

mode, may_answer = "ask", pathlib.Path(sys.argv[1])
for line in sys.stdin:
    message = json.loads(line)
    method, params = message["method"], message.get("params") or {}
    result = {}
    if method == "initialize":
        result = {"protocolVersion": 1, "agentCapabilities": {}}
    elif method == "session/new":
        modes = [{"id": name, "name": name} for name in ("ask", "plan")]
        result = {"sessionId": "n", "modes": {"currentModeId": "ask", "availableModes": modes}}
    elif method == "session/set_mode":
        while not may_answer.exists():
            time.sleep(0.01)
        mode = params["modeId"]
    elif method == "session/prompt":
        update = {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": mode}}
        notice = {"method": "session/update", "params": {"sessionId": "n", "update": update}}
        print(json.dumps({"jsonrpc": "2.0", **notice}), flush=True)
        result = {"stopReason": "end_turn"}
    print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""


async def test_a_setting_that_only_the_record_confirms_is_set_again(tmp_path: Path, store: str) -> None:
    script, may_answer = tmp_path / "agent.py", tmp_path / "answer"
    script.write_text(SLOW_AGENT)
    put_launcher(tmp_path / "data", "claude", [sys.executable, str(script), str(may_answer)])
    with _server(tmp_path) as server:
        program = Program(server, store, "mode plan", agent="claude")
        program.wait_stored(3)
        program.kill()
        with anyio.fail_after(60):
            may_answer.touch()
            await _wait_recorded(server, b'"result": {}', 1)
            server.kill()
            server.start()
            async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
                session = await sdk.resume_session("s")
                await session.prompt("in which mode?")
                assert said(await all_events(sdk, session)) == "plan"


async def test_the_store_file_of_a_server_that_ended_with_its_program(tmp_path: Path, store: str) -> None:
    url = f"sqlite:{tmp_path / 'server.db'}"
    code = f"""
import asyncio
from sandbox_agent import SandboxAgent, local

async def main():
    async with SandboxAgent.start(sandbox=local(store={url!r}, log="silent"), persist={store!r}) as sdk:
        session = await sdk.create_session(agent="mock", id="s", cwd="/tmp")
        session.on_event(lambda event: print(event.event_index, flush=True))
        await session.prompt("stream 4000 2")

asyncio.run(main())
"""
    program = Program.running(code)
    program.wait_stored(40)
    program.kill()
    with anyio.fail_after(60):
        async with SandboxAgent.start(sandbox=local(store=url, log="silent"), persist=store) as sdk:
            session = await sdk.resume_session("s")
            stored = await all_events(sdk, session)
            before = _before_the_restore(stored)
            agent_session = _agent_session(before)
            recorded = await _recorded(tmp_path, agent_session)
            theirs = envelopes(recorded, agent_session)
            assert envelopes(before, agent_session) == theirs
            (turn,) = (await sdk.sessions.get(agent_session)).turns or []
            assert turn.state == "interrupted"


async def _restart_in_a_turn(server: ServerProcess, store: str, agent: str) -> list[SessionEvent]:
    """Kill a program and its server in a turn; return the events after the next program has resumed."""
    program = Program(server, store, "echo one", "stream 4000 5", agent=agent)
    program.wait_stored(20)
    program.kill()
    server.kill()
    server.start()
    async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
        session = await sdk.resume_session("s")
        return await all_events(sdk, session)


def _lost(events: Sequence[SessionEvent]) -> int:
    return sum(b"_sandbox_agent/events_lost" in event.payload_json for event in events)


async def test_a_turn_that_the_server_has_not_recorded_is_a_gap(tmp_path: Path, store: str) -> None:
    with our_server(tmp_path, "--store", "memory") as server, anyio.fail_after(60):
        assert _lost(await _restart_in_a_turn(server, store, "mock")) == 1
        # Between turns nothing is lost.
        server.kill()
        server.start()
        async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
            session = await sdk.resume_session("s")
            await session.prompt("echo two")
        server.kill()
        server.start()
        async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
            session = await sdk.resume_session("s")
            assert _lost(await all_events(sdk, session)) == 1


async def test_a_turn_that_the_published_server_has_lost_is_a_gap(tmp_path: Path, store: str) -> None:
    npm_or_skip(PUBLISHED_SERVER, "restarting the published server")
    with published_server(tmp_path) as server, anyio.fail_after(60):
        assert _lost(await _restart_in_a_turn(server, store, "claude")) == 1


def _line(text: str) -> SessionEnvelope:
    raw = msgspec.Raw(msgspec.json.encode({"method": text}))
    return SessionEnvelope(index=1, sender="agent", connection_id="f", time=0, envelope=raw)


@pytest.mark.parametrize(
    ("recorded", "stored", "missing"),
    [
        ("abc", "", "abc"),
        ("abc", "a", "bc"),
        ("abc", "abc", ""),
        ("aaaa", "aaa", "a"),
        ("abxcd", "abc", "d"),  # x was not stored on purpose
        ("abcd", "abxc", "d"),  # x was not recorded, as the server's store failed
        ("", "ab", ""),
    ],
)
def test_what_is_missing_begins_after_the_last_line_that_both_have(
    recorded: str, stored: str, missing: str
) -> None:
    lines = [bytes(_line(each).envelope) for each in stored]
    found = after_stored([_line(each) for each in recorded], lines)
    assert [msgspec.json.decode(each.envelope)["method"] for each in found] == list(missing)


async def test_envelopes_are_returned_in_pages(tmp_path: Path) -> None:
    with _server(tmp_path) as server, anyio.fail_after(60):
        async with SandboxAgent.connect(base_url=server.url) as sdk:
            session = await sdk.create_session(agent="mock")
            await session.prompt("stream 20 0")
            recorded: list[dict[str, Any]] = []
            async with httpx2.AsyncClient(base_url=server.own_url) as http:
                params = {"agent": "mock", "nativeSessionId": session.agent_session_id}
                name, turns = "", list[dict[str, Any]]()
                while not turns or turns[-1]["state"] != "done":  # the recorder stores after it has delivered
                    for found in (await http.get("/v1/sessions", params=params)).json()["sessions"]:
                        name = found["sessionId"]
                        turns = (await http.get(f"/v1/sessions/{name}")).json()["turns"]
                    await anyio.sleep(0.01)
                path = f"/v1/sessions/{name}/envelopes"
                page: dict[str, Any] = {"hasMore": True, "lastIndex": 0}
                while page["hasMore"]:
                    after = recorded[-1]["index"] if recorded else 0
                    page = (await http.get(path, params={"after": after, "limit": 7})).json()
                    assert len(page["envelopes"]) <= 7
                    recorded += page["envelopes"]
                assert [each["index"] for each in recorded] == list(range(1, page["lastIndex"] + 1))
                events = await all_events(sdk, session)
                for sender in ("client", "agent"):
                    sent = [each["envelope"] for each in recorded if each["sender"] == sender]
                    assert sent == [event.payload for event in events if event.sender == sender]
                assert len({each["connectionId"] for each in recorded}) == 1
                empty = (await http.get(path, params={"limit": 0})).json()
                assert empty == {"envelopes": [], "hasMore": True, "lastIndex": page["lastIndex"]}
                past = (await http.get(path, params={"after": 10_000})).json()
                assert (past["envelopes"], past["hasMore"]) == ([], False)
                assert (await http.get("/v1/sessions", params={"agent": "mock"})).status_code == 400
                params["nativeSessionId"] = "unknown"
                assert (await http.get("/v1/sessions", params=params)).json()["sessions"] == []
                assert (await http.get("/v1/sessions/unknown/envelopes")).status_code == 404


@pytest.mark.loops
@pytest.mark.soak
async def test_programs_and_their_servers_are_killed_anywhere(tmp_path: Path) -> None:
    with _server(tmp_path) as server:
        for seed in range(repeats(5, 40)):
            generator = random.Random(seed)
            url = f"sqlite:{tmp_path / f'client-{seed}.db'}"
            program = Program(server, url, "echo one", "mode plan", "stream 60 3", "permission")
            program.wait_stored(generator.randint(4, 70))
            program.kill()
            await anyio.sleep(generator.random() * 0.1)
            server.kill()
            server.start()
            with anyio.fail_after(60):
                async with SandboxAgent.connect(base_url=server.url, persist=url) as sdk:
                    session = await sdk.resume_session("s", permission_policy="once")
                    before = _before_the_restore(await all_events(sdk, session))
                    agent_session = _agent_session(before)
                    recorded = envelopes(await _recorded(tmp_path, agent_session), agent_session)
                    stored = envelopes(before, agent_session)
                    # The feed may be ahead of the record: what was not committed when the server was killed.
                    number = len(recorded["agent"])
                    assert stored["agent"][:number] == recorded["agent"], seed
                    assert len({event.id for event in before}) == len(before), seed
                    for line in recorded["client"]:
                        assert stored["client"].count(line) == recorded["client"].count(line), seed
                    await session.prompt("echo the end")
                    assert said(await all_events(sdk, session)).endswith("the end"), seed
                    assert await agents(server) == 1, seed
