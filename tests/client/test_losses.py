"""What happens when the server, the agent or a connection goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import anyio
import httpx2
import pytest
from anyio.abc import ByteStream

from sandbox_agent import (
    AcpRpcError,
    AgentProcessExitedError,
    ConnectionLostError,
    InMemorySessionPersistDriver,
    ListPage,
    SandboxAgent,
    Session,
    SessionEvent,
    SessionRestored,
    SQLiteSessionPersistDriver,
)
from tests.client.checks import all_events, methods, said, sent_prompts, until
from tests.client.proxy import LossyProxy
from tests.client.scripted import ScriptedServer
from tests.support.relay import Relay
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio


def restored(events: list[SessionEvent]) -> list[SessionRestored]:
    """Return what is said about restores."""
    return [event.update for event in events if isinstance(event.update, SessionRestored)]


async def begun(session: Session) -> asyncio.Event:
    """Return an event that is set by the next update."""
    event = asyncio.Event()
    session.on_event(lambda seen: event.set() if seen.update is not None else None)
    return event


class OpenPort(Relay):
    """A port that stays open when its server has ended, as that of a container does.

    Attributes:
        holds_posts: whether POSTs of the first connection are accepted and go nowhere.
    """

    def __init__(self, port: int) -> None:
        super().__init__()
        self.holds_posts = False
        self._server = port
        self._path = b""

    async def _handle(self, client: ByteStream) -> None:
        with contextlib.suppress(OSError, anyio.EndOfStream, anyio.BrokenResourceError):
            async with client:
                head = await client.receive()
                method, path = head.split(b" ")[:2]
                path = path.partition(b"?")[0]
                if method == b"GET" and path.startswith(b"/v1/acp/"):
                    self._path = self._path or path
                if self.holds_posts and method == b"POST" and path == self._path:
                    await anyio.sleep_forever()
                async with await anyio.connect_tcp("127.0.0.1", self._server) as server:
                    await server.send(head)
                    await self._copy_both(client, server)

    async def _copy_both(self, client: ByteStream, server: ByteStream) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._copy, server, client, tasks.cancel_scope)
            await self._copy(client, server, tasks.cancel_scope)

    async def _copy(self, source: ByteStream, target: ByteStream, end: anyio.CancelScope) -> None:
        with contextlib.suppress(anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
            while True:
                await target.send(await source.receive())
        end.cancel()


@pytest.mark.no_gateway("has a proxy of its own")
async def test_a_prompt_is_not_sent_to_a_server_that_has_just_ended_behind_an_open_port(
    own_server: ServerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="sandbox_agent.client")
    async with OpenPort(own_server.port) as port:
        url = f"http://127.0.0.1:{port.port}"
        async with SandboxAgent.connect(base_url=url) as sdk:
            session = await sdk.create_session(agent="mock")
            await session.prompt("echo before")
            port.holds_posts = True
            own_server.kill()
            with anyio.fail_after(40):
                await until(lambda: "the event stream of" in caplog.text)
                turn = asyncio.create_task(session.prompt("echo after"))
                await asyncio.to_thread(own_server.start)
                assert (await turn).stop_reason == "end_turn"
            events = await all_events(sdk, session)
    assert len(sent_prompts(events)) == 2
    assert said(events) == "beforeafter"


async def test_a_server_killed_in_a_turn_fails_it_and_the_next_call_restores(
    own_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(40):
        async with SandboxAgent.connect(base_url=own_server.url, persist=driver) as sdk:
            session = await sdk.create_session(agent="mock", model="mock-fast", mode="plan")
            await session.prompt("echo remember me")
            first = session.agent_session_id
            started = await begun(session)
            turn = asyncio.create_task(session.prompt("stream 1000 20"))
            await started.wait()
            own_server.kill()
            await asyncio.to_thread(own_server.start)
            with pytest.raises(ConnectionLostError, match="outcome is unknown"):
                await turn
            assert (await session.prompt("echo back again")).stop_reason == "end_turn"
            events = await all_events(sdk, session)
    assert session.agent_session_id != first
    assert said(events).endswith("back again")
    (told,) = restored(events)
    assert (told.method, told.left_out, told.failed) == ("replay", 0, None)
    assert [blocks[0]["text"] for blocks in sent_prompts(events)] == [
        "echo remember me",
        "stream 1000 20",
        "echo back again",
    ]
    values = {option["id"]: option["currentValue"] for option in session.record.config_options or []}
    assert (values["model"], values["mode"]) == ("mock-fast", "plan")


async def test_a_server_that_restarted_between_turns_goes_unnoticed(
    own_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(40):
        async with SandboxAgent.connect(base_url=own_server.url, persist=driver) as sdk:
            session = await sdk.create_session(agent="mock")
            await session.prompt("echo one")
            own_server.kill()
            await asyncio.to_thread(own_server.start)
            assert (await session.prompt("echo two")).stop_reason == "end_turn"
            events = await all_events(sdk, session)
    assert len(sent_prompts(events)) == 2
    assert len(restored(events)) == 1
    assert said(events) == "onetwo"


async def test_another_client_resumes_with_the_history_in_front_of_the_prompt(
    own_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    async with SandboxAgent.connect(base_url=own_server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="mock", id="mine")
        await session.prompt("echo the answer is 42")
    async with SandboxAgent.connect(base_url=own_server.url, persist=driver) as sdk:
        session = await sdk.resume_session("mine")
        sent: list[bytes] = []
        async for event in session.stream("echo what was the answer"):
            sent.append(event.payload_json)
        assert b"conversation_history" not in sent[0]
        (told,) = restored(await all_events(sdk, session))
        assert told.replayed == 6
        await session.prompt("echo no second replay")
        assert len(restored(await all_events(sdk, session))) == 1


async def test_the_agent_gets_the_replay_once_and_the_store_never(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="claude", id="mine")
        await session.prompt("hello there")
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.resume_session("mine")
        events = [event async for event in session.stream("blocks")]
        blocks = json.loads(said(events))
        assert "User: hello there" in blocks[0]["text"]
        assert blocks[1:] == [{"type": "text", "text": "blocks"}]
        assert events[0].payload["params"]["prompt"] == [{"type": "text", "text": "blocks"}]
        events = [event async for event in session.stream("blocks")]
        assert json.loads(said(events)) == [{"type": "text", "text": "blocks"}]


@pytest.mark.no_gateway("has a proxy of its own")
async def test_an_event_stream_that_is_cut_loses_and_repeats_nothing(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(30):
        async with (
            LossyProxy(shared_server.port) as proxy,
            SandboxAgent.connect(base_url=proxy.url, persist=driver) as sdk,
        ):
            session = await sdk.create_session(agent="mock")
            cuts = 0
            expected = "".join(f"{number:06d} " for number in range(1, 301))
            async for event in session.stream("stream 300 3"):
                if event.event_index % 60 == 0:
                    await proxy.cut_next("GET /v1/acp/")
                    cuts += 1
            assert cuts >= 5
            assert said(await all_events(sdk, session)) == expected


@pytest.mark.no_gateway("has a proxy of its own")
async def test_a_prompt_whose_post_is_cut_goes_on_and_is_not_sent_again(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(30):
        async with (
            LossyProxy(shared_server.port) as proxy,
            SandboxAgent.connect(base_url=proxy.url, persist=driver) as sdk,
        ):
            session = await sdk.create_session(agent="mock")
            started = await begun(session)
            turn = asyncio.create_task(session.prompt("stream 40 20"))
            await started.wait()
            assert proxy.cut("POST") >= 1
            assert (await turn).stop_reason == "end_turn"
            events = await all_events(sdk, session)
            assert len(sent_prompts(events)) == 1
            assert methods(events).count("session/update") == 40


@pytest.mark.soak
@pytest.mark.no_gateway("counts on the port that refuses connections; a gateway answers with 502 instead")
async def test_a_server_that_stays_away_fails_the_turn(
    own_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(30):
        async with SandboxAgent.connect(base_url=own_server.url, persist=driver) as sdk:
            session = await sdk.create_session(agent="mock")
            started = await begun(session)
            turn = asyncio.create_task(session.prompt("stream 1000 20"))
            await started.wait()
            own_server.kill()
            with pytest.raises(ConnectionLostError, match="restores the session"):
                await turn


async def test_a_dead_agent_fails_the_turn_with_its_exit_code_and_is_started_again(
    sdk: SandboxAgent,
) -> None:
    session = await sdk.create_session(agent="mock")
    with anyio.fail_after(10), pytest.raises(AgentProcessExitedError) as caught:
        await session.prompt("die 3")
    problem = caught.value.problem or caught.value.extensions
    assert problem["exitCode"] == 3
    assert (await session.prompt("echo alive")).stop_reason == "end_turn"
    events = await all_events(sdk, session)
    assert "_adapter/agent_exited" in methods(events)
    assert len(restored(events)) == 1


async def test_a_connection_that_began_anew_is_dropped(
    own_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    async with (
        SandboxAgent.connect(base_url=own_server.url, persist=driver) as sdk,
        httpx2.AsyncClient() as client,
    ):
        session = await sdk.create_session(agent="mock")
        (server_id,) = [server.server_id for server in await sdk.list_acp_servers() if server.agent == "mock"]
        url = f"{own_server.own_url}/v1/acp/{server_id}"
        initialize = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"protocolVersion": 1}}
        await client.delete(url)
        await client.post(url, params={"agent": "mock"}, json=initialize)
        with anyio.fail_after(20):
            assert (await session.prompt("echo still here")).stop_reason == "end_turn"
        events = await all_events(sdk, session)
        assert len(restored(events)) == 1
        assert said(events) == "still here"


async def test_a_session_whose_idle_agent_the_server_ended_is_restored_by_the_next_prompt(
    tmp_path: Path, driver: SQLiteSessionPersistDriver
) -> None:
    with anyio.fail_after(30), our_server(tmp_path, "--acp-idle-timeout", "0.3") as server:
        async with (
            LossyProxy(server.port) as proxy,
            SandboxAgent.connect(base_url=proxy.url, persist=driver) as sdk,
            SandboxAgent.connect(base_url=server.url) as observer,
        ):
            session = await sdk.create_session(agent="mock")
            await session.prompt("echo before")
            (idle,) = await observer.list_acp_servers()
            assert [client.streams for client in idle.clients or []] == [1]
            proxy.down = True
            proxy.cut("")
            while await observer.list_acp_servers():
                pass
            proxy.down = False
            assert (await session.prompt("echo after")).stop_reason == "end_turn"
            events = await all_events(sdk, session)
            assert len(restored(events)) == 1
            assert len(sent_prompts(events)) == 2


async def test_an_answer_that_the_feed_lost_is_taken_from_the_post() -> None:
    server = ScriptedServer()
    async with SandboxAgent.connect(transport=server) as sdk:
        session = await sdk.create_session(agent="mock")
        server.feed_answers = False
        with anyio.fail_after(10):
            assert (await session.prompt("hello")).stop_reason == "end_turn"
        late = {"jsonrpc": "2.0", "id": server.posted[-1]["id"], "result": {"stopReason": "late"}}
        server.say(json.dumps(late).encode())
        server.feed_answers = True
        await session.prompt("again")
        results = [event.payload.get("result", {}) for event in await all_events(sdk, session)]
    assert [result["stopReason"] for result in results if "stopReason" in result] == ["end_turn", "end_turn"]


async def test_a_gap_that_the_server_announces_is_an_event_of_the_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = ScriptedServer()
    async with SandboxAgent.connect(transport=server) as sdk:
        session = await sdk.create_session(agent="mock")
        server.announce("gap", first=4, last=9)
        await session.prompt("hello")
        events = await all_events(sdk, session)
        (lost,) = [event for event in events if event.payload.get("method") == "_sandbox_agent/events_lost"]
        assert (lost.payload["params"]["first"], lost.payload["params"]["last"]) == (4, 9)
        assert "no longer has some events" in caplog.text


async def test_a_reset_makes_a_new_connection_for_the_next_call() -> None:
    server = ScriptedServer()
    async with SandboxAgent.connect(transport=server) as sdk:
        session = await sdk.create_session(agent="mock")
        before = session.last_connection_id
        server.announce("reset")
        with anyio.fail_after(10):
            while session.last_connection_id == before:
                await session.prompt("hello")
        assert len(restored(await all_events(sdk, session))) == 1


async def test_a_stream_is_resumed_by_its_last_id() -> None:
    server = ScriptedServer()
    async with SandboxAgent.connect(transport=server) as sdk:
        session = await sdk.create_session(agent="mock")
        server.end_feed()
        with anyio.fail_after(10):
            await session.prompt("hello")
    assert [request.headers["last-event-id"] for request in server.gets] == ["0", "2"]
    names = {request.headers["sandbox-agent-client"] for request in server.gets}
    assert len(names) == 1


async def test_a_stream_behind_a_failing_proxy_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox_agent.client.feed.REFUSED_FOR", 0.0)
    monkeypatch.setattr("sandbox_agent.client.feed.RECONNECT_MAX_DELAY", 0.01)
    server = ScriptedServer()
    async with SandboxAgent.connect(transport=server, skip_health_check=True) as sdk:
        session = await sdk.create_session(agent="mock", cwd="/")
        server.failing_gets = 5
        server.end_feed()
        response = await session.prompt("hello")
        assert response.stop_reason == "end_turn"
        assert server.failing_gets == 0
        assert sum(envelope.get("method") == "session/new" for envelope in server.posted) == 1


async def test_a_held_session_costs_nothing_when_its_connection_lives(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    before = session.agent_session_id
    assert (await sdk.resume_session(session.id)) is session
    assert session.agent_session_id == before
    assert restored(await all_events(sdk, session)) == []


class TailOnlyDriver(InMemorySessionPersistDriver):
    """A store whose history may not be walked."""

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        raise AssertionError("the whole history was asked for")


async def test_a_restore_reads_the_tail_of_the_history_only(shared_server: ServerProcess) -> None:
    driver = TailOnlyDriver(max_events_per_session=2_000)
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="mock", id="long")
        await session.prompt("burst 900 10")
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver, replay_max_events=20) as sdk:
        await sdk.resume_session("long")
    (event,) = await driver.tail_events("long", limit=1)
    assert isinstance(event.update, SessionRestored)
    # One text in 900 pieces: 40 for each of the 20 are read.
    assert (event.update.replayed, event.update.left_out) == (800, 104)


class Refusing(httpx2.AsyncHTTPTransport):
    """The usual transport; the next requests with that word in their body find nobody listening."""

    def __init__(self) -> None:
        super().__init__()
        self.word = b""
        self.times = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self.times and self.word in await request.aread():
            self.times -= 1
            raise httpx2.ConnectError("refused")
        return await super().handle_async_request(request)


async def test_a_restore_that_is_cut_off_knows_the_settings_when_it_comes_again(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="mock", model="mock-fast", mode="plan", id="s")
    transport = Refusing()
    transport.word, transport.times = b"session/set_", 3
    with anyio.fail_after(20):
        async with SandboxAgent.connect(
            base_url=shared_server.url, persist=driver, transport=transport
        ) as sdk:
            session = await sdk.get_session("s")
            assert session is not None
            await session.prompt("hello")
            values = {option["id"]: option["currentValue"] for option in session.record.config_options or []}
    assert transport.times == 0
    assert (values["model"], values["mode"]) == ("mock-fast", "plan")


async def test_a_replay_goes_again_when_the_agent_refused_the_prompt_that_had_it(
    shared_server: ServerProcess, driver: SQLiteSessionPersistDriver
) -> None:
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="claude", id="s")
        await session.prompt("remember me")
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.resume_session("s")
        with pytest.raises(AcpRpcError):
            await session.prompt("fail")
        await session.prompt("blocks")
        assert "remember me" in said(await all_events(sdk, session))


@pytest.mark.parametrize(
    "params", ["{}", "[]", "7", '{"sessionId": 1}', '{"sessionId": "s", "replayed": "x"}']
)
def test_a_restore_that_an_agent_made_up_is_no_update(params: str) -> None:
    payload = f'{{"jsonrpc":"2.0","method":"_sandbox_agent/session_restored","params":{params}}}'
    event = SessionEvent("e1", 1, "s", 1, "c", "agent", payload.encode())
    assert event.update is None
