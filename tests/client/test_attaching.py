"""The next program takes the place of one that was killed: nothing is lost, and one agent goes on."""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest

from sandbox_agent import (
    PermissionRequest,
    SandboxAgent,
    SessionBusyError,
    SessionNotFoundError,
)
from sandbox_agent.errors import ConflictError
from sandbox_agent.wire.records import RESTORED_METHOD
from tests.client.checks import all_events, said
from tests.client.conftest import Front
from tests.client.programs import Program, agents, envelopes, server_events
from tests.support.effort import repeats
from tests.support.npm import PUBLISHED_SERVER, npm_or_skip
from tests.support.servers import ServerProcess, descendants, our_server, published_server

pytestmark = pytest.mark.anyio


@pytest.fixture
def server(tmp_path: Path, front: Front) -> Iterator[ServerProcess]:
    with our_server(tmp_path, "--store", f"sqlite:{tmp_path / 'server.db'}") as running:
        yield front(running)


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'client.db'}"


@pytest.mark.no_gateway("the turn lasts a second, and has to run when the client gets through")
async def test_a_running_turn_is_joined(server: ServerProcess, store: str, tmp_path: Path) -> None:
    program = Program(server, store, "echo one", "stream 200 5")
    program.wait_stored(20)
    program.kill()
    with anyio.fail_after(60):
        async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
            session = await sdk.resume_session("s")
            turn = session.turn
            assert turn is not None
            events = [event async for event in turn]
            assert events[0].payload["method"] == "session/prompt"
            assert len(events) == 202
            assert turn.response.stop_reason == "end_turn"
            assert session.turn is None
            await session.prompt("echo the end")
            stored = await all_events(sdk, session)
            assert not any(RESTORED_METHOD in str(event.payload) for event in stored)
            assert await agents(server) == 1
            recorded = await server_events(tmp_path, session.agent_session_id, "the end")
            agent_session = session.agent_session_id
    assert envelopes(stored, agent_session) == envelopes(recorded, agent_session)


async def test_a_turn_that_ended_meanwhile_is_stored(server: ServerProcess, store: str) -> None:
    program = Program(server, store, "stream 100 5")
    program.wait_stored(10)
    program.kill()
    with anyio.fail_after(60):
        async with httpx2.AsyncClient() as http:
            while '"idle"' not in (await http.get(f"{server.own_url}/v1/sessions")).text:
                if "stopReason" in (await _events_of_the_server(http, server)):
                    break
                await anyio.sleep(0.01)
        async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
            session = await sdk.resume_session("s")
            assert session.turn is None
            stored = await all_events(sdk, session)
            assert stored[-1].payload["result"]["stopReason"] == "end_turn"
            assert sum(b"agent_message_chunk" in event.payload_json for event in stored) == 100


async def _events_of_the_server(http: httpx2.AsyncClient, server: ServerProcess) -> str:
    (session,) = (await http.get(f"{server.own_url}/v1/sessions")).json()["sessions"]
    path = f"/v1/sessions/{session['sessionId']}/events?limit=10000&include_raw=true"
    return (await http.get(server.own_url + path)).text


# The turn of a stored prompt that the lost program has not delivered is waited for without end.
@pytest.mark.no_gateway("needs a prompt that was delivered before the program was killed")
@pytest.mark.parametrize("is_stored", [True, False])
async def test_an_open_permission_request_is_answered_by_the_next_program(
    server: ServerProcess, store: str, is_stored: bool
) -> None:
    program = Program(server, store, "permission")
    program.wait_stored(5 if is_stored else 3)
    program.kill()
    asked: list[PermissionRequest] = []
    with anyio.fail_after(60):
        async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
            session = await sdk.resume_session("s")
            is_asked = anyio.Event()

            def listen(request: PermissionRequest) -> None:
                asked.append(request)
                is_asked.set()

            session.on_permission_request(listen)
            await is_asked.wait()
            turn = session.turn
            assert turn is not None
            await session.respond_permission(asked[0].id, "once")
            assert (await turn).stop_reason == "end_turn"
            assert "Permission granted (allow_once)" in said(await all_events(sdk, session))
    assert len(asked) == 1


@pytest.mark.no_gateway("needs a prompt that was delivered before the program was killed")
async def test_an_open_question_is_answered_by_the_next_program(server: ServerProcess, store: str) -> None:
    program = Program(server, store, "question")
    program.wait_stored(4)
    program.kill()
    with anyio.fail_after(60):
        async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
            session = await sdk.resume_session("s")
            asked = anyio.Event()
            session.on_question(lambda _: asked.set())
            await asked.wait()
            turn = session.turn
            assert turn is not None
            (question,) = session.pending_questions()
            await session.respond_question(question.id, {"color": "Blue"})
            assert session.pending_questions() == []
            assert (await turn).stop_reason == "end_turn"
            assert '"content":{"color":"#00f"}' in said(await all_events(sdk, session))


