"""Any sequence of calls against a model, with crashes in between: a Hypothesis state machine.

A driver's author subclasses it and gives pytest its test case::

    from hypothesis import settings
    from sandbox_agent.testing.driver_machine import DriverMachine

    class MyDriverMachine(DriverMachine):
        def make_driver(self):
            return MyDriver(self.folder / "store")

    TestMyDriver = MyDriverMachine.TestCase
    TestMyDriver.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)

It needs ``hypothesis``, which the package does not install.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.base import UNFENCED, Capability, SessionPersistDriver
from sandbox_agent.testing.driver_data import all_events, all_sessions, make_event, make_session, refusal
from sandbox_agent.testing.driver_searching import prompt
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.records import SessionEvent, SessionRecord

__all__ = ["DriverMachine"]

T = TypeVar("T")

# The time in which a follower must receive what is stored, in seconds.
_PATIENCE = 20.0
_WORDS = ("apple", "birch", "cedar")
_SESSION_IDS = ("a", "b", "ü \U0001f980")
_SESSIONS = st.sampled_from(_SESSION_IDS)
_EVENTS = st.sampled_from([f"e{number}" for number in range(12)])
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda children: (
        st.lists(children, max_size=2)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), children, max_size=2)
    ),
    max_leaves=4,
)
_OBJECT = st.dictionaries(st.sampled_from("xyz"), _JSON, max_size=2)
_TEXTS = st.lists(st.sampled_from(_WORDS), min_size=1, max_size=3).map(" ".join)


class DriverMachine(RuleBasedStateMachine):
    """The model: records by id, events by id, and the generation of each session.

    Each run has a store of its own, which ``make_driver`` opens. What a driver does not declare
    is not called, or the slower default is.

    Attributes:
        keeps: whether what is stored outlives the driver object; crashes are tried only then.
        folder: an empty folder of this run. It is removed afterwards.
        driver: the driver under test.
    """

    keeps: ClassVar[bool] = True

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path = Path(tempfile.mkdtemp(prefix="sandbox-agent-test-"))
        self._runner = asyncio.Runner()
        self._dropped: list[SessionPersistDriver] = []
        self._records: dict[str, SessionRecord] = {}
        self._events: dict[str, SessionEvent] = {}
        self._generations: dict[str, int] = {}
        # Generations that were claimed, with those that a deletion may or may not have ended left out.
        self._claims: list[tuple[str, int]] = []
        self.driver: SessionPersistDriver = self.do(self._make())

    # What a driver's author implements.

    def make_driver(self) -> SessionPersistDriver:
        """Return a driver on this run's store; called again after every crash."""
        raise NotImplementedError(f"{type(self).__name__} must say how its driver is made")

    def crash(self) -> None:
        """Continue with a new driver object. The old one is not closed."""
        self._dropped.append(self.driver)
        self.driver = self.do(self._make())

    async def erase_store(self) -> None:
        """Erase what this run stored outside of ``folder``."""

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in this run's event loop."""
        return self._runner.run(call)

    # Calls.

    @initialize()
    def begin(self) -> None:
        """Check that the store is empty."""
        assert self.do(all_sessions(self.driver)) == []

    @rule(
        session_id=_SESSIONS,
        created_at=st.integers(0, 3),
        init=st.none() | _OBJECT,
        modes=st.none() | _OBJECT,
    )
    def update(self, session_id: str, created_at: int, init: Any, modes: Any) -> None:
        """Store a record."""
        record = make_session(session_id, created_at=created_at, session_init=init, modes=modes)
        self.do(self.driver.update_session(record))
        self._records[session_id] = record

    @rule(session_id=_SESSIONS, event_ids=st.lists(_EVENTS, max_size=5), text=_TEXTS)
    def append(self, session_id: str, event_ids: list[str], text: str) -> None:
        """Append events, some of which may be stored already."""
        self._append(session_id, event_ids, text, UNFENCED)

    @rule(session_id=_SESSIONS, event_ids=st.lists(_EVENTS, min_size=1, max_size=5), rounds=st.integers(0, 4))
    def append_with_unknown_outcome(self, session_id: str, event_ids: list[str], rounds: int) -> None:
        """Append, crash before the call returns, and try again."""
        if self._foreign(session_id, event_ids):
            return
        events = [make_event(one, session_id, payload=prompt("birch")) for one in event_ids]
        self.do(self._abandon(self.driver.append_events(session_id, events), rounds))
        before = self.driver
        if self.keeps:
            self.crash()
        self._append(session_id, event_ids, "birch", UNFENCED)
        if self.keeps:
            # What is still on its way must not come after calls that follow.
            self.do(before.close())

    @rule(session_id=_SESSIONS, event_id=_EVENTS, ahead=st.integers(1, 3), text=_TEXTS)
    def insert(self, session_id: str, event_id: str, ahead: int, text: str) -> None:
        """Insert an event with an index of its own, ahead of all."""
        native = Capability.APPEND in self.driver.capabilities
        if event_id in self._events or not (native or self.keeps):
            return
        event = make_event(event_id, session_id, self._last(session_id) + ahead, payload=prompt(text))
        self.do(self.driver.insert_event(session_id, event))
        self._events[event_id] = event
        if not native:
            # The slower default numbers on from what it appended itself.
            self.crash()

    @precondition(lambda self: self._events)
    @rule(data=st.data(), payload=_OBJECT.map(dumps) | _TEXTS.map(prompt))
    def replace(self, data: st.DataObject, payload: bytes) -> None:
        """Replace an event's envelope."""
        old = self._events[data.draw(st.sampled_from(sorted(self._events)))]
        event = make_event(old.id, old.session_id, old.event_index, payload=payload)
        self.do(self.driver.insert_event(old.session_id, event))
        self._events[old.id] = event

    @precondition(lambda self: Capability.DELETE in self.driver.capabilities)
    @rule(session_id=_SESSIONS)
    def delete(self, session_id: str) -> None:
        """Erase a session."""
        self.do(self.driver.delete_session(session_id))
        self._records.pop(session_id, None)
        self._events = {key: event for key, event in self._events.items() if event.session_id != session_id}
        # Whether its writer can continue depends on the driver, until the next claim.
        current = self._generations.get(session_id)
        self._claims = [one for one in self._claims if one != (session_id, current)]

    @precondition(lambda self: Capability.FENCE in self.driver.capabilities)
    @rule(session_id=_SESSIONS)
    def claim(self, session_id: str) -> None:
        """Become a session's writer."""
        generation = self.do(self.driver.claim_session(session_id))
        assert generation > self._generations.get(session_id, UNFENCED)
        self._generations[session_id] = generation
        self._claims.append((session_id, generation))

    @precondition(lambda self: self._claims)
    @rule(data=st.data(), event_ids=st.lists(_EVENTS, max_size=3), created_at=st.integers(0, 3))
    def write_as(self, data: st.DataObject, event_ids: list[str], created_at: int) -> None:
        """Write with a generation that was claimed once."""
        session_id, generation = data.draw(st.sampled_from(self._claims))
        record = make_session(session_id, created_at=created_at)
        if generation < self._generations[session_id]:
            events = [make_event(event_id, session_id) for event_id in [*event_ids, "never"]]
            self.do(
                refusal(
                    self.driver.append_events(session_id, events, generation=generation), SessionFencedError
                )
            )
            self.do(refusal(self.driver.save_session(record, generation=generation), SessionFencedError))
            return
        self._append(session_id, event_ids, "cedar", generation)
        self.do(self.driver.save_session(record, generation=generation))
        self._records[session_id] = record

    @precondition(lambda self: self.keeps)
    @rule()
    def crash_between_calls(self) -> None:
        """Lose the driver object."""
        self.crash()

    @precondition(lambda self: self.keeps)
    @rule()
    def reopen(self) -> None:
        """Close the driver and make another."""
        self.do(self.driver.close())
        self.driver = self.do(self._make())

    # Reading.

    @rule(session_id=_SESSIONS, limit=st.integers(1, 4))
    def read_by_pages(self, session_id: str, limit: int) -> None:
        """Read the history in pages, and its tail."""
        assert self.do(all_events(self.driver, session_id, limit=limit)) == self._of(session_id)
        tail = self.do(self.driver.tail_events(session_id, limit=limit))
        assert tail == self._of(session_id)[-limit:]

    @rule(session_id=_SESSIONS, after=st.integers(0, 5))
    def follow(self, session_id: str, after: int) -> None:
        """Follow as far as the history goes."""
        expected = [event for event in self._of(session_id) if event.event_index > after]
        assert self.do(self._followed(session_id, after, len(expected))) == expected

    @rule(words=st.lists(st.sampled_from(_WORDS), min_size=1, max_size=2), session_id=st.none() | _SESSIONS)
    def search(self, words: list[str], session_id: str | None) -> None:
        """Search for words."""
        hits = self.do(self.driver.search_events(" ".join(words), session_id=session_id))
        found = [(hit.session_id, hit.sequence) for hit in hits]
        expected = [
            (event.session_id, event.event_index)
            for event in self._events.values()
            if session_id in {None, event.session_id}
            and event.session_id in self._records
            and event.payload.get("method") == "session/prompt"
            and all(word in event.payload["params"]["prompt"][0]["text"] for word in words)
        ]
        assert sorted(found) == sorted(expected)
        assert [hit.time for hit in hits] == sorted((hit.time for hit in hits), reverse=True)

    @invariant()
    def agrees_with_the_model(self) -> None:
        """Compare records, and how far each session is."""
        expected = sorted(self._records.values(), key=lambda record: (record.created_at, record.id))
        assert self.do(all_sessions(self.driver, limit=2)) == expected
        for session_id in _SESSION_IDS:
            assert self.do(self.driver.get_session(session_id)) == self._records.get(session_id)
            assert self.do(self.driver.last_event_index(session_id)) == self._last(session_id)

    def teardown(self) -> None:
        """Close what was opened, and erase what was stored."""
        for driver in [*self._dropped, self.driver]:
            self.do(driver.close())
        self.do(self.erase_store())
        self._runner.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # The model.

    def _of(self, session_id: str) -> list[SessionEvent]:
        mine = [event for event in self._events.values() if event.session_id == session_id]
        return sorted(mine, key=lambda event: event.event_index)

    def _last(self, session_id: str) -> int:
        return max((event.event_index for event in self._of(session_id)), default=0)

    def _foreign(self, session_id: str, event_ids: list[str]) -> bool:
        return any(one in self._events and self._events[one].session_id != session_id for one in event_ids)

    def _append(self, session_id: str, event_ids: list[str], text: str, generation: int) -> None:
        events = [make_event(event_id, session_id, payload=prompt(text)) for event_id in event_ids]
        call = self.driver.append_events(session_id, events, generation=generation)
        if self._foreign(session_id, event_ids):
            if Capability.APPEND in self.driver.capabilities:
                self.do(refusal(call, PersistError))
            else:
                call.close()
            return
        self.do(call)
        last = self._last(session_id)
        for event in events:
            if event.id not in self._events:
                last += 1
                assert event.event_index == last
                self._events[event.id] = event
            assert event.event_index == self._events[event.id].event_index

    async def _make(self) -> SessionPersistDriver:
        # In the loop: drivers may want one when they are made.
        return self.make_driver()

    async def _abandon(self, call: Coroutine[Any, Any, None], rounds: int) -> None:
        task = asyncio.create_task(call)
        for _ in range(rounds):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

    async def _followed(self, session_id: str, after: int, count: int) -> list[SessionEvent]:
        events: list[SessionEvent] = []
        if count == 0:
            return events
        async with (
            asyncio.timeout(_PATIENCE),
            aclosing(self.driver.follow_events(session_id, after=after)) as following,
        ):
            async for event in following:
                events.append(event)
                if len(events) == count:
                    break
        return events
