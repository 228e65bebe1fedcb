"""Mirrors: each event once in the sink, over kills and restarts of either side."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import pytest

from sandbox_agent import PersistError, SandboxAgent, SQLiteSink, TurnEventData, UniversalEvent
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio

SECONDS = 90


class WatchedSink(SQLiteSink):
    """Tells when it has stored an event of a sequence or later."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reached = 0
        self.batches = 0
        self._more = anyio.Event()

    async def insert_events(self, session_id: str, events: Sequence[UniversalEvent], /) -> None:
        await super().insert_events(session_id, events)
        self.reached = events[-1].sequence
        self.batches += 1
        self._more.set()
        self._more = anyio.Event()

    async def beyond(self, sequence: int) -> None:
        while self.reached <= sequence:
            await self._more.wait()


@pytest.fixture
async def sdk(own_server: ServerProcess) -> AsyncIterator[SandboxAgent]:
    async with SandboxAgent.connect(base_url=own_server.url) as client:
        yield client


@pytest.fixture
async def sink(tmp_path: Path) -> AsyncIterator[WatchedSink]:
    async with WatchedSink(tmp_path / "mirror.db") as sink:
        yield sink


def rows(sink: SQLiteSink) -> list[tuple[int, str, str]]:
    database = sqlite3.connect(sink.path)
    try:
        return database.execute("SELECT sequence, type, time FROM agent_events ORDER BY rowid").fetchall()
    finally:
        database.close()


async def stored(sdk: SandboxAgent, name: str) -> list[tuple[int, str, str]]:
    """Return what the server has, by pages."""
    events: list[UniversalEvent] = []
    while True:
        page = await sdk.sessions.get_events(name, offset=len(events))
        events += page.events
        if not page.has_more:
            return [(event.sequence, event.type, event.time) for event in events]


@pytest.mark.soak
async def test_a_mirror_has_each_event_once_when_the_server_is_killed_again_and_again(
    own_server: ServerProcess, sdk: SandboxAgent, sink: WatchedSink
) -> None:
    await sdk.sessions.create("s", agent="mock")
    result: list[int] = []

    async def mirror() -> None:
        result.append(await sdk.sessions.mirror("s", into=sink))

    with anyio.fail_after(SECONDS):
        async with anyio.create_task_group() as group:
            group.start_soon(mirror)
            for _ in range(3):
                await sdk.sessions.post_message("s", "burst 20000 200")
                await sink.beyond(sink.reached + 20)
                await anyio.to_thread.run_sync(own_server.kill)
                await anyio.to_thread.run_sync(own_server.start)
            await sdk.sessions.terminate("s")
    truth = await stored(sdk, "s")
    assert rows(sink) == truth
    assert [sequence for sequence, *_ in truth] == list(range(1, len(truth) + 1))
    assert truth[-1][1] == "session.ended"
    assert result == [len(truth)]
    states = [turn.state for turn in (await sdk.sessions.get("s")).turns or []]
    assert len(states) == 3
    assert "interrupted" in states


async def test_a_mirror_that_was_cancelled_goes_on_where_its_sink_ends(
    sdk: SandboxAgent, sink: WatchedSink
) -> None:
    await sdk.sessions.create("s", agent="mock")
    await sdk.sessions.post_message("s", "burst 5000 100")
    with anyio.fail_after(SECONDS):
        for _ in range(3):
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: sdk.sessions.mirror("s", into=sink))
                await sink.beyond(sink.reached)
                group.cancel_scope.cancel()
        await finish(sdk, "s")
        await sdk.sessions.mirror("s", into=sink)
        # A session that has ended, and a sink that has it all.
        assert await sdk.sessions.mirror("s", into=sink) == len(rows(sink))
    assert rows(sink) == await stored(sdk, "s")
    assert rows(sink)[-1][1] == "session.ended"


async def finish(sdk: SandboxAgent, name: str) -> None:
    """End a session when its turn has ended."""
    async for event in sdk.sessions.stream_events(name):
        if event.type == "turn.ended":
            break
    await sdk.sessions.terminate(name)


