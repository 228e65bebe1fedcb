"""The SQLite sink: the seed's table, each event once, no holes."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import anyio
import pytest

from sandbox_agent import PersistError, SQLiteSink, UniversalEvent
from sandbox_agent.wire.universal import decode_event
from tests.client.scripted_sessions import event

pytestmark = pytest.mark.anyio


@pytest.fixture
async def sink(tmp_path: Path) -> AsyncIterator[SQLiteSink]:
    async with SQLiteSink(tmp_path / "folder" / "events.db") as sink:
        yield sink


def events(first: int, last: int) -> list[UniversalEvent]:
    return [decode_event(event(sequence)) for sequence in range(first, last + 1)]


def rows(sink: SQLiteSink, columns: str = "sequence") -> Sequence[tuple[object, ...]]:
    database = sqlite3.connect(sink.path)
    try:
        return database.execute(f"SELECT {columns} FROM agent_events ORDER BY sequence").fetchall()
    finally:
        database.close()


async def test_a_sink_knows_where_it_stands(sink: SQLiteSink) -> None:
    assert await sink.last_sequence("s") == 0
    await sink.insert_events("s", events(1, 3))
    await sink.insert_events("s", events(4, 4))
    assert await sink.last_sequence("s") == 4
    assert await sink.last_sequence("another") == 0


async def test_an_event_is_a_row_of_the_seeds_table(sink: SQLiteSink) -> None:
    await sink.insert_events("s", events(1, 1))
    columns = "event_id, session_id, native_session_id, sequence, time, type, source, synthetic, data"
    assert rows(sink, columns) == [
        (
            "evt_s_1",
            "s",
            None,
            1,
            "2026-01-31T12:00:00.000Z",
            "item.delta",
            "agent",
            0,
            '{"item_id":"itm_1","delta":"1 "}',
        )
    ]


async def test_an_event_that_is_there_is_not_stored_again(sink: SQLiteSink) -> None:
    await sink.insert_events("s", events(1, 3))
    await sink.insert_events("s", events(2, 5))
    assert rows(sink) == [(1,), (2,), (3,), (4,), (5,)]


async def test_two_mirrors_of_one_session_do_no_harm(sink: SQLiteSink) -> None:
    async with SQLiteSink(sink.path) as other, anyio.create_task_group() as group:
        for each in (sink, other):
            group.start_soon(each.insert_events, "s", events(1, 50))
    assert rows(sink) == [(sequence,) for sequence in range(1, 51)]


@pytest.mark.parametrize("first", [2, 5])
async def test_a_hole_is_refused_and_nothing_is_stored(sink: SQLiteSink, first: int) -> None:
    with pytest.raises(PersistError, match=f"event {first} came, 1 is missing"):
        await sink.insert_events("s", events(first, first + 2))
    assert rows(sink) == []


async def test_a_hole_is_stored_by_who_allows_it(tmp_path: Path) -> None:
    async with SQLiteSink(tmp_path / "events.db", allow_gaps=True) as sink:
        await sink.insert_events("s", events(5, 6))
        await sink.insert_events("s", events(9, 9))
        assert rows(sink) == [(5,), (6,), (9,)]


async def test_another_event_of_that_sequence_is_refused(sink: SQLiteSink) -> None:
    await sink.insert_events("s", events(1, 2))
    with pytest.raises(PersistError, match="another event 2 is stored"):
        await sink.insert_events("s", [decode_event(event(2, "error", message="no")), *events(3, 3)])
    assert rows(sink) == [(1,), (2,)]


async def test_text_that_utf8_can_not_hold_is_stored_as_json_has_it(sink: SQLiteSink) -> None:
    await sink.insert_events("s", [decode_event(event(1, item_id="i", delta="\ud83d"))])
    assert rows(sink, "data") == [('{"item_id":"i","delta":"\\ud83d"}',)]
