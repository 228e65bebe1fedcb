"""Section of the suite: rows come back as they were stored, page by page, until they are deleted."""

from __future__ import annotations

from sandbox_agent.persist.base import DEFAULT_LIST_LIMIT, Capability, SessionPersistDriver
from sandbox_agent.testing.driver_data import (
    NASTY_JSON,
    all_events,
    all_sessions,
    ids_of,
    make_event,
    make_session,
    refusal,
)
from sandbox_agent.wire.records import ListPage, SessionEvent


class RowsSuite:
    """Records and events, their listings, the newest events, deletion and closing."""

    # Records.

    async def test_driver_returns_none_when_the_session_is_unknown(
        self, driver: SessionPersistDriver
    ) -> None:
        """An unknown id is no error."""
        assert await driver.get_session("unknown") is None

    async def test_driver_returns_every_field_of_a_full_record(self, driver: SessionPersistDriver) -> None:
        """Optional fields and nested values come back equal."""
        record = make_session(
            "full \U0001f980 'quoted' \u2028",
            destroyed_at=1_700_000_000_001,
            sandbox_id="local/127.0.0.1:2468",
            session_init={"cwd": "/w", "mcpServers": [{"name": "é", "args": ["-v"]}]},
            config_options=[{"id": "model", "currentValue": "x", "options": [{"value": None}]}],
            modes={"currentModeId": "ask", "availableModes": []},
        )
        await driver.update_session(record)
        assert await driver.get_session(record.id) == record
        assert (await driver.list_sessions()).items == [record]

    async def test_driver_distinguishes_absent_fields_from_empty_ones(
        self, driver: SessionPersistDriver
    ) -> None:
        """None stays None; an empty dict or list stays what it is."""
        bare = make_session("bare")
        empty = make_session("empty", session_init={}, config_options=[], modes={}, destroyed_at=0)
        await driver.update_session(bare)
        await driver.update_session(empty)
        assert await driver.get_session("bare") == bare
        assert await driver.get_session("empty") == empty

    async def test_driver_replaces_the_record_when_its_id_is_known(
        self, driver: SessionPersistDriver
    ) -> None:
        """A field that is None in the new record is gone."""
        await driver.update_session(make_session("s", sandbox_id="a", modes={"x": 1}))
        newer = make_session("s", created_at=5, agent="claude")
        await driver.update_session(newer)
        assert await driver.get_session("s") == newer
        assert (await driver.list_sessions()).items == [newer]

    async def test_driver_keeps_its_own_copy_of_a_record(self, driver: SessionPersistDriver) -> None:
        """Changing a record that was stored or returned does not change what is stored."""
        record = make_session("s", session_init={"cwd": "/w"})
        await driver.update_session(record)
        record.agent = "changed"
        assert record.session_init is not None
        record.session_init["cwd"] = "/changed"
        taken = await driver.get_session("s")
        assert taken == make_session("s", session_init={"cwd": "/w"})
        assert taken is not None
        assert taken.session_init is not None
        taken.session_init["cwd"] = "/changed"
        assert await driver.get_session("s") == make_session("s", session_init={"cwd": "/w"})

    async def test_driver_lists_sessions_by_creation_then_id(self, driver: SessionPersistDriver) -> None:
        """Each once, across pages."""
        for session_id, created_at in (("b", 2), ("a", 2), ("z", 1), ("c", 3), ("d", 2)):
            await driver.update_session(make_session(session_id, created_at=created_at))
        for limit in (1, 2, 5, 100):
            assert [one.id for one in await all_sessions(driver, limit=limit)] == ["z", "a", "b", "d", "c"]

    async def test_driver_repeats_no_session_when_one_is_made_between_pages(
        self, driver: SessionPersistDriver
    ) -> None:
        """Cursors mark a place in the order, not a count."""
        for number in range(4):
            await driver.update_session(make_session(f"s{number}", created_at=10 + number))
        first = await driver.list_sessions(limit=2)
        await driver.update_session(make_session("earlier", created_at=1))
        await driver.update_session(make_session("later", created_at=99))
        rest = await driver.list_sessions(limit=100, cursor=first.next_cursor)
        assert [one.id for one in rest.items] == ["s2", "s3", "later"]

    # Events.

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

    async def test_driver_returns_no_cursor_when_the_page_ends_exactly(
        self, driver: SessionPersistDriver
    ) -> None:
        """A full last page is the last page."""
        await driver.append_events("s", [make_event(f"e{n}") for n in range(4)])
        first = await driver.list_events("s", limit=2)
        assert first.next_cursor is not None
        second = await driver.list_events("s", limit=2, cursor=first.next_cursor)
        assert ids_of(second) == ["e2", "e3"]
        assert second.next_cursor is None

    async def test_driver_uses_the_default_limit_when_the_limit_is_invalid(
        self, driver: SessionPersistDriver
    ) -> None:
        """Zero, negative and absurd sizes."""
        await driver.append_events("s", [make_event(f"e{n}") for n in range(DEFAULT_LIST_LIMIT + 5)])
        for limit in (None, 0, -1, -(2**70), 2**70):
            page = await driver.list_events("s", limit=limit)
            assert len(page.items) == DEFAULT_LIST_LIMIT
            assert page.next_cursor is not None

    async def test_driver_lists_from_the_beginning_when_the_cursor_is_invalid(
        self, driver: SessionPersistDriver
    ) -> None:
        """It raises no error, like the TypeScript drivers."""
        await driver.append_events("s", [make_event(f"e{n}") for n in range(3)])
        await driver.update_session(make_session("s"))
        for cursor in ("", "0", "-1", "abc", "k", "k!!!!", "k" + "A" * 5000, "9x", "\u0663", "é" * 40, "\0"):
            assert ids_of(await driver.list_events("s", cursor=cursor)) == ["e0", "e1", "e2"], cursor
            assert len((await driver.list_sessions(cursor=cursor)).items) == 1, cursor

    async def test_driver_continues_at_an_offset_of_a_typescript_driver(
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
        """Rows before the cursor's position are not listed; rows after it are, once."""
        for index in (10, 20, 30, 40):
            await driver.insert_event("s", make_event(f"e{index}", index=index))
        first = await driver.list_events("s", limit=2)
        await driver.insert_event("s", make_event("e5", index=5))
        await driver.insert_event("s", make_event("e25", index=25))
        await driver.append_events("s", [make_event("new")])
        rest = await driver.list_events("s", limit=100, cursor=first.next_cursor)
        assert ids_of(rest) == ["e25", "e30", "e40", "new"]

    # The newest events.

    async def test_driver_returns_the_newest_events_in_order(self, driver: SessionPersistDriver) -> None:
        """Up to the limit; none for a limit below 1."""
        await driver.append_events("s", [make_event(f"e{n}") for n in range(150)])
        for limit in (1, 7, 100, 149, 150, 1_000, 2**40):
            tail = await driver.tail_events("s", limit=limit)
            assert [event.event_index for event in tail] == list(range(max(1, 151 - limit), 151))
        assert await driver.tail_events("s", limit=0) == []
        assert await driver.tail_events("s", limit=-3) == []
        assert await driver.tail_events("unknown", limit=5) == []

    async def test_driver_returns_the_last_index(self, driver: SessionPersistDriver) -> None:
        """0 where there is no event."""
        assert await driver.last_event_index("s") == 0
        await driver.append_events("s", [make_event(f"e{n}") for n in range(3)])
        assert await driver.last_event_index("s") == 3

    # Deleting and closing.

    async def test_driver_erases_a_session_and_leaves_the_others(self, driver: SessionPersistDriver) -> None:
        """Record and events. An unknown session is no error; a driver that can't delete raises."""
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

    async def test_driver_can_be_closed_twice(self, driver: SessionPersistDriver) -> None:
        """The fixture closes it once more."""
        await driver.update_session(make_session("s"))
        await driver.close()
        await driver.close()
