"""Section of the suite: a session has one writer, the last that claimed it."""

from __future__ import annotations

import itertools

import anyio

from sandbox_agent.errors import SessionFencedError
from sandbox_agent.persist.base import UNFENCED, Capability, SessionPersistDriver
from sandbox_agent.testing.driver_data import all_events, make_event, make_session, refusal
from sandbox_agent.wire.records import ListPage

# How long a test waits for what must happen, in seconds.
_PATIENCE = 30.0


class FencingSuite:
    """An older generation is refused; what two writers store is never interleaved."""

    async def test_driver_that_cannot_fence_refuses_nobody(self, driver: SessionPersistDriver) -> None:
        """It says UNFENCED to everyone."""
        if Capability.FENCE in driver.capabilities:
            return
        assert await driver.claim_session("s") == UNFENCED
        assert await driver.claim_session("s") == UNFENCED
        await driver.append_events("s", [make_event("e")], generation=UNFENCED)
        await driver.save_session(make_session("s"), generation=UNFENCED)
        assert await driver.get_session("s") == make_session("s")

    async def test_driver_gives_every_claim_a_higher_generation(
        self, driver: SessionPersistDriver, second_driver: SessionPersistDriver | None
    ) -> None:
        """For all claimants, stored and new sessions, and concurrent claims."""
        if Capability.FENCE not in driver.capabilities:
            return
        other = second_driver or driver
        claims = [await driver.claim_session("s"), await other.claim_session("s")]
        await driver.update_session(make_session("s"))
        claims += [await other.claim_session("s"), await driver.claim_session("s")]
        assert claims == sorted(set(claims))
        assert claims[0] > UNFENCED
        at_once: list[int] = []

        async def claim(which: SessionPersistDriver) -> None:
            at_once.append(await which.claim_session("s"))

        async with anyio.create_task_group() as group:
            for which in [driver, other] * 5:
                group.start_soon(claim, which)
        assert len(set(at_once)) == 10
        assert min(at_once) > claims[-1]
        for generation in sorted(at_once)[:-1]:
            await refusal(
                driver.append_events("s", [make_event("late")], generation=generation), SessionFencedError
            )
        await driver.append_events("s", [make_event("e")], generation=max(at_once))

    async def test_driver_refuses_a_writer_whose_session_was_claimed_since(
        self, driver: SessionPersistDriver, second_driver: SessionPersistDriver | None
    ) -> None:
        """Nothing of its call is stored, and its events are not numbered; the new writer goes on."""
        if Capability.FENCE not in driver.capabilities:
            return
        other = second_driver or driver
        old = await driver.claim_session("s")
        await driver.save_session(make_session("s"), generation=old)
        await driver.append_events("s", [make_event("a"), make_event("b")], generation=old)
        new = await other.claim_session("s")
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
        await other.append_events("s", [after], generation=new)
        assert after.event_index == 3
        await other.save_session(make_session("s", agent="codex"), generation=new)
        assert await driver.get_session("s") == make_session("s", agent="codex")
        assert [event.id for event in await all_events(driver, "s")] == ["a", "b", "c"]

    async def test_driver_lets_those_write_that_claimed_nothing(self, driver: SessionPersistDriver) -> None:
        """UNFENCED is never refused, and takes no claim away."""
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
        """A claim of another session takes nothing away."""
        if Capability.FENCE not in driver.capabilities:
            return
        generation = await driver.claim_session("a")
        await driver.claim_session("b")
        await driver.claim_session("b")
        await driver.append_events("a", [make_event("e", "a")], generation=generation)
        assert [event.id for event in await all_events(driver, "a")] == ["e"]

    async def test_driver_refuses_the_old_writer_of_a_session_that_was_made_anew(
        self, driver: SessionPersistDriver, second_driver: SessionPersistDriver | None
    ) -> None:
        """Deleting a session does not forget who may not write it."""
        if not {Capability.FENCE, Capability.DELETE} <= driver.capabilities:
            return
        other = second_driver or driver
        old = await driver.claim_session("s")
        await driver.save_session(make_session("s"), generation=old)
        await driver.append_events("s", [make_event("old")], generation=old)
        await other.delete_session("s")
        new = await other.claim_session("s")
        assert new > old
        await other.save_session(make_session("s", agent="new"), generation=new)
        await refusal(driver.append_events("s", [make_event("late")], generation=old), SessionFencedError)
        await refusal(driver.save_session(make_session("s"), generation=old), SessionFencedError)
        assert await other.list_events("s") == ListPage([], None)
        event = make_event("new")
        await other.append_events("s", [event], generation=new)
        assert event.event_index == 1
        assert await driver.get_session("s") == make_session("s", agent="new")

    async def test_driver_never_interleaves_two_writers(
        self, driver: SessionPersistDriver, second_driver: SessionPersistDriver | None
    ) -> None:
        """What the old one was acknowledged comes first, then only the new one's; indexes have no hole."""
        if Capability.FENCE not in driver.capabilities:
            return
        other = second_driver or driver
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
            generation = await other.claim_session("s")
            claimed.set()
            for number in range(20):
                batch = [make_event(f"new-{number}-{part}") for part in "ab"]
                await other.append_events("s", batch, generation=generation)

        with anyio.fail_after(_PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(write_until_refused)
                group.start_soon(take_over)
        events = await all_events(driver, "s")
        assert [event.event_index for event in events] == list(range(1, len(events) + 1))
        assert [event.id for event in events] == [
            *acknowledged,
            *(f"new-{number}-{part}" for number in range(20) for part in "ab"),
        ]
