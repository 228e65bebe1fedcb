"""A caller that is cancelled leaves connections that the next one can use."""

from __future__ import annotations

import logging

import anyio
import anyio.lowlevel
import pytest

from sandbox_agent.persist.postgres.driver import PostgresSessionPersistDriver
from sandbox_agent.testing.drivers import all_events, make_event, make_session

pytestmark = pytest.mark.anyio


async def test_driver_goes_on_when_callers_are_cancelled_at_any_moment(
    postgres_dsn: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is left locked, in a transaction, or complained of."""
    caplog.set_level(logging.WARNING)
    driver = PostgresSessionPersistDriver(postgres_dsn, max_size=2)
    await driver.append_events("s", [make_event("first")])
    for moment in range(60):
        event = make_event(f"e{moment}")
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(driver.save_session, make_session("s", created_at=moment))
                group.start_soon(driver.claim_session, "s")
                group.start_soon(driver.append_events, "s", [event])
                group.start_soon(driver.list_events, "s")
                for _ in range(moment % 20):
                    await anyio.lowlevel.checkpoint()
                scope.cancel()
        with anyio.fail_after(10):
            await driver.append_events("s", [event])
            await driver.update_session(make_session("s"))
    events = await all_events(driver, "s")
    assert [one.event_index for one in events] == list(range(1, 62))
    assert await driver.get_session("s") == make_session("s")
    await driver.close()
    assert caplog.records == []
