"""Sessions in an actor's state: plain JSON, saved before it is acknowledged, as it was when saving failed."""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

import anyio
import pytest
from hypothesis import settings

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.actor import RivetSessionPersistDriver, StateSessionPersistDriver
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.testing.driver_machine import DriverMachine
from sandbox_agent.testing.drivers import (
    SessionPersistDriverSuite,
    all_events,
    all_sessions,
    make_event,
    make_session,
)
from sandbox_agent.wire.records import ListPage
from tests.support.effort import repeats

pytestmark = pytest.mark.anyio
KEY = "_sandboxAgentPersist"


class Context:
    """An actor's context: a state, of which the actor's own members are none of the driver's business."""

    def __init__(self) -> None:
        self.state: dict[str, Any] = {"sandboxId": "sbx_123"}
        self.saved: dict[str, Any] = {}
        self.failure: Exception | None = None

    async def save(self) -> None:
        """Save the state, unless it is to fail."""
        await anyio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        # Plain JSON, or this raises.
        self.saved = json.loads(json.dumps(self.state, allow_nan=False))


class TestRivetDriver(SessionPersistDriverSuite):
    @pytest.fixture
    async def context(self) -> AsyncIterator[Context]:
        context = Context()
        yield context
        assert context.state["sandboxId"] == "sbx_123"
        # Whatever the suite did, what is saved is what is there.
        if context.saved:
            assert context.saved == json.loads(json.dumps(context.state))

    @pytest.fixture
    async def driver(self, context: Context) -> AsyncIterator[RivetSessionPersistDriver]:
        driver = RivetSessionPersistDriver(context, save=context.save, max_events_per_session=1_000)
        yield driver
        await driver.close()


class TestStateDriver(SessionPersistDriverSuite):
    @pytest.fixture
    async def driver(self) -> AsyncIterator[StateSessionPersistDriver]:
        driver = StateSessionPersistDriver({}, state_key="x", max_events_per_session=1_000)
        yield driver
        await driver.close()


class SavedStateMachine(DriverMachine):
    """After a crash the actor has the state that was saved last."""

    def __init__(self) -> None:
        self.context = Context()
        super().__init__()

    def make_driver(self) -> SessionPersistDriver:
        context = Context()
        context.state = copy.deepcopy(self.context.saved) or context.state
        context.saved = copy.deepcopy(self.context.saved)
        self.context = context
        return RivetSessionPersistDriver(context, save=context.save)


TestSavedStateMachine = pytest.mark.loops(SavedStateMachine.TestCase)
TestSavedStateMachine.settings = settings(max_examples=repeats(6, 20), stateful_step_count=25, deadline=None)


async def test_state_has_the_shape_of_the_typescript_driver() -> None:
    context = Context()
    driver = RivetSessionPersistDriver(context)
    await driver.update_session(make_session("s", agent="codex", destroyed_at=5, modes={"a": [1]}))
    await driver.append_events("s", [make_event("e1", payload=b'{"jsonrpc":"2.0","id":1,"result":{}}')])
    await driver.append_events("s", [make_event("e2", payload=b'{ "jsonrpc":"2.0" }')])
    assert context.state == {
        "sandboxId": "sbx_123",
        KEY: {
            "sessions": {
                "s": {
                    "id": "s",
                    "agent": "codex",
                    "agentSessionId": "agent-s",
                    "lastConnectionId": "connection-1",
                    "createdAt": 1_700_000_000_000,
                    "destroyedAt": 5,
                    "modes": {"a": [1]},
                }
            },
            "events": {
                "s": [
                    {
                        "id": "e1",
                        "eventIndex": 1,
                        "sessionId": "s",
                        "createdAt": 1_700_000_000_000,
                        "connectionId": "connection-1",
                        "sender": "agent",
                        "payload": {"jsonrpc": "2.0", "id": 1, "result": {}},
                    },
                    {
                        "id": "e2",
                        "eventIndex": 2,
                        "sessionId": "s",
                        "createdAt": 1_700_000_000_000,
                        "connectionId": "connection-1",
                        "sender": "agent",
                        "payload": {"jsonrpc": "2.0"},
                        "payloadJson": '{ "jsonrpc":"2.0" }',
                    },
                ]
            },
            "writers": {},
        },
    }


