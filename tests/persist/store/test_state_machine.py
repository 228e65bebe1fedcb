"""The store of SQLite against a plain model, through any sequence of calls, reopened in between."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from hypothesis import settings

from sandbox_agent.persist.store import SessionStore
from tests.persist.store.machine import StoreMachine
from tests.persist.store.making import opened
from tests.support.effort import repeats

pytestmark = pytest.mark.loops


class SQLiteMachine(StoreMachine):
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        super().__init__()

    def place(self) -> AbstractAsyncContextManager[SessionStore]:
        return opened(self.folder / "store.db")

    def teardown(self) -> None:
        super().teardown()
        shutil.rmtree(self.folder)


TestSessionStore = SQLiteMachine.TestCase
TestSessionStore.settings = settings(max_examples=repeats(8, 30), stateful_step_count=25, deadline=None)
