"""Section of the suite: appends and their indexes, and writers that are refused."""

from __future__ import annotations

import itertools

import anyio

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.base import UNFENCED, Capability, SessionPersistDriver
from sandbox_agent.testing.driver_data import (
    all_events,
    make_event,
    make_session,
    patient_group,
    refusal,
)
from sandbox_agent.wire.records import ListPage


class WritingSuite:
    """Indexes are contiguous, a retry stores nothing twice, and an older generation is refused."""

    # Appends.

    async def test_driver_numbers_appended_events_from_one(self, driver: SessionPersistDriver) -> None:
        """Contiguous, in the order given, set on the caller's events and stored."""
        events = [make_event(f"e{n}") for n in range(5)]
        await driver.append_events("s", events[:2])
        await driver.append_events("s", [])
        await driver.append_events("s", events[2:])
        assert [event.event_index for event in events] == [1, 2, 3, 4, 5]
        assert await all_events(driver, "s") == events

    async def test_driver_numbers_appends_after_inserted_events(self, driver: SessionPersistDriver) -> None:
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

    # Writers that claim a session.

    async def test_driver_that_cannot_fence_refuses_no_writer(self, driver: SessionPersistDriver) -> None:
        """Every claim returns UNFENCED."""
        if Capability.FENCE in driver.capabilities:
            return
        assert await driver.claim_session("s") == UNFENCED
        assert await driver.claim_session("s") == UNFENCED
        await driver.append_events("s", [make_event("e")], generation=UNFENCED)
        await driver.save_session(make_session("s"), generation=UNFENCED)
        assert await driver.get_session("s") == make_session("s")

    async def test_driver_gives_every_claim_a_higher_generation(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """For all claimants, stored and new sessions, and concurrent claims."""
        if Capability.FENCE not in driver.capabilities:
            return
        claims = [await driver.claim_session("s"), await other_driver.claim_session("s")]
        await driver.update_session(make_session("s"))
        claims += [await other_driver.claim_session("s"), await driver.claim_session("s")]
        assert claims == sorted(set(claims))
        assert claims[0] > UNFENCED
        at_once: list[int] = []

        async def claim(which: SessionPersistDriver) -> None:
            at_once.append(await which.claim_session("s"))

        async with anyio.create_task_group() as group:
            for which in [driver, other_driver] * 5:
                group.start_soon(claim, which)
        assert len(set(at_once)) == 10
        assert min(at_once) > claims[-1]
        for generation in sorted(at_once)[:-1]:
            await refusal(
                driver.append_events("s", [make_event("late")], generation=generation), SessionFencedError
            )
        await driver.append_events("s", [make_event("e")], generation=max(at_once))

    async def test_driver_refuses_a_writer_whose_session_was_claimed_since(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """Nothing of its call is stored, and its events are not numbered; the new writer continues."""
        if Capability.FENCE not in driver.capabilities:
            return
        old = await driver.claim_session("s")
        await driver.save_session(make_session("s"), generation=old)
        await driver.append_events("s", [make_event("a"), make_event("b")], generation=old)
        new = await other_driver.claim_session("s")
        event = make_event("refused")
        error = await refusal(driver.append_events("s", [event], generation=old), SessionFencedError)
        assert (error.session_id, error.generation) == ("s", old)
        assert event.event_index == 0
        error = await refusal(
            driver.save_session(make_session("s", agent="refused"), generation=old), SessionFencedError
        )
        assert (error.session_id, error.generation) == ("s", old)
        assert await driver.get_session("s") == make_session("s")
        after = make_event("c")
        await other_driver.append_events("s", [after], generation=new)
        assert after.event_index == 3
        await other_driver.save_session(make_session("s", agent="codex"), generation=new)
        assert await driver.get_session("s") == make_session("s", agent="codex")
        assert [event.id for event in await all_events(driver, "s")] == ["a", "b", "c"]

    async def test_driver_lets_those_write_that_claimed_nothing(self, driver: SessionPersistDriver) -> None:
        """UNFENCED is never refused, and ends no claim."""
        if Capability.FENCE not in driver.capabilities:
            return
        generation = await driver.claim_session("s")
        await driver.update_session(make_session("s"))
        await driver.append_events("s", [make_event("a")])
        await driver.insert_event("s", make_event("b", index=2))
        await driver.append_events("s", [make_event("c")], generation=generation)
        await driver.save_session(make_session("s", agent="codex"), generation=generation)
        assert [event.id for event in await all_events(driver, "s")] == ["a", "b", "c"]

    async def test_driver_fences_each_session_by_itself(self, driver: SessionPersistDriver) -> None:
        """A claim of another session changes nothing."""
        if Capability.FENCE not in driver.capabilities:
            return
        generation = await driver.claim_session("a")
        await driver.claim_session("b")
        await driver.claim_session("b")
        await driver.append_events("a", [make_event("e", "a")], generation=generation)
        assert [event.id for event in await all_events(driver, "a")] == ["e"]

    async def test_driver_refuses_the_old_writer_of_a_session_that_was_created_again(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """The generation outlives the deletion of the session."""
        if not {Capability.FENCE, Capability.DELETE} <= driver.capabilities:
            return
        old = await driver.claim_session("s")
        await driver.save_session(make_session("s"), generation=old)
        await driver.append_events("s", [make_event("old")], generation=old)
        await other_driver.delete_session("s")
        new = await other_driver.claim_session("s")
        assert new > old
        await other_driver.save_session(make_session("s", agent="new"), generation=new)
        await refusal(driver.append_events("s", [make_event("late")], generation=old), SessionFencedError)
        await refusal(driver.save_session(make_session("s"), generation=old), SessionFencedError)
        assert await other_driver.list_events("s") == ListPage([], None)
        event = make_event("new")
        await other_driver.append_events("s", [event], generation=new)
        assert event.event_index == 1
        assert await driver.get_session("s") == make_session("s", agent="new")

    async def test_driver_never_interleaves_two_writers(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """What the old one was acknowledged comes first, then only the new one's; indexes have no hole."""
        if Capability.FENCE not in driver.capabilities:
            return
        acknowledged: list[str] = []
        under_way, claimed = anyio.Event(), anyio.Event()

        async def write_until_refused() -> None:
            generation = await driver.claim_session("s")
            for number in itertools.count():
                if number == 200:
                    # Enough for every store; from here on it must be refused.
                    await claimed.wait()
                batch = [make_event(f"old-{number}-{part}") for part in "ab"]
                try:
                    await driver.append_events("s", batch, generation=generation)
                except SessionFencedError:
                    return
                acknowledged.extend(event.id for event in batch)
                if number == 4:
                    under_way.set()
                assert number < 200, "the old writer was not refused"
                await anyio.lowlevel.checkpoint()

        async def take_over() -> None:
            await under_way.wait()
            generation = await other_driver.claim_session("s")
            claimed.set()
            for number in range(20):
                batch = [make_event(f"new-{number}-{part}") for part in "ab"]
                await other_driver.append_events("s", batch, generation=generation)

        async with patient_group() as group:
            group.start_soon(write_until_refused)
            group.start_soon(take_over)
        events = await all_events(driver, "s")
        assert [event.event_index for event in events] == list(range(1, len(events) + 1))
        assert [event.id for event in events] == [
            *acknowledged,
            *(f"new-{number}-{part}" for number in range(20) for part in "ab"),
        ]
