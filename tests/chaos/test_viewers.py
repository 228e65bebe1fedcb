"""Viewers that never read, that all come back at once, and that ask for what can't be."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx2
import pytest

from sandbox_agent.engine.sse import SseDecoder, SseEvent
from tests.chaos.chats import Chat
from tests.server.talk import client_of
from tests.support.effort import repeats
from tests.support.servers import ServerProcess, our_server

pytestmark = pytest.mark.anyio

SECONDS = 90
EVENTS = repeats(30_000, 100_000)
VIEWERS = repeats(300, 1_000)


@pytest.fixture(scope="module", autouse=True)
def many_files() -> Generator[None]:
    """Let this process and its servers have as many sockets as they may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def server(tmp_path: Path) -> Generator[ServerProcess]:
    with our_server(tmp_path, "--store", f"sqlite:{tmp_path}/store.db") as running:
        yield running


class SocketViewer:
    """A viewer that reads only when it is told to; the kernel holds little for it."""

    def __init__(self, server: ServerProcess, path: str, after: int = 0) -> None:
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.connect(("127.0.0.1", server.port))
        # HTTP/1.0 has no chunks
        request = f"GET {path}/events/sse HTTP/1.0\r\nHost: localhost\r\nLast-Event-ID: {after}\r\n\r\n"
        self._socket.sendall(request.encode())
        self._socket.setblocking(False)
        self._head = b""
        self._decoder: SseDecoder | None = None
        self.ids: list[int] = []

    async def read_up_to(self, last: int) -> None:
        """Read until the event of that sequence is there."""
        while not self.ids or self.ids[-1] < last:
            await anyio.wait_readable(self._socket)
            data = self._socket.recv(1 << 20)
            assert data, f"the stream ended at {self.ids[-1:]}"
            for event in self._feed(data):
                assert event.event == "message", event
                self.ids.append(int(event.id or 0))

    def _feed(self, data: bytes) -> list[SseEvent]:
        if self._decoder is None:
            self._head += data
            head, found, data = self._head.partition(b"\r\n\r\n")
            if not found:
                return []
            assert b" 200 " in head.split(b"\r\n")[0]
            self._decoder = SseDecoder()
        return self._decoder.feed(data)

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def chatting(server: ServerProcess) -> AsyncGenerator[Chat]:
    async with client_of(server) as client:
        chat = Chat(client, "watched")
        await chat.create()
        yield chat


@pytest.mark.soak
@pytest.mark.loops
async def test_a_viewer_that_never_reads_costs_nothing_and_then_reads_all(server: ServerProcess) -> None:
    async with chatting(server) as chat:
        behind = 0
        for _ in range(3):  # what such turns leave in memory while no viewer stalls
            with anyio.fail_after(SECONDS):
                async with chat.stream(after=behind) as awake:
                    await chat.say(f"burst {EVENTS} 100")
                    behind += len(await awake.until("turn.ended"))
        before = server.memory()
        asleep = SocketViewer(server, chat.path)
        with anyio.fail_after(SECONDS):
            async with chat.stream(after=behind) as awake:
                await chat.say(f"burst {EVENTS} 100")
                seen = len(await awake.until("turn.ended"))
            grown = server.memory() - before
            assert seen > EVENTS
            # the events are 30 MB
            assert grown < 15_000_000, f"{grown / 1e6:.1f} MB"
            last = (await chat.info())["eventCount"]
            assert last == behind + seen
            assert asleep.ids == []
            await asleep.read_up_to(last)
        asleep.close()
        assert asleep.ids == list(range(1, last + 1))


@pytest.mark.loops
@pytest.mark.soak
async def test_a_thousand_viewers_that_come_back_at_once_get_exactly_the_rest(server: ServerProcess) -> None:
    async with chatting(server) as chat:
        await chat.turn("burst 1000 100")
        truth = [event["sequence"] for event in await chat.events()]
        with anyio.fail_after(SECONDS):
            # spread over the log, some at its end; all wait for what comes next too
            starts = [number * len(truth) // (VIEWERS - 10) for number in range(VIEWERS)]
            starts = [min(start, len(truth)) for start in starts]
            viewers = [SocketViewer(server, chat.path, start) for start in starts]
            events = await chat.turn("echo news")
            last = events[-1]["sequence"]
            async with anyio.create_task_group() as tasks:
                for viewer in viewers:
                    tasks.start_soon(viewer.read_up_to, last)
            for viewer, start in zip(viewers, starts, strict=True):
                assert viewer.ids == list(range(start + 1, last + 1))
                viewer.close()
            # they are all gone again
            assert (await chat.turn("echo after"))[-1]["type"] == "turn.ended"


async def first(chat: Chat, header: str) -> tuple[int, list[SseEvent]]:
    """Ask with a Last-Event-ID and return the status and the first events of the stream."""
    headers = {b"last-event-id": header.encode()}
    async with chat.client.stream("GET", f"{chat.path}/events/sse", headers=headers) as response:
        if response.status_code != 200:
            await response.aread()
            return response.status_code, []
        decoder = SseDecoder()
        events: list[SseEvent] = []
        async for data in response.aiter_bytes():
            events += decoder.feed(data)
            if events:
                break
        return 200, events


@pytest.mark.parametrize(
    "absurd",
    [
        "-1",
        "1.5",
        "1e3",
        "NaN",
        "null",
        "0x10",
        "+1",
        "1 2",
        "one",
        "9" * 30,
        str(2**63),
        "\u0661",
        "%00",
    ],
)
async def test_an_absurd_id_is_refused_and_hurts_nobody(shared: ServerProcess, absurd: str) -> None:
    async with client_of(shared) as client:
        chat = Chat(client, "asked")
        with anyio.fail_after(30):
            assert await first(chat, absurd) == (400, [])
            assert (await chat.info())["eventCount"] > 0


async def test_a_stale_id_is_told_by_a_reset_and_the_whole_log(server: ServerProcess) -> None:
    async with chatting(server) as chat:
        with anyio.fail_after(30):
            await chat.turn("burst 500 10")
            former = (await chat.info())["eventCount"]
            assert (await chat.client.delete(chat.path)).is_success
            await chat.create()
            await chat.turn("echo anew")
            last = (await chat.info())["eventCount"]
            for stale in (former, last + 1, 2**63 - 1):
                _, events = await first(chat, str(stale))
                assert (events[0].event, events[0].id) == ("reset", "0")
                told = json.loads(events[0].data)
                assert (told["lastEventId"], told["lastSequence"]) == (stale, last)
                viewer = SocketViewer(server, chat.path, stale)
                with pytest.raises(AssertionError, match="reset"):
                    await viewer.read_up_to(last)
                viewer.close()
                page = await chat.client.get(f"{chat.path}/events", params={"offset": stale})
                assert page.status_code == 410
            async with chat.stream(after=last) as stream:  # the newest id there is: nothing to tell, yet
                await chat.say("echo next")
                assert (await stream.until("turn.ended"))[0]["sequence"] == last + 1


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Generator[ServerProcess]:
    """A server with a session that nobody changes."""
    folder = tmp_path_factory.mktemp("server")
    with our_server(folder, "--store", f"sqlite:{folder}/store.db") as running:
        response = httpx2.post(f"{running.url}/v1/sessions/asked", json={"agent": "mock"})
        assert response.status_code == 200
        yield running
