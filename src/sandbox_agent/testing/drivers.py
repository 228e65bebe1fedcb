"""The conformance suite of persist drivers.

A driver's author subclasses it in a test module, gives a fixture named ``driver``, and has pytest run
coroutine tests (anyio's plugin)::

    import pytest
    from sandbox_agent.testing.drivers import SessionPersistDriverSuite

    pytestmark = pytest.mark.anyio

    class TestMyDriver(SessionPersistDriverSuite):
        @pytest.fixture
        async def driver(self):
            driver = MyDriver()
            yield driver
            await driver.close()

The store behind the fixture is empty, and keeps at least 1,000 events of a session. What a driver does
not declare in ``capabilities`` is tested through the slower defaults, so the suite is the same for all.
For assertions that show their values, call
``pytest.register_assert_rewrite("sandbox_agent.testing.drivers")`` in a conftest before the import.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import DEFAULT_LIST_LIMIT, Capability, SessionPersistDriver
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

__all__ = ["SessionPersistDriverSuite", "all_events", "all_sessions", "make_event", "make_session"]

# Text that a store may spoil: quotes, beyond the BMP, a null character, separators of JavaScript, and an
# escaped lone surrogate, which is JSON that no strict UTF-8 text can hold.
_NASTY_JSON = (
    b'{"jsonrpc":"2.0","method":"session/update","params":{"a":"\\u0000 \\ud800 \\"q\\" \'s\'",'
    b'"b":"\xf0\x9f\xa6\x80 \xe2\x80\xa8 \xc3\xa9","big":123456789012345678901234567890,"f":1e-7,'
    b'"nested":{"deep":[[[[null,true,false]]]]},"sp":  [ 1 , 2 ]}}'
)


def make_session(session_id: str, *, created_at: int = 1_700_000_000_000, **fields: Any) -> SessionRecord:
    """Return a record with plausible fields; ``fields`` replace or add some."""
    values: dict[str, Any] = {
        "id": session_id,
        "agent": "mock",
        "agent_session_id": f"agent-{session_id}",
        "last_connection_id": "connection-1",
        "created_at": created_at,
        **fields,
    }
    return SessionRecord(**values)


def make_event(
    event_id: str, session_id: str = "s", index: int = 0, *, payload: bytes | None = None
) -> SessionEvent:
    """Return an event of the agent's; its payload names its id unless given."""
    return SessionEvent(
        event_id,
        index,
        session_id,
        1_700_000_000_000 + index,
        "connection-1",
        "agent",
        payload or b'{"jsonrpc":"2.0","method":"session/update","params":{"event":"%s"}}' % event_id.encode(),
    )


async def all_events(
    driver: SessionPersistDriver, session_id: str, *, limit: int | None = None
) -> list[SessionEvent]:
    """Return the session's events, page by page."""
    events: list[SessionEvent] = []
    cursor: str | None = None
    while True:
        page = await driver.list_events(session_id, limit=limit, cursor=cursor)
        events += page.items
        cursor = page.next_cursor
        if cursor is None:
            return events


async def all_sessions(driver: SessionPersistDriver, *, limit: int | None = None) -> list[SessionRecord]:
    """Return the records, page by page."""
    sessions: list[SessionRecord] = []
    cursor: str | None = None
    while True:
        page = await driver.list_sessions(limit=limit, cursor=cursor)
        sessions += page.items
        cursor = page.next_cursor
        if cursor is None:
            return sessions


def _ids(page: ListPage[SessionEvent]) -> list[str]:
    return [event.id for event in page.items]


async def _refusal(call: Awaitable[object], expected: type[Exception]) -> Exception:
    try:
        await call
    except expected as error:
        return error
    raise AssertionError(f"expected {expected.__name__}, nothing was raised")


class SessionPersistDriverSuite:
    """What every persist driver keeps to; see the module's docstring for its use."""

    # Records.

    async def test_driver_returns_none_when_the_session_is_unknown(
        self, driver: SessionPersistDriver
    ) -> None:
        """An unknown id is no error."""
        assert await driver.get_session("nobody") is None

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

    async def test_driver_tells_absent_fields_from_empty_ones(self, driver: SessionPersistDriver) -> None:
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
        """Changing what went in or came out changes nothing that is stored."""
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
        """Across pages, each once."""
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
        event = SessionEvent("e-é-'1'", 7, "s", 1_700_000_000_123, "c-\U0001f980", "client", _NASTY_JSON)
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
        assert await driver.list_events("nobody") == ListPage([], None)

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
        assert _ids(second) == ["e2", "e3"]
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
            assert _ids(await driver.list_events("s", cursor=cursor)) == ["e0", "e1", "e2"], cursor
            assert len((await driver.list_sessions(cursor=cursor)).items) == 1, cursor

    async def test_driver_goes_on_from_an_offset_of_a_peers_driver(
        self, driver: SessionPersistDriver
    ) -> None:
        """A decimal cursor counts rows; one beyond the end gives an empty page."""
        await driver.append_events("s", [make_event(f"e{n}") for n in range(7)])
        page = await driver.list_events("s", limit=2, cursor="3")
        assert _ids(page) == ["e3", "e4"]
        page = await driver.list_events("s", limit=2, cursor=page.next_cursor)
        assert _ids(page) == ["e5", "e6"]
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
        assert _ids(rest) == ["e25", "e30", "e40", "new"]

    # Appending.

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
            await _refusal(
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
        error = await _refusal(driver.insert_event("s", make_event("b", index=1)), PersistError)
        assert isinstance(error, PersistError)
        assert error.session_id == "s"
        assert [event.id for event in await all_events(driver, "s")] == ["a"]

    # The tail.

    async def test_driver_gives_the_newest_events_in_order(self, driver: SessionPersistDriver) -> None:
        """As many as asked for, or all that there are; none for none."""
        await driver.append_events("s", [make_event(f"e{n}") for n in range(150)])
        for limit in (1, 7, 100, 149, 150, 1_000, 2**40):
            tail = await driver.tail_events("s", limit=limit)
            assert [event.event_index for event in tail] == list(range(max(1, 151 - limit), 151))
        assert await driver.tail_events("s", limit=0) == []
        assert await driver.tail_events("s", limit=-3) == []
        assert await driver.tail_events("nobody", limit=5) == []

    async def test_driver_gives_the_last_index(self, driver: SessionPersistDriver) -> None:
        """0 where there is no event."""
        assert await driver.last_event_index("s") == 0
        await driver.append_events("s", [make_event(f"e{n}") for n in range(3)])
        assert await driver.last_event_index("s") == 3

    # Deleting and closing.

    async def test_driver_erases_a_session_and_leaves_the_others(self, driver: SessionPersistDriver) -> None:
        """Record and events; an unknown session is no error; a driver that can't says so."""
        for session_id in ("a", "b"):
            await driver.update_session(make_session(session_id))
            await driver.append_events(session_id, [make_event(f"of-{session_id}", session_id)])
        if Capability.DELETE not in driver.capabilities:
            await _refusal(driver.delete_session("a"), NotImplementedError)
            return
        await driver.delete_session("a")
        await driver.delete_session("nobody")
        assert await driver.get_session("a") is None
        assert await driver.list_events("a") == ListPage([], None)
        assert await driver.last_event_index("a") == 0
        assert [one.id for one in await all_sessions(driver)] == ["b"]
        assert [event.id for event in await all_events(driver, "b")] == ["of-b"]

    async def test_driver_closes_twice_without_complaint(self, driver: SessionPersistDriver) -> None:
        """The fixture closes it once more."""
        await driver.update_session(make_session("s"))
        await driver.close()
        await driver.close()