async def test_an_idle_session_goes_on_with_its_agent(server: ServerProcess, store: str) -> None:
    program = Program(server, store, "echo one", "mode plan")
    program.wait_stored(1_000)
    program.kill()
    with anyio.fail_after(60):
        async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
            session = await sdk.resume_session("s")
            assert session.turn is None
            await session.prompt("echo two")
            assert said(await all_events(sdk, session)) == "onetwo"
            assert await agents(server) == 1
    assert await agents(server) == 0


async def test_a_program_that_lives_keeps_its_session(server: ServerProcess, store: str) -> None:
    program = Program(server, store, "stream 4000 10")
    program.wait_stored(10)
    try:
        with anyio.fail_after(60):
            async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
                with pytest.raises(SessionBusyError, match=f"process {program.pid} on ") as busy:
                    await sdk.resume_session("s")
                assert busy.value.session_id == "s"
                session = await sdk.get_session("s")
                assert session is not None
                with pytest.raises(SessionBusyError):
                    await session.prompt("echo two")
        program.wait_stored(100)  # its turn was not disturbed
    finally:
        program.kill()


async def test_the_sessions_of_one_lost_program_go_on_in_two(
    server: ServerProcess, store: str, tmp_path: Path
) -> None:
    with anyio.fail_after(60):
        lost = await SandboxAgent.connect(base_url=server.url, persist=store)
        try:
            for name in ("one", "two"):
                session = await lost.create_session(agent="mock", id=name, permission_policy="ask")
                await session.prompt(f"echo {name}")
            async with (
                SandboxAgent.connect(base_url=server.url, persist=store) as first,
                SandboxAgent.connect(base_url=server.url, persist=store) as second,
            ):
                one = await first.resume_session("one", take_over=True)
                two = await second.resume_session("two", take_over=True)
                assert await agents(server) == 1
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(one.prompt, "stream 50 5")
                    tasks.start_soon(two.prompt, "stream 50 5")
                await lost.dispose()
                assert await agents(server) == 1  # the others use it
                await one.prompt("echo the end of one")
                await two.prompt("echo the end of two")
                first_events, second_events = await all_events(first, one), await all_events(second, two)
                assert said(first_events).endswith("the end of one")
                assert said(second_events).endswith("the end of two")
                for session, events in ((one, first_events), (two, second_events)):
                    name = session.agent_session_id
                    recorded = await server_events(tmp_path, name, f"the end of {session.id}")
                    assert envelopes(events, name) == envelopes(recorded, name)
            assert await agents(server) == 0
        finally:
            await lost.dispose()


class Elsewhere(httpx2.AsyncHTTPTransport):
    """Lets the other client seem to be on another machine, from which it has just lost its connection."""

    def __init__(self, **state: Any) -> None:
        super().__init__()
        self.state = state
        self.attached: list[float] = []

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if "attach" in request.url.params:
            self.attached.append(time.monotonic())
            if len(self.attached) == 1:
                holder = "another-machine:1:boot-1:0"
                problem = ConflictError("conflict: it was there", holder=holder, **self.state).to_problem()
                headers = {"content-type": "application/problem+json"}
                return httpx2.Response(409, json=problem, headers=headers)
        return await super().handle_async_request(request)


async def test_the_place_of_a_client_that_lost_its_network_is_kept(server: ServerProcess, store: str) -> None:
    program = Program(server, store, "echo one")
    program.wait_stored(1_000)
    program.kill()
    transport = Elsewhere(connected=False, goneForMs=9_800)
    with anyio.fail_after(60):
        async with SandboxAgent.connect(base_url=server.url, transport=transport, persist=store) as sdk:
            await sdk.resume_session("s")
    first, second, *_ = transport.attached
    assert second - first >= 0.2


async def test_a_client_on_another_machine_that_is_connected_keeps_its_session(
    server: ServerProcess, store: str
) -> None:
    program = Program(server, store, "echo one")
    program.wait_stored(1_000)
    program.kill()
    transport = Elsewhere(connected=True, goneForMs=0)
    with anyio.fail_after(60):
        async with SandboxAgent.connect(base_url=server.url, transport=transport, persist=store) as sdk:
            with pytest.raises(SessionBusyError, match="process 1 on another-machine"):
                await sdk.resume_session("s")
    assert len(transport.attached) == 1


def kill_agents(server: ServerProcess) -> None:
    """Kill the agents that the server has started."""
    for pid in descendants(server.pid):
        if b"agents.mock" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)


