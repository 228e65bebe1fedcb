"""The check behind the faulty gateway finds what it is for."""

from __future__ import annotations

import pytest

from sandbox_agent import InMemorySessionPersistDriver, SessionEvent, SessionRecord
from tests.client.checks import find_repeated_events

pytestmark = pytest.mark.anyio

RECORD = SessionRecord(id="s", agent="mock", agent_session_id="a", last_connection_id="c", created_at=1)


def event(index: int, event_id: str, payload: bytes = b'{"id":1,"result":{}}') -> SessionEvent:
    return SessionEvent(event_id, index, "s", 1, "c", "agent", payload)


@pytest.mark.parametrize(
    ("events", "is_found"),
    [
        ([event(1, "a"), event(2, "b", b'{"method":"x"}'), event(3, "c", b'{"method":"x"}')], False),
        ([event(1, "a"), event(3, "b", b'{"method":"x"}')], True),  # a hole
        ([event(1, "a"), event(2, "b")], True),  # one response under two ids
    ],
)
async def test_a_repeated_event_or_a_hole_is_found(events: list[SessionEvent], is_found: bool) -> None:
    driver = InMemorySessionPersistDriver()
    await driver.update_session(RECORD)
    for each in events:
        await driver.insert_event("s", each)
    assert bool(await find_repeated_events(driver)) == is_found
