"""Section of the suite: session records."""

from __future__ import annotations

from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.testing.driver_data import all_sessions, make_session


class RecordsSuite:
    """Records come back as they were kept, and are listed in order."""

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