async def test_state_that_another_driver_made_is_read_and_gone_on_with() -> None:
    record = {"id": "s", "agent": "mock", "agentSessionId": "a", "lastConnectionId": "c", "createdAt": 1}
    event = {
        "id": "e",
        "eventIndex": 4,
        "sessionId": "s",
        "createdAt": 2,
        "connectionId": "c",
        "sender": "client",
    }
    state = {KEY: {"sessions": {"s": record}, "events": {"s": [{**event, "payload": {"a": 1}}]}}}
    before = copy.deepcopy(state)
    driver = StateSessionPersistDriver(state)
    (stored,) = await all_events(driver, "s")
    assert (stored.payload, stored.payload_json, stored.event_index) == ({"a": 1}, b'{"a":1}', 4)
    assert [one.id for one in await all_sessions(driver)] == ["s"]
    # Reading alone changes nothing.
    assert state == before
    event_after = make_event("next")
    await driver.append_events("s", [event_after])
    assert event_after.event_index == 5


async def test_state_is_as_it_was_when_it_can_not_be_saved() -> None:
    context = Context()
    driver = RivetSessionPersistDriver(context, save=context.save, max_events_per_session=3)
    await driver.update_session(make_session("s"))
    generation = await driver.claim_session("s")
    await driver.append_events(
        "s", [make_event("a"), make_event("b"), make_event("c")], generation=generation
    )
    before = copy.deepcopy(context.state)
    context.failure = OSError("no space left")
    event = make_event("d")
    for call in (
        driver.append_events("s", [event], generation=generation),
        driver.insert_event("s", make_event("e", index=9)),
        driver.insert_event("s", make_event("a", index=9)),
        driver.save_session(make_session("s", agent="codex"), generation=generation),
        driver.update_session(make_session("t")),
        driver.claim_session("s"),
        driver.claim_session("new"),
        driver.delete_session("s"),
    ):
        with pytest.raises(PersistError, match=r"was not saved, nothing was stored.*no space left"):
            await call
        assert context.state == before
    assert event.event_index == 0
    assert [one.id for one in await driver.tail_events("s", limit=9)] == ["a", "b", "c"]
    context.failure = None
    await driver.append_events("s", [event], generation=generation)
    assert event.event_index == 4
    assert [one["id"] for one in context.saved[KEY]["events"]["s"]] == ["b", "c", "d"]


async def test_state_is_as_it_was_when_the_first_save_fails() -> None:
    context = Context()
    context.failure = OSError("no")
    driver = RivetSessionPersistDriver(context, save=context.save)
    with pytest.raises(PersistError):
        await driver.append_events("s", [make_event("a")])
    assert context.state == {"sandboxId": "sbx_123"}
    context.failure = None
    await driver.append_events("t", [make_event("a", "t")])


async def test_nobody_sees_what_is_not_saved_yet() -> None:
    state: dict[str, Any] = {}
    saving, go_on = anyio.Event(), anyio.Event()

    async def save() -> None:
        saving.set()
        await go_on.wait()
        raise OSError("no")

    driver = StateSessionPersistDriver(state, save=save)
    seen: list[ListPage[Any]] = []

    async def append() -> None:
        with pytest.raises(PersistError):
            await driver.append_events("s", [make_event("a")])

    async def read() -> None:
        seen.append(await driver.list_events("s"))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(append)
            await saving.wait()
            group.start_soon(read)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            assert seen == []
            go_on.set()
    assert seen == [ListPage([], None)]


