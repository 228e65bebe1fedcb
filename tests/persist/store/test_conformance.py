"""The store of SQLite, in a file and in memory, keeps to the suite of all stores."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from tests.persist.store.making import opened
from tests.persist.store.suite import MeasuredStore, Opener, SessionStoreSuite

pytestmark = pytest.mark.anyio


class TestSQLiteStore(SessionStoreSuite):
    @pytest.fixture(params=["file", "memory"])
    def opener(self, request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
        if request.param == "memory" and "opener" in request.node.function.__code__.co_varnames:
            pytest.skip("what is in memory is gone when it is closed")
        place = tmp_path / "store.db" if request.param == "file" else ":memory:"

        def open_it() -> AbstractAsyncContextManager[MeasuredStore]:
            return opened(place)

        return open_it
