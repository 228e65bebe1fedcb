"""A client that only reads a session receives what another process stores, and leaves its turn alone."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from sandbox_agent import SandboxAgent, SandboxAgentError, SessionEvent, SessionFencedError
from tests.client.checks import all_events, until
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio

STORES = ["sqlite", "postgres", "redis"]


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that two clients open, each with a driver of its own."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'shared.db'}"
    url: str = request.getfixturevalue("postgres_dsn" if request.param == "postgres" else "redis_url")
    return url


@pytest.mark.parametrize("store", STORES, indirect=True)
@pytest.mark.parametrize("how", ["get_session", "read_only"])
async def test_a_viewer_receives_the_events_of_another_process(
    shared_server: ServerProcess, store: str, how: str
) -> None:
    with anyio.fail_after(60):
        async with (
            SandboxAgent.connect(base_url=shared_server.url, persist=store) as writer,
            SandboxAgent.connect(base_url=shared_server.url, persist=store) as reader,
        ):
            session = await writer.create_session(agent="mock", cwd="/tmp")
            await session.prompt("echo one")
            stored = await all_events(writer, session)
            if how == "get_session":
                seen = await reader.get_session(session.id)
                assert seen is not None
            else:
                seen = await reader.resume_session(session.id, read_only=True)
            heard: list[SessionEvent] = []
            viewed: list[SessionEvent] = []
            seen.on_event(heard.append)

            async def view() -> None:
                async for event in seen.events():
                    viewed.append(event)
                    if "stopReason" in str(event.payload.get("result")) and len(viewed) > len(stored):
                        return

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(view)
                assert (await session.prompt("stream 100 5")).stop_reason == "end_turn"
            events = await all_events(writer, session)
            assert [event.id for event in viewed] == [event.id for event in events]
            live = [event.id for event in events[len(stored) :]]
            assert [event.id for event in heard] == live[len(live) - len(heard) :]
            assert len(heard) > 90  # the listener was registered before the turn, the store was asked after


@pytest.mark.parametrize("store", STORES, indirect=True)
async def test_a_reader_that_becomes_the_writer_receives_each_event_once(
    shared_server: ServerProcess, store: str
) -> None:
    with anyio.fail_after(60):
        async with (
            SandboxAgent.connect(base_url=shared_server.url, persist=store) as first,
            SandboxAgent.connect(base_url=shared_server.url, persist=store) as second,
        ):
            session = await first.create_session(agent="mock", cwd="/tmp")
            seen = await second.get_session(session.id)
            assert seen is not None
            both: list[tuple[str, int]] = []
            session.on_event(lambda event: both.append(("first", event.event_index)))
            heard = anyio.Event()

            def listen(event: SessionEvent) -> None:
                both.append(("second", event.event_index))
                heard.set()

            seen.on_event(listen)
            while not heard.is_set():
                await session.prompt("echo one")
                await anyio.sleep(0.01)
            taken = await second.resume_session(session.id, take_over=True)
            assert taken is seen
            await taken.prompt("stream 50 2")
            with pytest.raises(SessionFencedError):
                await session.prompt("echo never")
            await taken.prompt("echo the end")
            last = (await all_events(second, taken))[-1].event_index
            await until(lambda: ("first", last) in both)
    for name in ("first", "second"):
        indexes = [index for who, index in both if who == name and index]
        assert indexes == list(range(indexes[0], last + 1)), name


async def test_a_read_only_handle_changes_nothing(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    seen = await sdk.resume_session(session.id, read_only=True)
    with pytest.raises(SandboxAgentError, match="read_only=True"):
        await seen.prompt("echo one")
    with pytest.raises(SandboxAgentError, match="read_only=True"):
        await seen.set_mode("plan")
    with pytest.raises(SandboxAgentError, match="read_only=True"):
        await seen.cancel()
    with pytest.raises(SandboxAgentError, match="read_only=True"):
        seen.permission_policy = "allow"
    assert (await session.prompt("echo one")).stop_reason == "end_turn"
