"""One session, two writers: the later claim wins, the earlier writer is told so, nothing is interleaved."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent import (
    SandboxAgent,
    SessionBusyError,
    SessionEvent,
    SessionFencedError,
    SQLiteSessionPersistDriver,
)
from sandbox_agent.wire.records import RESTORED_METHOD
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio

Client = Callable[[], AbstractAsyncContextManager[SandboxAgent]]


@pytest.fixture
def client(shared_server: ServerProcess, tmp_path: Path) -> Client:
    """A client with a driver object of its own on the one file, as another process would have."""

    @asynccontextmanager
    async def open_client() -> AsyncGenerator[SandboxAgent]:
        driver = SQLiteSessionPersistDriver(tmp_path / "shared.db")
        try:
            sdk = await SandboxAgent.connect(base_url=shared_server.url, persist=driver)
            try:
                yield sdk
            finally:
                # What a replaced writer could not store is told once more at its end.
                with contextlib.suppress(SessionFencedError):
                    await sdk.dispose()
        finally:
            await driver.close()

    return open_client


async def history(sdk: SandboxAgent, session_id: str) -> list[SessionEvent]:
    """Return all stored events."""
    page = await sdk.get_events(session_id=session_id, limit=10_000)
    return page.items


def prompts(events: list[SessionEvent]) -> list[str]:
    """Return what the user said, in order."""
    said: list[dict[str, Any]] = [event.payload for event in events]
    return [each["params"]["prompt"][-1]["text"] for each in said if each.get("method") == "session/prompt"]


async def test_a_writer_that_was_replaced_is_told_before_its_prompt_is_sent(client: Client) -> None:
    async with client() as first, client() as second:
        session = await first.create_session(agent="mock", cwd="/tmp")
        await session.prompt("echo one")
        taken = await second.resume_session(session.id, take_over=True)
        await taken.prompt("echo two")
        with pytest.raises(SessionFencedError, match="taken over by another process"):
            await session.prompt("echo never")
        await taken.prompt("echo three")
        events = await history(second, session.id)
        assert prompts(events) == ["echo one", "echo two", "echo three"]
        assert [event.event_index for event in events] == list(range(1, len(events) + 1))


async def test_resume_takes_the_session_back(client: Client) -> None:
    async with client() as first, client() as second:
        session = await first.create_session(agent="mock", cwd="/tmp")
        await session.prompt("echo one")
        taken = await second.resume_session(session.id, take_over=True)
        await taken.prompt("echo two")
        with pytest.raises(SessionFencedError):
            await session.prompt("echo never")
        again = await first.resume_session(session.id, take_over=True)
        await again.prompt("echo three")
        with pytest.raises(SessionFencedError):
            await taken.prompt("echo never")
        events = await history(first, session.id)
        assert prompts(events) == ["echo one", "echo two", "echo three"]
        assert "never" not in json.dumps([event.payload for event in events])


async def test_the_turn_of_a_replaced_writer_goes_on_for_the_other_one(client: Client) -> None:
    with anyio.fail_after(40):
        async with client() as first, client() as second:
            session = await first.create_session(agent="mock", cwd="/tmp")
            speaks = anyio.Event()
            session.on_event(lambda event: b"agent_message_chunk" in event.payload_json and speaks.set())
            refused: list[str] = []

            async def speak() -> None:
                with pytest.raises(SessionFencedError):
                    await session.prompt("stream 300 10")
                refused.append("stream")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(speak)
                await speaks.wait()
                with pytest.raises(SessionBusyError, match=rf"process {os.getpid()} on "):
                    await second.resume_session(session.id)
                taken = await second.resume_session(session.id, take_over=True)
                assert taken.turn is not None
                assert (await taken.turn).stop_reason == "end_turn"
                await taken.prompt("echo two")
            assert refused
            assert await first.resume_session(session.id, take_over=True) is session
            await session.prompt("echo three")
            events = await history(first, session.id)
            assert prompts(events) == ["stream 300 10", "echo two", "echo three"]
            chunks = [event for event in events if b"agent_message_chunk" in event.payload_json]
            assert len(chunks) == 300 + 2
            assert len({event.id for event in events}) == len(events)
            assert not any(b"events_lost" in event.payload_json for event in events)
            assert not any(RESTORED_METHOD in str(event.payload) for event in events)


async def test_two_that_resume_at_once_leave_one_history(client: Client) -> None:
    async with client() as first, client() as second:
        made = await first.create_session(agent="mock", cwd="/tmp")
        await made.prompt("echo one")
        session_id = made.id
        async with client() as third:
            outcomes: dict[str, bool] = {}

            async def go_on(name: str, sdk: SandboxAgent) -> None:
                try:
                    session = await sdk.resume_session(session_id, take_over=True)
                    await session.prompt(f"echo {name}")
                    outcomes[name] = True
                except SessionFencedError:
                    outcomes[name] = False

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(go_on, "second", second)
                tasks.start_soon(go_on, "third", third)
            # Whoever claimed last was refused nothing; the other one may have been done before.
            assert any(outcomes.values())
            events = await history(third, session_id)
            assert [event.event_index for event in events] == list(range(1, len(events) + 1))
            assert len({event.id for event in events}) == len(events)
            said = prompts(events)
            for name, kept in outcomes.items():
                assert not kept or f"echo {name}" in said