async def test_an_agent_that_has_exited_meanwhile_is_heard_to_its_end(
    server: ServerProcess, store: str
) -> None:
    program = Program(server, store, "stream 4000 5")
    program.wait_stored(20)  # more than 10 of them are pieces of the message
    program.kill()
    with anyio.fail_after(60):
        async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
            kill_agents(server)
            while await agents(server):  # noqa: ASYNC110 - another process
                await anyio.sleep(0.01)
            session = await sdk.resume_session("s")
            assert session.turn is None
            await session.prompt("echo the end")
            events = await all_events(sdk, session)
            names = [str(event.payload.get("method")) for event in events]
            assert names.count("_adapter/agent_exited") == 1
            assert names.index("_adapter/agent_exited") < names.index(RESTORED_METHOD)
            chunks = [event for event in events if b"agent_message_chunk" in event.payload_json]
            assert len(chunks) > 10
            assert said(events).endswith("the end")
            assert await agents(server) == 1


@pytest.mark.soak
async def test_a_session_of_the_published_server_goes_on_with_its_agent(tmp_path: Path, store: str) -> None:
    npm_or_skip(PUBLISHED_SERVER, "attaching to the published server")
    with published_server(tmp_path) as server:
        program = Program(server, store, "echo one", "stream 500 5", agent="claude")
        program.wait_stored(20)
        program.kill()
        with anyio.fail_after(60):
            async with SandboxAgent.connect(base_url=server.url, persist=store) as sdk:
                session = await sdk.resume_session("s")
                turn = session.turn
                assert turn is not None
                assert (await turn).stop_reason == "end_turn"
                await session.prompt("echo the end")
                events = await all_events(sdk, session)
                assert not any(RESTORED_METHOD in str(event.payload) for event in events)
                assert said(events).endswith("the end")
                if not any(b"events_lost" in event.payload_json for event in events):
                    assert sum(b"agent_message_chunk" in each.payload_json for each in events) == 502
                assert await agents(server) == 1


@pytest.mark.no_gateway("measures how long a resume takes")
@pytest.mark.loops
@pytest.mark.soak
async def test_programs_are_killed_anywhere(
    server: ServerProcess, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seconds: list[float] = []
    for seed in range(repeats(10, 100)):
        generator = random.Random(seed)
        url = _store_url(seed, tmp_path, request)
        if seed % 2:
            prompts, last = ["echo one", "answer", "permission", "stream 40 2", "mode plan", "echo two"], 70
        else:
            prompts, last = ["echo one", "permission"], 8  # which waits for an answer
        program = Program(server, url, *prompts)
        program.wait_stored(generator.randint(1, last))
        await anyio.sleep(generator.random() * 0.02)
        program.kill()
        seconds.append(await _resume(server, url, tmp_path, seed))
    found = sorted(seconds)
    p95 = found[int(len(found) * 0.95)]
    median = statistics.median(found)
    print(f"{len(found)} resumes after kill -9: median {median * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms")


def _store_url(seed: int, folder: Path, request: pytest.FixtureRequest) -> str:
    kind = seed % 3
    if kind == 0:
        return f"sqlite:{folder / f'client-{seed}.db'}"
    url: str = request.getfixturevalue("postgres_dsn" if kind == 1 else "redis_url")
    return url


async def _resume(server: ServerProcess, url: str, folder: Path, seed: int) -> float:
    """Resume the session of a program that was killed, end its turn, and compare both histories."""
    with anyio.fail_after(60):
        async with SandboxAgent.connect(base_url=server.url, persist=url) as sdk:
            await sdk.get_health()
            began = time.monotonic()
            try:
                session = await sdk.resume_session("s", permission_policy="once")
            except SessionNotFoundError:
                return time.monotonic() - began  # it was killed before the session was stored
            took = time.monotonic() - began
            if session.turn is not None:
                assert (await session.turn).stop_reason == "end_turn", seed
            await session.prompt("echo the end")
            stored = await all_events(sdk, session)
            agent_session = session.agent_session_id
            recorded = await server_events(folder, agent_session, "the end")
            ours, theirs = envelopes(stored, agent_session), envelopes(recorded, agent_session)
            assert ours["agent"] == theirs["agent"], seed
            assert ours["client"] == theirs["client"], seed
            assert not any(RESTORED_METHOD in str(event.payload) for event in stored), seed
            text = said(stored)
            asked = sum(b'"session/request_permission"' in event.payload_json for event in stored)
            assert text.count("Permission granted (allow_once)") == asked, seed
            assert await agents(server) == 1, seed
            await sdk.delete_session("s")
    return took
