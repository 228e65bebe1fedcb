"""One session, two writers: the later claim wins, the earlier writer is told so, nothing is interleaved."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent import SandboxAgent, SessionEvent, SessionFencedError, SQLiteSessionPersistDriver
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
        taken = await second.resume_session(session.id)
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
        taken = await second.resume_session(session.id)
        await taken.prompt("echo two")
        with pytest.raises(SessionFencedError):
            await session.prompt("echo never")
        again = await first.resume_session(session.id)
        await again.prompt("echo three")
        with pytest.raises(SessionFencedError):
            await taken.prompt("echo never")
        events = await history(first, session.id)
        assert prompts(events) == ["echo one", "echo two", "echo three"]
        assert "never" not in json.dumps([event.payload for event in events])


async def test_what_a_replaced_writers_agent_says_is_never_stored(client: Client) -> None:
    with anyio.fail_after(40):
        async with client() as first, client() as second:
            session = await first.create_session(agent="mock", cwd="/tmp")
            speaks, is_refused = anyio.Event(), anyio.Event()

            def listen(event: SessionEvent) -> None:
                if b"agent_message_chunk" in event.payload_json:
                    speaks.set()
                if b"persist_failed" in event.payload_json:
                    is_refused.set()

            session.on_event(listen)
            refused: list[str] = []

            async def speak() -> None:
                with pytest.raises(SessionFencedError):
                    await session.prompt("stream 2000 50")
                refused.append("stream")

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(speak)
                await speaks.wait()
                taken = await second.resume_session(session.id)
                await taken.prompt("echo two")
                await is_refused.wait()
                assert await first.resume_session(session.id) is session
            assert refused
            theirs = len(await history(second, session.id))
            await session.prompt("echo three")
            events = await history(first, session.id)
            assert prompts(events) == ["stream 2000 50", "echo two", "echo three"]
            said = [
                str(event.payload["params"]["update"]["content"]["text"])
                for event in events[theirs:]
                if b"agent_message_chunk" in event.payload_json
            ]
            assert said == ["three"]
            (lost,) = [event.payload["params"] for event in events if b"events_lost" in event.payload_json]
            assert lost["count"] > 0
            assert lost["reason"] == "another process had the session"


async def test_two_that_resume_at_once_leave_one_history(client: Client) -> None:
    async with client() as first, client() as second:
        made = await first.create_session(agent="mock", cwd="/tmp")
        await made.prompt("echo one")
        session_id = made.id
        async with client() as third:
            outcomes: dict[str, bool] = {}

            async def go_on(name: str, sdk: SandboxAgent) -> None:
                try:
                    session = await sdk.resume_session(session_id)
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
