"""Every driver here, and one of five methods, keep to the same suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from sandbox_agent.persist.base import (
    Capability,
    SessionPersistDriver,
    decode_cursor,
    encode_cursor,
    normalize_limit,
)
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.testing.drivers import SessionPersistDriverSuite
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

pytestmark = pytest.mark.anyio


class FiveMethodDriver(SessionPersistDriver):
    """What the documentation asks of a custom driver, no more."""

    def __init__(self) -> None:
        self.sessions: dict[str, bytes] = {}
        self.events: dict[str, SessionEvent] = {}

    async def get_session(self, session_id: str, /) -> SessionRecord | None:
        record = await self._records()
        return record.get(session_id)

    async def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionRecord]:
        records = await self._records()
        rows = sorted((record.created_at, record.id) for record in records.values())
        keys, more = _cut(rows, limit, cursor)
        return ListPage([records[key] for _, key in keys], encode_cursor(*keys[-1]) if more else None)

    async def update_session(self, session: SessionRecord, /) -> None:
        self.sessions[session.id] = msgspec.json.encode(session)

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        rows = sorted(
            (one.event_index, one.id) for one in self.events.values() if one.session_id == session_id
        )
        keys, more = _cut(rows, limit, cursor)
        return ListPage([self.events[key] for _, key in keys], encode_cursor(*keys[-1]) if more else None)

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        assert session_id == event.session_id
        self.events[event.id] = event

    async def _records(self) -> dict[str, SessionRecord]:
        return {key: msgspec.json.decode(text, type=SessionRecord) for key, text in self.sessions.items()}


def _cut(
    rows: list[tuple[int, str]], limit: int | None, cursor: str | None
) -> tuple[list[tuple[int, str]], bool]:
    after = decode_cursor(cursor)
    if after is not None:
        rows = rows[after.offset :] if after.offset else [row for row in rows if row > after[:2]]
    size = normalize_limit(limit)
    return rows[:size], len(rows) > size


class SixMethodDriver(FiveMethodDriver):
    """One that can delete, too: its followers end with the session."""

    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.DELETE})

    async def delete_session(self, session_id: str, /) -> None:
        await super().delete_session(session_id)
        self.sessions.pop(session_id, None)
        self.events = {key: event for key, event in self.events.items() if event.session_id != session_id}


class TestFiveMethodDriver(SessionPersistDriverSuite):
    @pytest.fixture
    def driver(self) -> FiveMethodDriver:
        return FiveMethodDriver()


class TestSixMethodDriver(SessionPersistDriverSuite):
    @pytest.fixture
    def driver(self) -> SixMethodDriver:
        return SixMethodDriver()


class TestInMemoryDriver(SessionPersistDriverSuite):
    @pytest.fixture
    def driver(self) -> InMemorySessionPersistDriver:
        return InMemorySessionPersistDriver(max_events_per_session=1_000)


class TestSQLiteDriver(SessionPersistDriverSuite):
    @pytest.fixture
    async def driver(self, tmp_path: Path) -> AsyncIterator[SQLiteSessionPersistDriver]:
        driver = SQLiteSessionPersistDriver(tmp_path / "store.db")
        yield driver
        await driver.close()

    @pytest.fixture
    async def second_driver(self, tmp_path: Path) -> AsyncIterator[SQLiteSessionPersistDriver]:
        driver = SQLiteSessionPersistDriver(tmp_path / "store.db")
        yield driver
        await driver.close()


class TestSQLiteDriverInMemory(SessionPersistDriverSuite):
    @pytest.fixture
    async def driver(self) -> AsyncIterator[SQLiteSessionPersistDriver]:
        driver = SQLiteSessionPersistDriver(":memory:")
        yield driver
        await driver.close()
