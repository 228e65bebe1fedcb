"""Section of the suite: batches with indexes that the store allots."""

from __future__ import annotations

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import Capability, SessionPersistDriver
from sandbox_agent.testing.driver_data import all_events, make_event, refusal
from sandbox_agent.wire.records import ListPage


class AppendsSuite:
    """Indexes are contiguous, and a retry stores nothing twice."""

    async def test_driver_numbers_appended_events_from_one(self, driver: SessionPersistDriver) -> None:
        """Contiguous, in the order given, set on the caller's events and stored."""
        events = [make_event(f"e{n}") for n in range(5)]
        await driver.append_events("s", events[:2])
        await driver.append_events("s", [])
        await driver.append_events("s", events[2:])
        assert [event.event_index for event in events] == [1, 2, 3, 4, 5]
        assert await all_events(driver, "s") == events

    async def test_driver_numbers_on_after_events_that_were_inserted(
        self, driver: SessionPersistDriver
    ) -> None:
        """The last index counts, not the number of rows."""
        await driver.insert_event("s", make_event("old", index=41))
        event = make_event("new")
        await driver.append_events("s", [event])
        assert event.event_index == 42

    async def test_driver_numbers_each_session_by_itself(self, driver: SessionPersistDriver) -> None:
        """Two sessions both begin at 1."""
        for session_id in ("a", "b"):
            event = make_event(f"of-{session_id}", session_id)
            await driver.append_events(session_id, [event])
            assert event.event_index == 1

    async def test_driver_stores_an_event_once_when_its_append_is_retried(
        self, driver: SessionPersistDriver
    ) -> None:
        """The retry gives the stored index, also mixed with new events and twice in one batch."""
        await driver.append_events("s", [make_event("a"), make_event("b")])
        retried = [make_event(event_id) for event_id in "bcdac"]
        await driver.append_events("s", retried)
        assert [event.event_index for event in retried] == [2, 3, 4, 1, 3]
        assert [(one.id, one.event_index) for one in await all_events(driver, "s")] == [
            ("a", 1),
            ("b", 2),
            ("c", 3),
            ("d", 4),
        ]

    async def test_driver_keeps_every_event_when_tasks_append_at_once(
        self, driver: SessionPersistDriver
    ) -> None:
        """Contiguous, none lost, and each task's own in its order."""

        async def append(task: int) -> None:
            for number in range(10):
                await driver.append_events("s", [make_event(f"{task}-{number}-{part}") for part in "ab"])

        async with anyio.create_task_group() as group:
            for task in range(10):
                group.start_soon(append, task)
        events = await all_events(driver, "s")
        assert [event.event_index for event in events] == list(range(1, 201))
        for task in range(10):
            mine = [event.id for event in events if event.id.startswith(f"{task}-")]
            assert mine == [f"{task}-{number}-{part}" for number in range(10) for part in "ab"]

    async def test_driver_keeps_a_large_batch(self, driver: SessionPersistDriver) -> None:
        """In order; a thousand events at once."""
        events = [make_event(f"e{n}") for n in range(1_000)]
        await driver.append_events("s", events)
        assert await all_events(driver, "s", limit=333) == events

    async def test_driver_stores_nothing_when_a_native_append_has_a_bad_member(
        self, driver: SessionPersistDriver
    ) -> None:
        """All or none: here an event that names another session, or whose id another session has."""
        if Capability.APPEND not in driver.capabilities:
            return
        await driver.append_events("other", [make_event("taken", "other")])
        for bad in (make_event("bad", "other"), make_event("taken")):
            await refusal(
                driver.append_events("s", [make_event("good"), bad, make_event("fine")]), PersistError
            )
            assert await driver.list_events("s") == ListPage([], None)
        assert [event.id for event in await all_events(driver, "other")] == ["taken"]

    async def test_driver_refuses_an_index_that_is_taken_where_it_appends_natively(
        self, driver: SessionPersistDriver
    ) -> None:
        """Indexes are unique in the store."""
        if Capability.APPEND not in driver.capabilities:
            return
        await driver.append_events("s", [make_event("a")])
        error = await refusal(driver.insert_event("s", make_event("b", index=1)), PersistError)
        assert isinstance(error, PersistError)
        assert error.session_id == "s"
        assert [event.id for event in await all_events(driver, "s")] == ["a"]
