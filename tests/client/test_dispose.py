"""The end of a client: from anywhere, in the middle of anything, and what can be done after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import anyio
import pytest

from sandbox_agent import (
    InMemorySessionPersistDriver,
    PersistError,
    SandboxAgent,
    SandboxAgentError,
    Session,
    SessionEvent,
    SessionNotFoundError,
)
from sandbox_agent.client import journal as journal_module
from sandbox_agent.persist.base import UNFENCED
from tests.client.checks import journal_of, until
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio


class StuckDriver(InMemorySessionPersistDriver):
    """The in-memory driver that stops to answer, as a store behind a dead network does."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = False

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        if self.stuck:
            await asyncio.Event().wait()
        await super().append_events(session_id, events, generation=generation)


async def test_a_coroutine_listener_sees_every_event_before_dispose_returns(
    shared_server: ServerProcess,
) -> None:
    seen: list[int] = []

    async def listener(event: SessionEvent) -> None:
        await asyncio.sleep(0)
        seen.append(event.event_index)

    with anyio.fail_after(10):
        async with SandboxAgent.connect(base_url=shared_server.url) as sdk:
            session = await sdk.create_session(agent="mock")
            session.on_event(listener)
            await session.prompt("burst 50 10")
            last = await sdk.persist.last_event_index(session.id)
    assert seen == list(range(3, last + 1))


async def test_a_listener_that_hangs_holds_dispose_up_for_a_bounded_time(
    shared_server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "LISTENER_TIMEOUT", 0.05)
    ended = asyncio.Event()

    async def listener(event: SessionEvent) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with anyio.fail_after(10):
        async with SandboxAgent.connect(base_url=shared_server.url) as sdk:
            session = await sdk.create_session(agent="mock")
            session.on_event(listener)
            await session.prompt("echo hi")
    assert ended.is_set()


async def test_a_listener_may_dispose_the_client(shared_server: ServerProcess) -> None:
    sdk = await SandboxAgent.connect(base_url=shared_server.url)
    session = await sdk.create_session(agent="mock")
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def listener(event: SessionEvent) -> None:
        if not done.done():
            await sdk.dispose()
            await asyncio.sleep(0)
            done.set_result(None)

    session.on_event(listener)
    with anyio.fail_after(4):
        with pytest.raises(SandboxAgentError):
            await session.prompt("sleep 5")
        await done
        await sdk.dispose()


async def test_a_second_dispose_waits_for_the_first(shared_server: ServerProcess) -> None:
    sdk = await SandboxAgent.connect(base_url=shared_server.url)
    await sdk.create_session(agent="mock")
    first = asyncio.create_task(sdk.dispose())
    await asyncio.sleep(0)
    with anyio.fail_after(10):
        await sdk.dispose()
    assert first.done()


async def test_turns_end_when_the_client_is_disposed_under_them(shared_server: ServerProcess) -> None:
    sdk = await SandboxAgent.connect(base_url=shared_server.url)
    session = await sdk.create_session(agent="mock")
    other = await sdk.create_session(agent="mock")
    streaming = session.stream("sleep 5")
    await anext(streaming)
    prompting = asyncio.create_task(other.prompt("sleep 5"))
    await anext(other.events(after=2))
    with anyio.fail_after(4):
        await sdk.dispose()
        with pytest.raises(SandboxAgentError):
            _ = [event async for event in streaming]
        with pytest.raises(SandboxAgentError):
            await prompting


async def test_a_prompt_does_not_wait_for_a_store_that_the_client_gave_up(
    shared_server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "FLUSH_TIMEOUT", 0.05)
    driver = StuckDriver()
    sdk = await SandboxAgent.connect(base_url=shared_server.url, persist=driver)
    sessions = [await sdk.create_session(agent="mock") for _ in range(20)]
    driver.stuck = True
    turns = [asyncio.create_task(session.prompt("echo hi")) for session in sessions]
    with anyio.fail_after(5):
        await until(lambda: all(journal_of(session).dirty for session in sessions))
        with pytest.raises(PersistError, match="took more than"):
            await sdk.dispose()
        for turn in turns:
            with pytest.raises(SandboxAgentError):
                await turn


