"""A reader's place in the history, over the in-memory store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest

from sandbox_agent import (
    InMemorySessionPersistDriver,
    ListPage,
    SandboxAgentError,
    SessionEvent,
    SessionPersistDriver,
)
from sandbox_agent.client import viewer as viewer_module
from sandbox_agent.client.viewer import Viewer

pytestmark = pytest.mark.anyio


async def store(driver: InMemorySessionPersistDriver, count: int) -> list[SessionEvent]:
    """Append events and return them."""
    first = await driver.last_event_index("s") + 1
    events = [
        SessionEvent(f"e{number:06d}", 0, "s", 1, "c", "agent", b"{}")
        for number in range(first, first + count)
    ]
    await driver.append_events("s", events)
    return events


async def indexes(reader: Viewer) -> list[int]:
    """Read to the end."""
    return [event.event_index async for event in reader]


@pytest.mark.parametrize("after", [0, 1, 499, 500, 501, 1199, 1200, 5000])
async def test_it_begins_after_its_position_over_pages(after: int) -> None:
    driver = InMemorySessionPersistDriver(max_events_per_session=2000)
    await store(driver, 1200)
    reader = Viewer(driver, "s", after, live=False)
    reader.close()
    assert await indexes(reader) == list(range(after + 1, 1201))


async def test_what_is_stored_and_pushed_while_it_reads_comes_once() -> None:
    driver = InMemorySessionPersistDriver(max_events_per_session=5000)
    await store(driver, 1000)
    reader = Viewer(driver, "s", 0, live=False)
    seen = [(await anext(reader)).event_index]
    reader.push(await store(driver, 700))
    seen.append((await anext(reader)).event_index)
    reader.push(await store(driver, 10))
    reader.close()
    assert seen + await indexes(reader) == list(range(1, 1711))


async def test_a_live_one_begins_with_what_is_pushed() -> None:
    driver = InMemorySessionPersistDriver()
    await store(driver, 5)
    reader = Viewer(driver, "s", 0, live=True)
    reader.push(await store(driver, 2))
    reader.close()
    assert await indexes(reader) == [6, 7]


async def test_a_live_one_of_a_new_session_skips_nothing() -> None:
    driver = InMemorySessionPersistDriver()
    reader = Viewer(driver, "s", 0, live=True)
    for _ in range(3):
        reader.push(await store(driver, 2))
    reader.close()
    assert await indexes(reader) == [1, 2, 3, 4, 5, 6]


async def fall_behind(driver: InMemorySessionPersistDriver, reader: Viewer, batches: Sequence[int]) -> None:
    """Store and push more than a reader keeps."""
    for count in batches:
        reader.push(await store(driver, count))


async def test_one_that_fell_behind_reads_on_from_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_module, "MAX_BACKLOG", 10)
    driver = InMemorySessionPersistDriver(max_events_per_session=5000)
    await store(driver, 3)
    reader = Viewer(driver, "s", 0, live=True)
    await fall_behind(driver, reader, [4, 4, 4, 4, 600])
    reader.close()
    assert await indexes(reader) == list(range(4, 620))


async def test_one_that_fell_behind_what_is_kept_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_module, "MAX_BACKLOG", 10)
    driver = InMemorySessionPersistDriver(max_events_per_session=20)
    reader = Viewer(driver, "s", 0, live=True)
    await fall_behind(driver, reader, [5, 5, 50])
    with pytest.raises(SandboxAgentError, match="events 1 to 40 of session 's' are no longer in the store"):
        await anext(reader)


async def test_a_notice_passes_through() -> None:
    driver = InMemorySessionPersistDriver()
    reader = Viewer(driver, "s", 0, live=True)
    reader.push(await store(driver, 1))
    reader.push([SessionEvent("n", 0, "s", 1, "c", "client", b'{"method":"_sandbox_agent/persist_failed"}')])
    reader.close()
    assert await indexes(reader) == [1, 0]


class OffsetDriver(InMemorySessionPersistDriver):
    """A driver of five methods whose cursors are its own."""

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        start = int(cursor.removeprefix("offset ")) if cursor else 0
        events = (await super().list_events(session_id, limit=10_000)).items
        end = start + (limit or 100)
        return ListPage(events[start:end], f"offset {end}" if end < len(events) else None)

    def cursor_after(self, event_index: int, /) -> str:
        cursor = SessionPersistDriver.cursor_after(self, event_index)
        return cast("str", cursor)


@pytest.mark.parametrize("after", [-5, 0, 1, 700, 5000])
async def test_a_driver_may_have_cursors_of_its_own(after: int) -> None:
    driver = OffsetDriver(max_events_per_session=2000)
    await store(driver, 1200)
    reader = Viewer(driver, "s", after, live=False)
    reader.close()
    assert await indexes(reader) == list(range(max(after, 0) + 1, 1201))


async def test_a_backlog_of_large_events_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(viewer_module, "MAX_BACKLOG_BYTES", 100)
    driver = InMemorySessionPersistDriver()
    lists = 0

    async def list_events(*args: Any, **options: Any) -> ListPage[SessionEvent]:
        nonlocal lists
        lists += 1
        return await InMemorySessionPersistDriver.list_events(driver, *args, **options)

    monkeypatch.setattr(driver, "list_events", list_events)
    reader = Viewer(driver, "s", 0, live=True)
    for _ in range(50):
        reader.push(await store(driver, 1))
    assert [(await anext(reader)).event_index for _ in range(50)] == list(range(1, 51))
    assert lists == 0
    for _ in range(60):
        reader.push(await store(driver, 1))
    reader.close()
    assert await indexes(reader) == list(range(51, 111))
    assert lists == 1
