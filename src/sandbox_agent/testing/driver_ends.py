"""Section of the suite: the tail, deleting and closing."""

from __future__ import annotations

from sandbox_agent.persist.base import Capability, SessionPersistDriver
from sandbox_agent.testing.driver_data import all_events, all_sessions, make_event, make_session, refusal
from sandbox_agent.wire.records import ListPage


class EndsSuite:
    """The newest events are at hand, a deleted session is gone, a closed driver is closed."""

    async def test_driver_gives_the_newest_events_in_order(self, driver: SessionPersistDriver) -> None:
        """As many as asked for, or all that there are; none for none."""
        await driver.append_events("s", [make_event(f"e{n}") for n in range(150)])
        for limit in (1, 7, 100, 149, 150, 1_000, 2**40):
            tail = await driver.tail_events("s", limit=limit)
            assert [event.event_index for event in tail] == list(range(max(1, 151 - limit), 151))
        assert await driver.tail_events("s", limit=0) == []
        assert await driver.tail_events("s", limit=-3) == []
        assert await driver.tail_events("unknown", limit=5) == []

    async def test_driver_gives_the_last_index(self, driver: SessionPersistDriver) -> None:
        """0 where there is no event."""
        assert await driver.last_event_index("s") == 0
        await driver.append_events("s", [make_event(f"e{n}") for n in range(3)])
        assert await driver.last_event_index("s") == 3

    # Deleting and closing.

    async def test_driver_erases_a_session_and_leaves_the_others(self, driver: SessionPersistDriver) -> None:
        """Record and events; an unknown session is no error; a driver that can't says so."""
        for session_id in ("a", "b"):
            await driver.update_session(make_session(session_id))
            await driver.append_events(session_id, [make_event(f"of-{session_id}", session_id)])
        if Capability.DELETE not in driver.capabilities:
            await refusal(driver.delete_session("a"), NotImplementedError)
            return
        await driver.delete_session("a")
        await driver.delete_session("unknown")
        assert await driver.get_session("a") is None
        assert await driver.list_events("a") == ListPage([], None)
        assert await driver.last_event_index("a") == 0
        assert [one.id for one in await all_sessions(driver)] == ["b"]
        assert [event.id for event in await all_events(driver, "b")] == ["of-b"]

    async def test_driver_closes_twice_without_complaint(self, driver: SessionPersistDriver) -> None:
        """The fixture closes it once more."""
        await driver.update_session(make_session("s"))
        await driver.close()
        await driver.close()
