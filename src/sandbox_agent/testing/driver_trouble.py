"""Section of the suite: retries, foreign cursors, concurrent calls, and calls that fail."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable
from typing import Any

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import Capability, SessionPersistDriver, encode_cursor
from sandbox_agent.testing.driver_data import (
    NASTY_JSON,
    PATIENCE,
    all_events,
    all_sessions,
    ids_of,
    make_event,
    make_session,
    patient_group,
    refusal,
)

# Ids that a store may not support. It refuses those that it can't hold, or does not find them.
_STRANGE_IDS = ("", " ", "\0", "a\0b", "\ud800", "'; DROP TABLE events; --", "{s}", "*", "a/b:c", "é" * 3_000)

# What says that a value can't be held: a simple driver leaves it to the encoder (ValueError).
_REFUSALS = (PersistError, ValueError)


async def _try(call: Awaitable[Any]) -> Any:
    """Return what the call returned, or None where the driver refused it."""
    with contextlib.suppress(*_REFUSALS):
        return await call
    return None


class TroubleSuite:
    """Nothing that a caller does leaves the driver, or a session, unusable."""

    async def test_driver_knows_the_events_of_an_append_whose_outcome_was_unknown(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """Cancelled at any moment and tried again, here or elsewhere, each is stored once."""
        for number in range(30):
            ids = [f"{number}-{part}" for part in "abc"]
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as group:
                    group.start_soon(driver.append_events, "s", [make_event(one) for one in ids])
                    for _ in range(number % 7):
                        await anyio.lowlevel.checkpoint()
                    scope.cancel()
            native = Capability.APPEND in driver.capabilities
            writer = other_driver if native else driver
            retry = [make_event(one) for one in [*ids, f"{number}-d"]]
            await writer.append_events("s", retry)
            stored = {event.id: event.event_index for event in await driver.tail_events("s", limit=8)}
            assert [event.event_index for event in retry] == [stored[event.id] for event in retry]
        events = await all_events(driver, "s")
        assert sorted(event.id for event in events) == sorted(
            f"{number}-{part}" for number in range(30) for part in "abcd"
        )
        assert [event.event_index for event in events] == list(range(1, 121))

    async def test_driver_lists_whatever_the_cursor(self, driver: SessionPersistDriver) -> None:
        """One of another listing, of another store, of nowhere: a page in order, never an error."""
        for number in range(5):
            await driver.update_session(make_session(f"s{number}", created_at=number))
            await driver.append_events("s0", [make_event(f"e{number}", "s0")])
        of_sessions = (await driver.list_sessions(limit=2)).next_cursor
        of_events = (await driver.list_events("s0", limit=2)).next_cursor
        strange = [
            of_sessions,
            of_events,
            *(
                encode_cursor(position, row_id)
                for position in (0, 3, -7, 2**63 - 1, -(2**63))
                for row_id in ("", "é\0")
            ),
            *("k" + part for part in ("LTE6", "OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTo", "//8", "=", "OjoK", "MToB")),
            *(
                "0-0",
                "1-1",
                "(1-1",
                "$",
                "+",
                "-",
                "[1,2]",
                "{}",
                "null",
                "None",
                "1e9",
                "0x10",
                "\ud800",
                "k\ud800",
            ),
            *("-5", "+5", "1.5", " 3", "9" * 500, "eyJhIjoxfQ==", "0", "\n", "%s", "' OR 1=1 --"),
        ]
        for cursor in strange:
            for limit in (None, 2, -1):
                page = await driver.list_events("s0", limit=limit, cursor=cursor)
                assert ids_of(page) == sorted(ids_of(page)), cursor
                records = await driver.list_sessions(limit=limit, cursor=cursor)
                assert [one.id for one in records.items] == sorted(one.id for one in records.items), cursor
                assert (await driver.list_events("unknown", limit=limit, cursor=cursor)).items == []

    async def test_driver_takes_every_id(self, driver: SessionPersistDriver) -> None:
        """Each is a session of its own, or is refused; reading one that is unknown gives nothing."""
        await driver.append_events("s", [make_event("e")])
        for session_id in _STRANGE_IDS:
            assert await _try(driver.get_session(session_id)) is None
            page = await _try(driver.list_events(session_id))
            assert page is None or page.items == []
        kept: list[str] = []
        for session_id in _STRANGE_IDS:
            record = make_session(session_id)
            with contextlib.suppress(*_REFUSALS):
                await driver.update_session(record)
                kept.append(session_id)
        for session_id in kept:
            assert await driver.get_session(session_id) == make_session(session_id)
        for limit in (1, 3):
            assert sorted(one.id for one in await all_sessions(driver, limit=limit)) == sorted(kept)
        for session_id in kept:
            events = [make_event(f"{n} of {session_id}", session_id, payload=b"{}") for n in range(2)]
            await driver.append_events(session_id, events)
            assert await all_events(driver, session_id, limit=1) == events
            with anyio.fail_after(PATIENCE):
                async with contextlib.aclosing(driver.follow_events(session_id)) as followed:
                    assert [await anext(followed) for _ in events] == events
        assert [event.id for event in await all_events(driver, "s")] == ["e"]

    async def test_driver_goes_on_when_calls_were_refused(self, driver: SessionPersistDriver) -> None:
        """The session they were about takes the next ones, numbered on without a hole."""
        native = Capability.APPEND in driver.capabilities
        await driver.update_session(make_session("s"))
        await driver.append_events("other", [make_event("taken", "other")])
        for number in range(5):
            if native:
                for bad in (make_event("taken"), make_event("stray", "other")):
                    await refusal(driver.append_events("s", [make_event("fine"), bad]), PersistError)
                await refusal(driver.insert_event("s", make_event("stray", "other", 99)), PersistError)
            await _try(driver.update_session(make_session("\ud800")))
            event = make_event(f"e{number}")
            await driver.append_events("s", [event])
            assert event.event_index == number + 1
        assert [event.id for event in await all_events(driver, "s")] == [f"e{number}" for number in range(5)]
        assert await driver.get_session("s") == make_session("s")

    async def test_driver_stores_what_is_good_when_it_is_called_with_bad_at_once(
        self, driver: SessionPersistDriver
    ) -> None:
        """One caller's bad event costs no other caller its own."""
        if Capability.APPEND not in driver.capabilities:
            return
        await driver.append_events("other", [make_event("taken", "other")])
        good = [make_event(f"good-{number}") for number in range(20)]

        async with anyio.create_task_group() as group:
            for number, event in enumerate(good):
                group.start_soon(driver.append_events, "s", [event])
                if number % 3 == 0:
                    group.start_soon(
                        _try, driver.append_events("s", [make_event(f"fine-{number}"), make_event("taken")])
                    )
        assert sorted(event.event_index for event in good) == list(range(1, 21))
        events = await all_events(driver, "s")
        assert sorted(event.id for event in events) == sorted(event.id for event in good)

    async def test_driver_serves_many_sessions_at_once(
        self, driver: SessionPersistDriver, other_driver: SessionPersistDriver
    ) -> None:
        """Records, appends, reading and deleting, each session apart."""
        native = Capability.APPEND in driver.capabilities
        drivers = [driver, other_driver if native else driver]

        async def live(number: int) -> None:
            session_id, mine = f"s{number}", drivers[number % 2]
            for turn in range(5):
                await mine.update_session(make_session(session_id, created_at=number, agent=f"a{turn}"))
                events = [make_event(f"{number}-{turn}-{part}", session_id) for part in range(4)]
                await mine.append_events(session_id, events)
                assert [event.event_index for event in events] == list(range(turn * 4 + 1, turn * 4 + 5))
                assert await mine.tail_events(session_id, limit=4) == events
            if number % 5 == 4 and Capability.DELETE in mine.capabilities:
                await mine.delete_session(session_id)

        async with patient_group() as group:
            for number in range(20):
                group.start_soon(live, number)
        gone = {4, 9, 14, 19} if Capability.DELETE in driver.capabilities else set[int]()
        expected = [f"s{number}" for number in range(20) if number not in gone]
        assert [one.id for one in await all_sessions(driver, limit=7)] == expected
        for number in range(20):
            events = await all_events(driver, f"s{number}", limit=9)
            count = 0 if number in gone else 20
            assert [event.event_index for event in events] == list(range(1, count + 1))

    async def test_driver_gives_the_bytes_of_an_envelope_back(self, driver: SessionPersistDriver) -> None:
        """Escapes, spaces, order and doubled members included, however they were stored and are read."""
        odd = b'{ "jsonrpc":"2.0", "b":1.0, "a":"\\u00e9 \\ud800 \\u0000 \\/", "a":2, "n":1E400 }'
        await driver.append_events("s", [make_event("e1", payload=odd), make_event("e2", payload=NASTY_JSON)])
        await driver.insert_event("s", make_event("e3", index=3, payload=odd))
        expected = [odd, NASTY_JSON, odd]
        assert [event.payload_json for event in await all_events(driver, "s")] == expected
        assert [event.payload_json for event in await driver.tail_events("s", limit=3)] == expected
