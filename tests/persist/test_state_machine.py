"""Drivers against a plain model, through any sequence of calls, reopened in between."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.sqlite import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import all_events, all_sessions, make_event, make_session
from sandbox_agent.wire.records import SessionEvent, SessionRecord

T = TypeVar("T")

SESSIONS = st.sampled_from(["a", "b", "ü \U0001f980"])
EVENTS = st.sampled_from([f"e{number}" for number in range(12)])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda children: (
        st.lists(children, max_size=2)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=3), children, max_size=2)
    ),
    max_leaves=4,
)
OBJECT = st.dictionaries(st.sampled_from("xyz"), JSON, max_size=2)


class DriverMachine(RuleBasedStateMachine):
    """The model: records by id, and events by id."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.records: dict[str, SessionRecord] = {}
        self.events: dict[str, SessionEvent] = {}
        self.driver = self.open()

    def open(self) -> SessionPersistDriver:
        # More than a run makes: what the bounds do is tested elsewhere.
        return InMemorySessionPersistDriver()

    def do(self, call: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(call)

    def of(self, session_id: str) -> list[SessionEvent]:
        mine = [event for event in self.events.values() if event.session_id == session_id]
        return sorted(mine, key=lambda event: event.event_index)

    @rule(
        session_id=SESSIONS, created_at=st.integers(0, 3), init=st.none() | OBJECT, modes=st.none() | OBJECT
    )
    def update(self, session_id: str, created_at: int, init: Any, modes: Any) -> None:
        record = make_session(session_id, created_at=created_at, session_init=init, modes=modes)
        self.do(self.driver.update_session(record))
        self.records[session_id] = record

    @rule(session_id=SESSIONS, event_ids=st.lists(EVENTS, max_size=5))
    def append(self, session_id: str, event_ids: list[str]) -> None:
        events = [make_event(event_id, session_id) for event_id in event_ids]
        foreign = [
            one for one in event_ids if one in self.events and self.events[one].session_id != session_id
        ]
        if foreign:
            try:
                self.do(self.driver.append_events(session_id, events))
            except PersistError:
                return
            raise AssertionError("an id of another session was taken")
        self.do(self.driver.append_events(session_id, events))
        last = max((event.event_index for event in self.of(session_id)), default=0)
        for event in events:
            if event.id not in self.events:
                last += 1
                assert event.event_index == last
                self.events[event.id] = event
            assert event.event_index == self.events[event.id].event_index

    @rule(session_id=SESSIONS, event_id=EVENTS, ahead=st.integers(1, 3))
    def insert(self, session_id: str, event_id: str, ahead: int) -> None:
        if event_id in self.events:
            return
        last = max((event.event_index for event in self.of(session_id)), default=0)
        event = make_event(event_id, session_id, last + ahead)
        self.do(self.driver.insert_event(session_id, event))
        self.events[event_id] = event

    @precondition(lambda self: self.events)
    @rule(data=st.data(), payload=OBJECT)
    def replace(self, data: st.DataObject, payload: dict[str, Any]) -> None:
        old = self.events[data.draw(st.sampled_from(sorted(self.events)))]
        event = make_event(old.id, old.session_id, old.event_index, payload=json.dumps(payload).encode())
        self.do(self.driver.insert_event(old.session_id, event))
        self.events[old.id] = event

    @rule(session_id=SESSIONS)
    def delete(self, session_id: str) -> None:
        self.do(self.driver.delete_session(session_id))
        self.records.pop(session_id, None)
        self.events = {key: event for key, event in self.events.items() if event.session_id != session_id}

    @rule(session_id=SESSIONS, limit=st.integers(1, 4))
    def read_by_pages(self, session_id: str, limit: int) -> None:
        assert self.do(all_events(self.driver, session_id, limit=limit)) == self.of(session_id)
        tail = self.do(self.driver.tail_events(session_id, limit=limit))
        assert tail == self.of(session_id)[-limit:]

    @invariant()
    def agrees_with_the_model(self) -> None:
        expected = sorted(self.records.values(), key=lambda record: (record.created_at, record.id))
        assert self.do(all_sessions(self.driver, limit=2)) == expected
        for session_id in ("a", "b", "ü \U0001f980"):
            events = self.of(session_id)
            assert self.do(self.driver.get_session(session_id)) == self.records.get(session_id)
            assert self.do(self.driver.last_event_index(session_id)) == (
                events[-1].event_index if events else 0
            )

    def teardown(self) -> None:
        self.do(self.driver.close())
        self.runner.close()


class SQLiteMachine(DriverMachine):
    """The same with a file that is closed and opened again."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="sandbox-agent-test-"))
        super().__init__()

    def open(self) -> SessionPersistDriver:
        return SQLiteSessionPersistDriver(self.folder / "store.db")

    @rule()
    def reopen(self) -> None:
        self.do(self.driver.close())
        self.driver = self.open()

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


TestInMemoryMachine = DriverMachine.TestCase
TestInMemoryMachine.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestSQLiteMachine = SQLiteMachine.TestCase
TestSQLiteMachine.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
