"""Section of the suite: followers get what is stored, then what comes, each event once."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

import anyio

from sandbox_agent.persist.base import Capability, SessionPersistDriver
from sandbox_agent.testing.driver_data import PATIENCE, make_event, make_session, patient_group


class _Follower:
    """Follows a session until it has received ``count`` events, or to the end."""

    def __init__(self, driver: SessionPersistDriver, session_id: str = "s", *, after: int = 0) -> None:
        self.driver = driver
        self.session_id = session_id
        self.after = after
        self.seen: list[tuple[int, str]] = []
        self.ended = False
        self._changed = anyio.Event()

    async def run(self, count: int | None = None) -> None:
        async with aclosing(self.driver.follow_events(self.session_id, after=self.after)) as events:
            async for event in events:
                assert event.session_id == self.session_id
                self.seen.append((event.event_index, event.id))
                self._changed.set()
                if len(self.seen) == count:
                    return
        self.ended = True

    async def has(self, count: int) -> None:
        """Wait until it has received ``count`` events."""
        while len(self.seen) < count:
            self._changed = anyio.Event()
            await self._changed.wait()


def _numbered(first: int, last: int) -> list[tuple[int, str]]:
    return [(index, f"e{index}") for index in range(first, last + 1)]


async def _append(driver: SessionPersistDriver, first: int, last: int, *, size: int = 7) -> None:
    """Append e<first> to e<last>, a few at a time."""
    for start in range(first, last + 1, size):
        await driver.append_events(
            "s", [make_event(f"e{n}") for n in range(start, min(start + size, last + 1))]
        )


class FollowingSuite:
    """Followers receive what any driver object on the same store appends."""

    async def test_follower_gets_history_then_what_comes(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """Without a hole or a repetition, from the beginning or after an index."""
        await _append(driver, 1, 150, size=50)
        followers = [_Follower(driver, after=after) for after in (0, 0, 99, 100, 149, 150)]
        async with patient_group() as group:
            for follower in followers:
                group.start_soon(follower.run, 350 - follower.after)
            for follower in followers:
                await follower.has(150 - follower.after)
            await _append(other_driver, 151, 250)
            await _append(driver, 251, 350)
        for follower in followers:
            assert follower.seen == _numbered(follower.after + 1, 350)

    async def test_follower_misses_nothing_that_is_stored_while_it_begins(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """The seam between history and live has no hole, wherever it is."""
        followers = [_Follower(driver) for _ in range(20)]
        async with patient_group() as group:
            for number, follower in enumerate(followers):
                group.start_soon(follower.run, 200)
                await _append(other_driver, number * 10 + 1, number * 10 + 10, size=3)
        for follower in followers:
            assert follower.seen == _numbered(1, 200)

    async def test_follower_waits_for_a_session_that_is_not_there_yet(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """The session may be stored later; events of other sessions are not received."""
        follower = _Follower(driver)
        async with patient_group() as group:
            group.start_soon(follower.run, 3)
            await anyio.lowlevel.checkpoint()
            await other_driver.append_events("other", [make_event("x", "other")])
            await other_driver.update_session(make_session("s"))
            await _append(other_driver, 1, 3, size=1)
        assert follower.seen == _numbered(1, 3)

    async def test_follower_sees_events_that_were_inserted_with_their_index(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """Indexes may have holes then."""
        follower = _Follower(driver)
        async with patient_group() as group:
            group.start_soon(follower.run, 4)
            await other_driver.insert_event("s", make_event("e1", index=1))
            await follower.has(1)
            await other_driver.insert_event("s", make_event("e5", index=5))
            await other_driver.append_events("s", [make_event("e6")])
            await driver.insert_event("s", make_event("e9", index=9))
        assert follower.seen == [(1, "e1"), (5, "e5"), (6, "e6"), (9, "e9")]

    async def test_follower_that_goes_leaves_the_others(self, driver: SessionPersistDriver) -> None:
        """Ended early or cancelled; and one may come again."""
        await _append(driver, 1, 5)
        brief, cancelled, lasting = (_Follower(driver) for _ in range(3))
        async with patient_group() as group:
            group.start_soon(lasting.run, 10)
            async with anyio.create_task_group() as inner:
                inner.start_soon(brief.run, 2)
                inner.start_soon(cancelled.run)
                await cancelled.has(5)
                inner.cancel_scope.cancel()
            await _append(driver, 6, 10)
        again = _Follower(driver, after=8)
        with anyio.fail_after(PATIENCE):
            await again.run(2)
        assert lasting.seen == _numbered(1, 10)
        assert again.seen == _numbered(9, 10)

    async def test_event_that_a_follower_gets_is_its_own(self, driver: SessionPersistDriver) -> None:
        """Changing an appended event changes neither the received nor the stored one."""
        if Capability.FOLLOW not in driver.capabilities:
            return
        follower = _Follower(driver)
        async with patient_group() as group:
            group.start_soon(follower.run, 2)
            await _append(driver, 1, 1)
            await follower.has(1)
            event = make_event("e2")
            await driver.append_events("s", [event])
            event.id = "changed"
        assert follower.seen == _numbered(1, 2)
        (_, stored) = (await driver.list_events("s")).items
        assert stored.id == "e2"

    async def test_follower_ends_when_the_session_is_deleted(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """Any driver may delete it; a new session of the same id is a different session."""
        if Capability.DELETE not in driver.capabilities:
            return
        for writer in (driver, other_driver):
            await driver.update_session(make_session("s"))
            await writer.append_events("s", [make_event("first"), make_event("second")])
            followers = [_Follower(driver), _Follower(driver, after=1)]
            async with patient_group() as group:
                for follower in followers:
                    group.start_soon(follower.run)
                for follower in followers:
                    await follower.has(2 - follower.after)
                await writer.delete_session("s")
            assert [follower.ended for follower in followers] == [True, True]
            assert [event_id for _, event_id in followers[0].seen] == ["first", "second"]

    async def test_follower_ends_when_the_driver_is_closed(self, driver: SessionPersistDriver) -> None:
        """This ends the followers of all sessions, after the events that were stored before."""
        if Capability.FOLLOW not in driver.capabilities:
            return
        await _append(driver, 1, 3)
        followers: Sequence[_Follower] = [_Follower(driver), _Follower(driver, "unknown")]
        async with patient_group() as group:
            for follower in followers:
                group.start_soon(follower.run)
            await followers[0].has(3)
            await driver.close()
        assert [follower.ended for follower in followers] == [True, True]
        assert followers[0].seen == _numbered(1, 3)