Use = Callable[[SandboxAgent, Session], Awaitable[object]]
AFTER: dict[str, Use] = {
    "create": lambda sdk, _: sdk.create_session(agent="mock"),
    "resume": lambda sdk, session: sdk.resume_session(session.id),
    "destroy": lambda sdk, session: sdk.destroy_session(session.id),
    "list agents": lambda sdk, _: sdk.list_agents(),
    "health": lambda sdk, _: sdk.get_health(),
    "prompt": lambda _, session: session.prompt("echo hi"),
    "stream": lambda _, session: anext(session.stream("echo hi")),
    "set model": lambda _, session: session.set_model("mock-fast"),
    "notify": lambda _, session: session.raw_send("x/y", notification=True),
}


@pytest.mark.parametrize("use", AFTER)
async def test_a_client_that_was_disposed_refuses_to(shared_server: ServerProcess, use: str) -> None:
    sdk = await SandboxAgent.connect(base_url=shared_server.url)
    session = await sdk.create_session(agent="mock")
    await sdk.dispose()
    with anyio.fail_after(5), pytest.raises(SandboxAgentError, match="is disposed"):
        await AFTER[use](sdk, session)


async def test_the_history_can_be_read_after_dispose(shared_server: ServerProcess) -> None:
    sdk = await SandboxAgent.connect(base_url=shared_server.url)
    session = await sdk.create_session(agent="mock")
    await session.prompt("echo hi")
    await sdk.dispose()
    with anyio.fail_after(5):
        stored = (await sdk.get_events(session_id=session.id)).items
        assert [event async for event in session.events()] == stored
        assert await sdk.get_session(session.id) is session


async def test_a_deleted_session_can_not_be_used(sdk: SandboxAgent) -> None:
    session = await sdk.create_session(agent="mock")
    await sdk.delete_session(session.id)
    with anyio.fail_after(5):
        with pytest.raises(SessionNotFoundError):
            await session.prompt("echo hi")
        assert [event async for event in session.events()] == []


async def test_turns_that_wait_for_a_lost_server_end_when_the_client_is_disposed(
    own_server: ServerProcess,
) -> None:
    sdk = await SandboxAgent.connect(base_url=own_server.url)
    session = await sdk.create_session(agent="mock")
    other = await sdk.create_session(agent="mock")
    own_server.kill()
    streaming = session.stream("echo one")

    async def stream() -> list[SessionEvent]:
        return [event async for event in streaming]

    turns = [asyncio.create_task(stream()), asyncio.create_task(other.prompt("echo two"))]
    with anyio.fail_after(5):
        await anext(session.events(after=2))
        await anext(other.events(after=2))
        await sdk.dispose()
        for turn in turns:
            with pytest.raises(SandboxAgentError):
                await turn


async def test_a_dispose_that_is_cut_short_leaves_no_turn_waiting(own_server: ServerProcess) -> None:
    sdk = await SandboxAgent.connect(base_url=own_server.url)
    session = await sdk.create_session(agent="mock")
    turn = asyncio.create_task(session.prompt("sleep 5"))
    await anext(session.events(after=2))
    disposing = asyncio.create_task(sdk.dispose())
    await asyncio.sleep(0)
    disposing.cancel()
    with anyio.fail_after(4):
        with pytest.raises(asyncio.CancelledError):
            await disposing
        with pytest.raises(SandboxAgentError):
            await turn


def test_a_client_of_another_event_loop_says_so(shared_server: ServerProcess) -> None:
    async def connect() -> SandboxAgent:
        sdk = await SandboxAgent.connect(base_url=shared_server.url)
        await sdk.get_health()
        return sdk

    async def use(sdk: SandboxAgent) -> None:
        for call in (sdk.list_agents, sdk.dispose):
            with anyio.fail_after(5), pytest.raises(SandboxAgentError, match="another event loop"):
                await call()

    with asyncio.Runner() as first:
        sdk = first.run(connect())
        with asyncio.Runner() as second:
            second.run(use(sdk))
        first.run(sdk.dispose())


def test_a_client_whose_event_loop_ended_is_disposed(shared_server: ServerProcess) -> None:
    async def connect() -> SandboxAgent:
        return await SandboxAgent.connect(base_url=shared_server.url, skip_health_check=True)

    async def use(sdk: SandboxAgent) -> None:
        async with sdk:
            with pytest.raises(SandboxAgentError, match="an event loop that has ended"):
                await sdk.list_agents()

    asyncio.run(use(asyncio.run(connect())))
