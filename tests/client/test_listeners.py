"""Event listeners: functions, coroutine functions, ones that raise or unsubscribe."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from sandbox_agent import InMemorySessionPersistDriver, SandboxAgent, SessionEvent, SessionRecord
from sandbox_agent.client.journal import EventIds, Journal
from sandbox_agent.client.tasks import TaskOwner
from tests.client.checks import methods, said, until

pytestmark = pytest.mark.anyio


async def test_a_function_has_seen_every_event_when_prompt_returns(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    seen: list[SessionEvent] = []
    session.on_event(seen.append)
    await session.prompt("echo hello")
    assert said(seen) == "hello"
    assert methods(seen)[-1] == "result"


async def test_a_coroutine_function_is_awaited_in_order_and_may_use_the_session(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    seen: list[int] = []
    done = asyncio.Event()

    async def listener(event: SessionEvent) -> None:
        if not seen:
            await session.set_mode("plan")
        seen.append(event.event_index)
        if b'"stopReason"' in event.payload_json:
            done.set()

    session.on_event(listener)
    with anyio.fail_after(10):
        await session.prompt("burst 50 10")
        await done.wait()
    assert seen == sorted(seen)
    assert len(seen) >= 52


async def test_a_function_that_returns_an_awaitable_has_it_awaited(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    done = asyncio.Event()

    async def finish() -> None:
        done.set()

    session.on_event(lambda _event: finish())
    with anyio.fail_after(10):
        await session.prompt("echo hello")
        await done.wait()


async def test_a_listener_that_raises_stops_nothing(
    sdk: SandboxAgent, caplog: pytest.LogCaptureFixture
) -> None:
    session = await sdk.create_session(agent="mock")
    seen: list[SessionEvent] = []

    def broken(_event: SessionEvent) -> None:
        raise RuntimeError("broken listener")

    async def broken_too(_event: SessionEvent) -> None:
        raise RuntimeError("broken coroutine")

    session.on_event(broken)
    session.on_event(broken_too)
    session.on_event(seen.append)
    with anyio.fail_after(10):
        await session.prompt("echo hello")
        await until(lambda: "broken coroutine" in caplog.text)
    assert said(seen) == "hello"
    assert "broken listener" in caplog.text


async def test_who_unsubscribed_hears_nothing(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    seen: list[SessionEvent] = []

    async def listener(event: SessionEvent) -> None:
        seen.append(event)

    unsubscribe = session.on_event(seen.append)
    unsubscribe_too = session.on_event(listener)
    unsubscribe()
    unsubscribe_too()
    unsubscribe()
    await session.prompt("echo hello")
    assert seen == []


async def test_an_event_of_a_batch_reaches_no_listener_that_unsubscribed_in_it() -> None:
    heard: list[SessionEvent] = []
    owner = TaskOwner()
    await owner.start()
    record = SessionRecord(id="s", agent="a", agent_session_id="x", last_connection_id="c", created_at=1)
    journal = Journal(record, InMemorySessionPersistDriver(), owner, EventIds())

    def once(event: SessionEvent) -> None:
        heard.append(event)
        unsubscribe()

    unsubscribe = journal.listen(once)
    journal.append("agent", [b"{}", b"{}", b"{}"], "c")
    await journal.flush()
    await owner.stop()
    assert len(heard) == 1
