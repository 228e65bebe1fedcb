"""The conformance suite of persist drivers.

A driver's author subclasses it in a test module, gives a fixture named ``driver``, and has pytest run
coroutine tests (anyio's plugin)::

    import pytest
    from sandbox_agent.testing.drivers import SessionPersistDriverSuite

    pytestmark = pytest.mark.anyio

    class TestMyDriver(SessionPersistDriverSuite):
        @pytest.fixture
        async def driver(self, tmp_path):
            driver = MyDriver(tmp_path / "store")
            yield driver
            await driver.close()

        @pytest.fixture
        async def second_driver(self, driver, tmp_path):  # where two objects can share a store
            second = MyDriver(tmp_path / "store")
            yield second
            await second.close()

The store behind the fixtures is empty, and keeps at least 1,000 events of a session. What a driver does
not declare in ``capabilities`` is tested through the slower defaults, so the suite is the same for all.
``sandbox_agent.testing.driver_machine`` tries any sequence of calls, with crashes in between.
For assertions that show their values, call ``pytest.register_assert_rewrite("sandbox_agent.testing")`` in
a conftest before the import.
"""

from __future__ import annotations

import pytest

from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.testing.driver_data import all_events, all_sessions, make_event, make_session
from sandbox_agent.testing.driver_following import FollowingSuite
from sandbox_agent.testing.driver_rows import RowsSuite
from sandbox_agent.testing.driver_searching import SearchingSuite
from sandbox_agent.testing.driver_trouble import TroubleSuite
from sandbox_agent.testing.driver_writing import WritingSuite

__all__ = ["SessionPersistDriverSuite", "all_events", "all_sessions", "make_event", "make_session"]


class SessionPersistDriverSuite(RowsSuite, WritingSuite, FollowingSuite, SearchingSuite, TroubleSuite):
    """What every persist driver keeps to; see the module's docstring for its use."""

    @pytest.fixture
    def second_driver(self) -> SessionPersistDriver | None:
        """Another driver object on the same store, or None where there can't be one."""
        return None

    @pytest.fixture
    def other_driver(
        self, driver: SessionPersistDriver, second_driver: SessionPersistDriver | None
    ) -> SessionPersistDriver:
        """The second driver object, or the driver itself where there can't be one."""
        return second_driver or driver
