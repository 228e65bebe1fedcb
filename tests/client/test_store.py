"""A store that fails: told, retried in order, never twice, never dropped in silence."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import anyio
import pytest

from sandbox_agent import (
    InMemorySessionPersistDriver,
    PersistError,
    SandboxAgent,
    SessionEvent,
    SessionRecord,
)
from sandbox_agent.client import connection as connection_module
from sandbox_agent.client import journal as journal_module
from sandbox_agent.client.journal import EventIds, Journal
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.persist.base import UNFENCED
from tests.client.checks import all_events, journal_of, methods, sent_prompts, until
from tests.support.servers import ServerProcess

pytestmark = pytest.mark.anyio


class FailingDriver(InMemorySessionPersistDriver):
    """The in-memory driver with a switch, as a full disk has."""

    def __init__(self) -> None:
        super().__init__(max_events_per_session=100_000)
        self.failing = False
        self.appends = 0
        self.fail_after_storing = False
        self.gate: asyncio.Event | None = None

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        self.appends += 1
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            raise OSError("No space left on device")
        await super().append_events(session_id, events, generation=generation)
        if self.fail_after_storing:
            raise OSError("the connection broke after the commit")

    async def update_session(self, session: SessionRecord, /) -> None:
        if self.failing:
            raise OSError("No space left on device")
        await super().update_session(session)


class RecordFailingDriver(InMemorySessionPersistDriver):
    """Stores events and, while failing, no records."""

    failing = False

    async def update_session(self, session: SessionRecord, /) -> None:
        if self.failing:
            raise OSError("No space left on device")
        await super().update_session(session)


async def test_a_failing_store_fails_the_prompt_and_nothing_is_lost(shared_server: ServerProcess) -> None:
    driver = FailingDriver()
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="mock")
        told: list[SessionEvent] = []
        session.on_event(told.append)
        driver.failing = True
        with pytest.raises(PersistError, match="No space left") as caught:
            await session.prompt("burst 100 10")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.session_id == session.id
        assert [event.event_index for event in told] == [0]
        assert told[0].payload["method"] == "_sandbox_agent/persist_failed"
        driver.failing = False
        assert (await session.prompt("echo again")).stop_reason == "end_turn"
        events = await all_events(sdk, session)
        assert len(sent_prompts(events)) == 2
        assert [event.event_index for event in told[1:]] == list(range(3, len(events) + 1))
        assert methods(events).count("result") == 3


async def test_an_append_that_failed_after_storing_is_not_stored_twice(
    shared_server: ServerProcess,
) -> None:
    driver = FailingDriver()
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="mock")
        driver.fail_after_storing = True
        with pytest.raises(PersistError):
            await session.prompt("echo hello")
        driver.fail_after_storing = False
        await session.prompt("echo again")
        assert len(sent_prompts(await all_events(sdk, session))) == 2


async def test_dispose_stores_what_is_left(shared_server: ServerProcess) -> None:
    driver = FailingDriver()
    sdk = await SandboxAgent.connect(base_url=shared_server.url, persist=driver)
    session = await sdk.create_session(agent="mock")
    driver.failing = True
    with pytest.raises(PersistError):
        await session.prompt("burst 100 10")
    driver.failing = False
    await sdk.dispose()
    assert methods(await all_events(sdk, session)).count("session/update") == 100


async def test_dispose_raises_when_it_could_not_store(shared_server: ServerProcess) -> None:
    driver = FailingDriver()
    sdk = await SandboxAgent.connect(base_url=shared_server.url, persist=driver)
    session = await sdk.create_session(agent="mock")
    driver.failing = True
    with pytest.raises(PersistError):
        await session.prompt("echo hello")
    with pytest.raises(PersistError, match="No space left"):
        await sdk.dispose()


async def test_a_store_that_fails_at_creation_fails_it(shared_server: ServerProcess) -> None:
    driver = FailingDriver()
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        driver.failing = True
        with pytest.raises(PersistError):
            await sdk.create_session(agent="mock")
        driver.failing = False


async def test_a_store_that_is_slower_than_the_answer_keeps_it_behind_its_updates(
    shared_server: ServerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "COMPLETE_FEED_SILENCE", 0.5)
    monkeypatch.setattr(journal_module, "MAX_PENDING_EVENTS", 10)
    driver = FailingDriver()
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="mock")
        driver.gate = asyncio.Event()
        with anyio.fail_after(20):
            turn = asyncio.create_task(session.prompt("burst 20000 200"))
            await until(lambda: journal_of(session).over_limit)
            asyncio.get_running_loop().call_later(1.5, driver.gate.set)
            await turn
        kinds = methods(await all_events(sdk, session))
        assert kinds.count("session/update") == 20_000
        assert kinds[-1] == "result"


async def test_a_slow_store_holds_the_feed_back_and_keeps_everything(shared_server: ServerProcess) -> None:
    driver = FailingDriver()
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="mock")
        driver.gate = asyncio.Event()
        with anyio.fail_after(20):
            turn = asyncio.create_task(session.prompt("burst 60000 200"))
            await until(lambda: journal_of(session).over_limit)
            driver.gate.set()
            await turn
        assert methods(await all_events(sdk, session)).count("session/update") == 60_000


def _record() -> SessionRecord:
    return SessionRecord(id="s", agent="mock", agent_session_id="a", last_connection_id="c", created_at=1)


async def _journal(driver: FailingDriver) -> tuple[Journal, TaskOwner]:
    tasks = TaskOwner()
    await tasks.start()
    return Journal(_record(), driver, tasks, EventIds()), tasks


async def test_events_that_wait_are_appended_as_one_batch() -> None:
    driver = FailingDriver()
    journal, tasks = await _journal(driver)
    for number in range(500):
        journal.append("agent", [b'{"method":"n","params":%d}' % number], "c")
    await journal.flush()
    assert driver.appends == 1
    assert await driver.last_event_index("s") == 500
    await tasks.stop()


async def test_events_beyond_the_bound_are_counted_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_module, "MAX_UNSTORED_EVENTS", 10)
    driver = FailingDriver()
    journal, tasks = await _journal(driver)
    driver.failing = True
    with caplog.at_level(logging.CRITICAL):
        for number in range(15):
            journal.append("agent", [b'{"method":"n","params":%d}' % number], "c")
            with pytest.raises(PersistError):
                await journal.flush()
        with pytest.raises(PersistError, match=r"5 more event.s. are lost"):
            await journal.flush()
    driver.failing = False
    await journal.flush()
    await journal.flush()
    page = await driver.list_events("s")
    assert [event.payload["params"] for event in page.items[:10]] == list(range(10))
    (lost,) = page.items[10:]
    assert lost.payload["method"] == "_sandbox_agent/events_lost"
    assert lost.payload["params"]["count"] == 5
    await tasks.stop()


async def test_a_flush_of_nothing_returns_at_once() -> None:
    journal, tasks = await _journal(FailingDriver())
    with anyio.fail_after(1):
        await journal.flush()
    await tasks.stop()


async def test_nothing_is_stored_while_a_journal_is_held() -> None:
    driver = FailingDriver()
    journal, tasks = await _journal(driver)
    journal.hold()
    journal.append("client", [b"{}"], "c")
    journal.change(agent_session_id="b")
    for _ in range(5):
        await asyncio.sleep(0)
    assert driver.appends == 0
    journal.release()
    await journal.flush()
    assert await driver.last_event_index("s") == 1
    stored = await driver.get_session("s")
    assert stored is not None
    assert stored.agent_session_id == "b"
    await tasks.stop()


async def test_events_are_stored_once_when_only_the_record_fails(shared_server: ServerProcess) -> None:
    # Its bound is below the turn, so that it does not know the ids that come again.
    driver = RecordFailingDriver(max_events_per_session=10)
    async with SandboxAgent.connect(base_url=shared_server.url, persist=driver) as sdk:
        session = await sdk.create_session(agent="mock")
        told: list[int] = []
        session.on_event(lambda event: told.append(event.event_index))
        driver.failing = True
        with pytest.raises(PersistError):
            await session.set_model("mock-fast")
        with pytest.raises(PersistError):
            await session.prompt("burst 100 10")
        driver.failing = False
        await session.prompt("echo hi")
        last = await driver.last_event_index(session.id)
        assert [index for index in told if index] == list(range(3, last + 1))
        stored = await driver.get_session(session.id)
        assert stored is not None
        assert stored == session.record
