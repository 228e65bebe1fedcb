"""The store of SQLite, in a file and in memory, keeps to the suite of all stores."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.persist.store.making import opened
from tests.persist.store.suite import MeasuredStore, Opener, SessionStoreSuite

pytestmark = pytest.mark.anyio


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "opener" in metafunc.fixturenames:
        # A test that opens its store again needs a file: an in-memory store ends when it is closed.
        reopens = "opener" in metafunc.function.__code__.co_varnames
        metafunc.parametrize("opener", ["file"] if reopens else ["file", "memory"], indirect=True)


class TestSQLiteStore(SessionStoreSuite):
    @pytest.fixture
    def opener(self, request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
        place = tmp_path / "store.db" if request.param == "file" else ":memory:"

        def open_it() -> AbstractAsyncContextManager[MeasuredStore]:
            return opened(place)

        return open_it
