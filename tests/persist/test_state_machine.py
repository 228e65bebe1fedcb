"""Drivers against a plain model, through any sequence of calls, with crashes in between."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import settings

from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.driver_machine import DriverMachine
from tests.persist.test_conformance import FiveMethodDriver
from tests.support.effort import repeats

pytestmark = pytest.mark.loops


class InMemoryMachine(DriverMachine):
    """More than a run makes is kept: what the bounds do is tested elsewhere."""

    keeps: ClassVar[bool] = False

    def make_driver(self) -> SessionPersistDriver:
        return InMemorySessionPersistDriver()


class FiveMethodMachine(DriverMachine):
    """Everything by the slower defaults, on a store that outlives the driver object."""

    def __init__(self) -> None:
        self.store = FiveMethodDriver()
        super().__init__()

    def make_driver(self) -> SessionPersistDriver:
        driver = FiveMethodDriver()
        driver.sessions, driver.events = self.store.sessions, self.store.events
        return driver


class SQLiteMachine(DriverMachine):
    def make_driver(self) -> SessionPersistDriver:
        return SQLiteSessionPersistDriver(self.folder / "store.db")


class SQLiteInMemoryMachine(DriverMachine):
    keeps: ClassVar[bool] = False

    def make_driver(self) -> SessionPersistDriver:
        return SQLiteSessionPersistDriver(":memory:")


TestInMemoryMachine = InMemoryMachine.TestCase
TestInMemoryMachine.settings = settings(max_examples=repeats(10, 30), stateful_step_count=30, deadline=None)
TestFiveMethodMachine = FiveMethodMachine.TestCase
TestFiveMethodMachine.settings = settings(max_examples=repeats(5, 15), stateful_step_count=25, deadline=None)
TestSQLiteMachine = SQLiteMachine.TestCase
TestSQLiteMachine.settings = settings(max_examples=repeats(5, 15), stateful_step_count=25, deadline=None)
TestSQLiteInMemoryMachine = SQLiteInMemoryMachine.TestCase
TestSQLiteInMemoryMachine.settings = settings(
    max_examples=repeats(5, 15), stateful_step_count=25, deadline=None
)
