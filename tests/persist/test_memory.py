"""What the in-memory driver does beyond the suite: it is bounded."""

from __future__ import annotations

import pytest

from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.testing.drivers import all_events, all_sessions, make_event, make_session
from sandbox_agent.wire.records import ListPage

pytestmark = pytest.mark.anyio


async def test_memory_drops_the_oldest_events_and_numbers_on() -> None:
    driver = InMemorySessionPersistDriver(max_events_per_session=3)
    events = [make_event(f"e{number}") for number in range(5)]
    await driver.append_events("s", events)
    assert [event.event_index for event in events] == [1, 2, 3, 4, 5]
    assert [event.event_index for event in await all_events(driver, "s")] == [3, 4, 5]
    event = make_event("next")
    await driver.append_events("s", [event])
    assert event.event_index == 6
    assert [one.id for one in await driver.tail_events("s", limit=10)] == ["e3", "e4", "next"]
    assert await driver.last_event_index("s") == 6


async def test_memory_numbers_a_batch_larger_than_its_bound() -> None:
    driver = InMemorySessionPersistDriver(max_events_per_session=1)
    await driver.append_events("s", [make_event(f"e{number}") for number in range(10)])
    assert [(one.id, one.event_index) for one in await all_events(driver, "s")] == [("e9", 10)]


async def test_memory_drops_the_oldest_session_with_its_events() -> None:
    driver = InMemorySessionPersistDriver(max_sessions=2)
    for session_id, created_at in (("young", 3), ("old", 1), ("b", 2), ("a", 2)):
        await driver.update_session(make_session(session_id, created_at=created_at))
        await driver.append_events(session_id, [make_event(f"of-{session_id}", session_id)])
    assert [session.id for session in await all_sessions(driver)] == ["b", "young"]
    assert await driver.get_session("old") is None
    assert await driver.list_events("old") == ListPage([], None)


async def test_memory_stays_bounded_when_sessions_without_a_record_talk_on() -> None:
    driver = InMemorySessionPersistDriver(max_sessions=2)
    await driver.update_session(make_session("kept"))
    await driver.append_events("kept", [make_event("of-kept", "kept")])
    for number in range(100):
        await driver.append_events(f"s{number}", [make_event(f"e{number}", f"s{number}")])
    with_events = [n for n in range(100) if (await driver.list_events(f"s{n}")).items]
    assert with_events == [97, 98, 99]
    assert [event.id for event in await all_events(driver, "kept")] == ["of-kept"]


async def test_memory_keeps_its_own_copy_of_an_event() -> None:
    driver = InMemorySessionPersistDriver()
    event = make_event("e")
    await driver.append_events("s", [event])
    event.sender = "client"
    (taken,) = (await driver.list_events("s")).items
    assert taken.sender == "agent"
    taken.payload["method"] = "changed"
    assert (await driver.tail_events("s", limit=1))[0].payload["method"] == "session/update"


@pytest.mark.parametrize("bounds", [{"max_sessions": 0}, {"max_events_per_session": -1}])
def test_memory_refuses_a_bound_below_one(bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        InMemorySessionPersistDriver(**bounds)