async def test_what_comes_together_is_stored_together(sdk: SandboxAgent, sink: WatchedSink) -> None:
    await sdk.sessions.create("s", agent="mock")
    await sdk.sessions.post_message("s", "burst 5000 100")
    with anyio.fail_after(SECONDS):
        await finish(sdk, "s")
        last = await sdk.sessions.mirror("s", into=sink)
    assert last > 5000
    assert sink.batches * 20 < last


async def test_a_sink_may_be_any_object_with_two_plain_methods(sdk: SandboxAgent) -> None:
    class Sink:
        def __init__(self) -> None:
            self.sequences: list[int] = []

        def last_sequence(self, session_id: str, /) -> int:
            assert session_id == "s"
            return self.sequences[-1] if self.sequences else 0

        def insert_events(self, session_id: str, events: Sequence[UniversalEvent], /) -> None:
            self.sequences += [event.sequence for event in events]

    sink = Sink()
    await sdk.sessions.create("s", agent="mock")
    await sdk.sessions.terminate("s")
    with anyio.fail_after(SECONDS):
        last = await sdk.sessions.mirror("s", into=sink)
    assert sink.sequences == list(range(1, last + 1))


async def test_a_sink_that_fails_ends_the_mirror(sdk: SandboxAgent, tmp_path: Path) -> None:
    await sdk.sessions.create("s", agent="mock")
    (tmp_path / "folder").mkdir()
    async with SQLiteSink(tmp_path / "folder") as sink:
        with pytest.raises(PersistError, match="can't be opened"):
            await sdk.sessions.mirror("s", into=sink)


async def test_a_turn_that_the_server_died_under_ends_as_interrupted(
    own_server: ServerProcess, sdk: SandboxAgent
) -> None:
    await sdk.sessions.create("s", agent="mock")
    events: list[UniversalEvent] = []
    with anyio.fail_after(SECONDS):
        async for event in sdk.sessions.stream_turn("s", "sleep 600", idempotency_key="k"):
            events.append(event)
            if event.type == "turn.started":
                await anyio.to_thread.run_sync(own_server.kill)
                await anyio.to_thread.run_sync(own_server.start)
    end = events[-1].data
    assert isinstance(end, TurnEventData)
    assert end.metadata["stop_reason"] == "interrupted"
    sequences = [event.sequence for event in events]
    assert sequences == list(range(sequences[0], sequences[0] + len(events)))
    [turn] = (await sdk.sessions.get("s")).turns or []
    assert (turn.state, turn.idempotency_key) == ("interrupted", "k")


@pytest.mark.parametrize("skip_health_check", [False, True])
async def test_a_stream_outlives_a_server_that_is_stopped_and_started(
    own_server: ServerProcess, skip_health_check: bool
) -> None:
    sequences: list[int] = []
    begun = anyio.Event()

    async def read(sdk: SandboxAgent) -> None:
        async for event in sdk.sessions.stream_events("s"):
            sequences.append(event.sequence)
            begun.set()

    connecting = SandboxAgent.connect(base_url=own_server.url, skip_health_check=skip_health_check)
    async with connecting as sdk:
        await sdk.sessions.create("s", agent="mock")
        with anyio.fail_after(SECONDS):
            async with anyio.create_task_group() as group:
                group.start_soon(read, sdk)
                await begun.wait()
                await anyio.to_thread.run_sync(own_server.stop)
                # Nobody listens until it has started: the stream asks in vain meanwhile.
                await anyio.to_thread.run_sync(own_server.start)
                await sdk.sessions.terminate("s")
    assert sequences == list(range(1, len(sequences) + 1))
    assert len(sequences) > 1


async def test_a_session_goes_on_in_the_restarted_server(
    own_server: ServerProcess, sdk: SandboxAgent
) -> None:
    await sdk.sessions.create("s", agent="mock")
    with anyio.fail_after(SECONDS):
        before = [event async for event in sdk.sessions.stream_turn("s", "echo before")]
        await anyio.to_thread.run_sync(own_server.kill)
        await anyio.to_thread.run_sync(own_server.start)
        after = [event async for event in sdk.sessions.stream_turn("s", "echo after")]
    assert after[0].sequence > before[-1].sequence
    assert after[-1].type == "turn.ended"
