"""Encryption against a plain model: no sequence of calls, with crashes in between, breaks a chain."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis.stateful import invariant

from sandbox_agent.persist.base import Capability, SessionPersistDriver
from sandbox_agent.persist.encrypted.driver import EncryptedSessionPersistDriver
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.driver_machine import DriverMachine
from tests.persist.encrypted.conftest import KEY
from tests.persist.encrypted.test_chain import problems
from tests.support.effort import repeats

pytestmark = pytest.mark.loops


class EncryptedMachine(DriverMachine):
    """Over SQLite."""

    def make_driver(self) -> SessionPersistDriver:
        inner = SQLiteSessionPersistDriver(self.folder / "store.db")
        return EncryptedSessionPersistDriver(inner, key=KEY, close_inner=True)

    @invariant()
    def verifies(self) -> None:
        """Find nothing wrong."""
        assert self.do(problems(self.driver)) == []


class EncryptedInMemoryMachine(EncryptedMachine):
    """Over memory, with the default that stores the head after the events."""

    keeps: ClassVar[bool] = False

    def make_driver(self) -> SessionPersistDriver:
        class Plain(InMemorySessionPersistDriver):
            # The default does not keep all or none.
            capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {Capability.APPEND}
            append_sealed = SessionPersistDriver.append_sealed
            appends_head: ClassVar[bool] = False
            drops_oldest: ClassVar[bool] = False

        return EncryptedSessionPersistDriver(Plain(), key=KEY)


TestEncryptedMachine = EncryptedMachine.TestCase
TestEncryptedMachine.settings = settings(max_examples=repeats(8, 25), stateful_step_count=25, deadline=None)
TestEncryptedInMemoryMachine = EncryptedInMemoryMachine.TestCase
TestEncryptedInMemoryMachine.settings = settings(
    max_examples=repeats(8, 25), stateful_step_count=25, deadline=None
)
