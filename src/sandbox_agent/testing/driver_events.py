"""Section of the suite: events and their listing."""

from __future__ import annotations

from sandbox_agent.persist.base import DEFAULT_LIST_LIMIT, SessionPersistDriver
from sandbox_agent.testing.driver_data import NASTY_JSON, all_events, ids_of, make_event, make_session
from sandbox_agent.wire.records import ListPage, SessionEvent


class EventsSuite:
    """Events come back as they were kept, page by page."""

    async def test_driver_returns_an_event_as_it_was_inserted(self, driver: SessionPersistDriver) -> None:
        """Every field, and the envelope's value, whatever text is in it."""
        event = SessionEvent("e-é-'1'", 7, "s", 1_700_000_000_123, "c-\U0001f980", "client", NASTY_JSON)
        await driver.insert_event("s", event)
        (stored,) = (await driver.list_events("s")).items
        assert stored == event
        assert stored.event_index == 7

    async def test_driver_replaces_the_event_when_its_id_is_known(self, driver: SessionPersistDriver) -> None:
        """As the TypeScript drivers do."""
        await driver.insert_event("s", make_event("e", index=1))
        newer = make_event("e", index=2, payload=b'{"jsonrpc":"2.0","id":1,"result":{}}')
        await driver.insert_event("s", newer)
        assert (await driver.list_events("s")).items == [newer]

    async def test_driver_lists_no_events_when_the_session_has_none(
        self, driver: SessionPersistDriver
    ) -> None:
        """A page that is empty and the last."""
        assert await driver.list_events("unknown") == ListPage([], None)

    async def test_driver_lists_events_by_index_across_pages(self, driver: SessionPersistDriver) -> None:
        """Each once, in order, whatever the order of insertion and the page size; other sessions apart."""
        for index in (3, 1, 11, 2, 10, 7):
            await driver.insert_event("s", make_event(f"e{index}", index=index))
        await driver.insert_event("other", make_event("x", "other", 5))
        for limit in (1, 2, 3, 6, 100):
            assert [one.event_index for one in await all_events(driver, "s", limit=limit)] == [
                1,
                2,
                3,
                7,
                10,
                11,
            ]

    async def test_driver_gives_no_cursor_when_the_page_ends_exactly(
        self, driver: SessionPersistDriver
    ) -> None:
        """A full last page is the last page."""
        await driver.append_events("s", [make_event(f"e{n}") for n in range(4)])
        first = await driver.list_events("s", limit=2)
        assert first.next_cursor is not None
        second = await driver.list_events("s", limit=2, cursor=first.next_cursor)
        assert ids_of(second) == ["e2", "e3"]
        assert second.next_cursor is None

    async def test_driver_falls_back_to_the_default_limit_when_it_is_senseless(
        self, driver: SessionPersistDriver
    ) -> None:
        """Zero, negative and absurd sizes."""
        await driver.append_events("s", [make_event(f"e{n}") for n in range(DEFAULT_LIST_LIMIT + 5)])
        for limit in (None, 0, -1, -(2**70), 2**70):
            page = await driver.list_events("s", limit=limit)
            assert len(page.items) == DEFAULT_LIST_LIMIT
            assert page.next_cursor is not None

    async def test_driver_begins_anew_when_the_cursor_is_a_strangers(
        self, driver: SessionPersistDriver
    ) -> None:
        """No error, as the TypeScript drivers do."""
        await driver.append_events("s", [make_event(f"e{n}") for n in range(3)])
        await driver.update_session(make_session("s"))
        for cursor in ("", "0", "-1", "abc", "k", "k!!!!", "k" + "A" * 5000, "9x", "\u0663", "é" * 40, "\0"):
            assert ids_of(await driver.list_events("s", cursor=cursor)) == ["e0", "e1", "e2"], cursor
            assert len((await driver.list_sessions(cursor=cursor)).items) == 1, cursor

    async def test_driver_goes_on_from_an_offset_of_a_peers_driver(
        self, driver: SessionPersistDriver
    ) -> None:
        """A decimal cursor counts rows; one beyond the end gives an empty page."""
        await driver.append_events("s", [make_event(f"e{n}") for n in range(7)])
        page = await driver.list_events("s", limit=2, cursor="3")
        assert ids_of(page) == ["e3", "e4"]
        page = await driver.list_events("s", limit=2, cursor=page.next_cursor)
        assert ids_of(page) == ["e5", "e6"]
        for beyond in ("7", "1000000", "9" * 19):
            assert await driver.list_events("s", cursor=beyond) == ListPage([], None)

    async def test_driver_neither_repeats_nor_misses_an_event_when_more_come_between_pages(
        self, driver: SessionPersistDriver
    ) -> None:
        """What comes behind the cursor's place is not seen; what comes after it is, once."""
        for index in (10, 20, 30, 40):
            await driver.insert_event("s", make_event(f"e{index}", index=index))
        first = await driver.list_events("s", limit=2)
        await driver.insert_event("s", make_event("e5", index=5))
        await driver.insert_event("s", make_event("e25", index=25))
        await driver.append_events("s", [make_event("new")])
        rest = await driver.list_events("s", limit=100, cursor=first.next_cursor)
        assert ids_of(rest) == ["e25", "e30", "e40", "new"]