async def test_append_that_is_cancelled_while_it_is_saved_leaves_no_trace_and_can_be_retried() -> None:
    state: dict[str, Any] = {}
    saving = anyio.Event()

    async def save() -> None:
        if not saving.is_set():
            saving.set()
            await anyio.sleep_forever()

    driver = StateSessionPersistDriver(state, save=save)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(driver.append_events, "s", [make_event("a")])
            await saving.wait()
            group.cancel_scope.cancel()
    assert state == {}
    event = make_event("a")
    await driver.append_events("s", [event])
    assert event.event_index == 1
    assert [one.id for one in await all_events(driver, "s")] == ["a"]


async def test_save_may_be_a_plain_function() -> None:
    saved: list[int] = []
    state: dict[str, Any] = {}
    driver = StateSessionPersistDriver(state, save=lambda: saved.append(len(state[KEY]["events"])))
    await driver.append_events("s", [make_event("a")])
    await driver.append_events("t", [make_event("b", "t")])
    assert saved == [1, 2]


async def test_mapping_that_gives_copies_keeps_everything() -> None:
    class Shelf(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            return json.loads(super().__getitem__(key))

        def get(self, key: str, default: Any = None) -> Any:
            try:
                return self[key]
            except KeyError:
                return default

        def __setitem__(self, key: str, value: Any) -> None:
            super().__setitem__(key, json.dumps(value))

    shelf: MutableMapping[str, Any] = Shelf()
    driver = StateSessionPersistDriver(shelf)
    await driver.update_session(make_session("s"))
    await driver.append_events("s", [make_event("a"), make_event("b")])
    with pytest.raises(PersistError, match="is taken by"):
        await driver.append_events("t", [make_event("a", "t")])
    again = StateSessionPersistDriver(shelf)
    assert [one.id for one in await all_events(again, "s")] == ["a", "b"]
    assert await again.get_session("s") == make_session("s")


async def test_state_drops_the_oldest_beyond_its_bounds() -> None:
    state: dict[str, Any] = {}
    driver = StateSessionPersistDriver(state, max_sessions=2, max_events_per_session=3)
    for session_id, created_at in (("young", 3), ("old", 1), ("b", 2), ("a", 2)):
        await driver.update_session(make_session(session_id, created_at=created_at))
        await driver.append_events(
            session_id, [make_event(f"{session_id}-{n}", session_id) for n in range(5)]
        )
    assert [one.id for one in await all_sessions(driver)] == ["b", "young"]
    assert [one.event_index for one in await all_events(driver, "young")] == [3, 4, 5]
    for number in range(50):
        await driver.append_events(f"s{number}", [make_event(f"e{number}", f"s{number}")])
        await driver.claim_session(f"s{number}")
    assert len(state[KEY]["events"]) == 4
    assert len(state[KEY]["writers"]) == 8
    # An id that was dropped may come again.
    await driver.append_events("again", [make_event("young-0", "again")])


@pytest.mark.parametrize(("sessions", "events"), [(0, 1), (1, -1)])
def test_driver_refuses_a_bound_below_one(sessions: int, events: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        StateSessionPersistDriver({}, max_sessions=sessions, max_events_per_session=events)


async def test_driver_says_what_in_the_state_is_damaged() -> None:
    driver = StateSessionPersistDriver(
        {KEY: {"sessions": {"s": {"id": "s"}}, "events": {"s": [{"id": "e"}]}}}
    )
    with pytest.raises(PersistError, match="a session in the actor's state is damaged"):
        await driver.get_session("s")
    with pytest.raises(PersistError, match="an event in the actor's state is damaged"):
        await driver.tail_events("s", limit=1)
    with pytest.raises(PersistError, match="not JSON"):
        await driver.update_session(make_session("t", modes={"a": object()}))
    with pytest.raises(PersistError, match="not UTF-8"):
        await driver.append_events("t", [make_event("e", "t", payload=b"\xff")])
