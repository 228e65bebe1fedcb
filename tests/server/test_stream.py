"""The event stream: first bytes, places to go on from, epochs, resets, whom an answer is for."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
import uvicorn

from sandbox_agent.server.agents import bridge
from sandbox_agent.server.app import Application
from sandbox_agent.server.config import ServerConfig
from tests.server.talk import Talk, talk
from tests.support.servers import ServerProcess, free_port, our_server

pytestmark = pytest.mark.anyio


async def test_the_first_bytes_come_at_once_and_are_no_event(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        headers = {"accept": "text/event-stream"}
        async with talking.client.stream("GET", talking.path, headers=headers) as response:
            assert response.headers["content-type"] == "text/event-stream"
            assert response.headers["cache-control"] == "no-cache"
            assert response.headers["x-accel-buffering"] == "no"
            assert len(response.headers["sandbox-agent-epoch"]) >= 16
            first = await anext(response.aiter_bytes())
            assert first.startswith(b":")
            assert b"\nretry: " in first


async def test_a_head_request_ends(server: ServerProcess, fresh: Callable[[], str]) -> None:
    async with talk(server, fresh()) as talking:
        with anyio.fail_after(20):
            response = await talking.client.head(talking.path, headers={"accept": "text/event-stream"})
        assert response.status_code == 200
        assert response.content == b""


async def test_the_stream_carries_the_agents_lines_byte_for_byte(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh(), open_=False) as talking:
        response = await talking.post(
            b'{"jsonrpc":"2.0","id":"\\u0061","method":"initialize","params":{"protocolVersion":1}}',
            agent="mock",
        )
        async with talking.stream() as stream:
            event = await stream.next()
        assert event is not None
        assert (event.event, event.id) == ("message", "1")
        assert event.data == response.content
        assert event.data.startswith(b'{"jsonrpc":"2.0","id":"a","result":{')


async def test_a_reader_goes_on_exactly_behind_any_id(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        await talking.prompt("plan")
        await talking.prompt("burst 20 50")
        async with talking.stream() as whole:
            await whole.until('"id":4')
        last = whole.ids[-1]
        assert whole.ids == list(range(1, last + 1))
        for after in range(last):
            async with talking.stream(after) as stream:
                while not stream.ids or stream.ids[-1] < last:
                    await stream.next()
                assert stream.events == whole.events[after:]
        async with talking.stream(last, epoch=whole.epoch) as stream:
            await talking.prompt("echo more")
            event = await stream.next()
            assert event is not None
            assert event.id == str(last + 1)


@pytest.mark.parametrize("ahead", [1, 1000, 10**18])
async def test_an_id_that_was_never_sent_is_answered_with_reset_and_the_whole_feed(
    server: ServerProcess, fresh: Callable[[], str], ahead: int
) -> None:
    async with talk(server, fresh()) as talking:
        async with talking.stream() as stream:
            await stream.until('"id":2')
            last = stream.ids[-1]
        async with talking.stream(last + ahead) as stream:
            reset = await stream.next()
            assert reset is not None
            assert (reset.event, reset.id) == ("reset", "0")
            assert json.loads(reset.data) == {"epoch": stream.epoch, "lastEventId": last + ahead}
            await stream.until('"id":2')
            assert stream.ids == list(range(last + 1))


async def test_an_epoch_of_another_connection_is_answered_with_reset(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:
        async with talking.stream() as stream:
            old = stream.epoch
            await stream.until('"id":2')
        await talking.delete()
        await talking.open()
        async with talking.stream(1, epoch=old) as stream:
            assert stream.epoch != old
            reset = await stream.next()
            assert reset is not None
            assert reset.event == "reset"
        async with talking.stream(1, epoch=stream.epoch) as stream:
            event = await stream.next()
            assert event is not None
            assert (event.event, event.id) == ("message", "2")


async def test_a_restart_of_the_server_is_no_silence(tmp_path_factory: pytest.TempPathFactory) -> None:
    with our_server(tmp_path_factory.mktemp("restart")) as server:
        async with talk(server) as talking:
            await talking.prompt("burst 50 20")
            async with talking.stream() as stream:
                await stream.until("end_turn")
            server.kill()
            server.start()
            gone = await talking.client.get(talking.path, headers={"accept": "text/event-stream"})
            assert gone.status_code == 404
            await talking.open()
            async with talking.stream(stream.ids[-1]) as again:
                reset = await again.next()
                assert reset is not None
                assert reset.event == "reset"
                event = await again.next()
                assert event is not None
                assert event.id == "1"


async def test_a_named_client_sees_its_own_answers_and_nobody_elses(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    server_id = fresh()
    async with talk(server, server_id) as unnamed:
        ann = Talk(unnamed.client, server_id, "ann")
        ann.session_id, ann.next_id = unnamed.session_id, 70
        await unnamed.prompt("echo one")
        await ann.prompt("echo two")
        await unnamed.prompt("echo three")
        async with ann.stream() as stream, unnamed.stream() as other:
            await stream.until('"id":70')
            await other.until('"id":4')
            assert [
                json.loads(event.data).get("id") for event in stream.events if b'"id":' in event.data[:30]
            ] == [70]
            assert b'"id":70' not in b"".join(event.data for event in other.events)
            assert "one" in stream.texts
            assert "two" in other.texts


async def test_two_hundred_viewers_that_vanish_leave_nothing_behind(
    server: ServerProcess, fresh: Callable[[], str]
) -> None:
    async with talk(server, fresh()) as talking:

        async def vanish() -> None:
            async with talking.stream() as stream:  # leaving it unfinished closes its socket
                await stream.next()

        async def round_of_viewers() -> int:
            async with anyio.create_task_group() as tasks:
                for _ in range(200):
                    tasks.start_soon(vanish)
            await talking.prompt("echo ring")
            return descriptors(server.pid)

        before = descriptors(server.pid)
        with anyio.fail_after(60):
            await round_of_viewers()
            memory = server.memory()
            for _ in range(3):
                await round_of_viewers()
            while descriptors(server.pid) > before + 5:  # sockets are closed as their ends are noticed
                await talking.prompt("echo ring")
        assert server.memory() - memory < 8_000_000


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def test_a_silent_stream_gets_a_comment_to_keep_it_alive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The application runs in this process, so that its constant can be another."""
    monkeypatch.setattr(bridge, "KEEPALIVE_SECONDS", 0.05)
    port = free_port()
    config = uvicorn.Config(Application(ServerConfig()), port=port, log_config=None, ws="none", lifespan="on")
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", port))
    serving = asyncio.ensure_future(server.serve([listener]))
    place = ServerProcess([], port=port, log=tmp_path / "unused")
    async with talk(place) as talking, talking.stream() as stream:
        with anyio.fail_after(20):
            comments = 0
            while comments < 3:
                comments += (await stream.raw()).startswith(b":\n\n")
    server.should_exit = True
    await serving
