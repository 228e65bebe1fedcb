"""What is committed is read back, on pages of any size, from any place."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandbox_agent.errors import InvalidRequestError, PersistError
from sandbox_agent.persist.sqlite import SQLiteSessionPersistDriver
from sandbox_agent.persist.sqlite_thread import SQLiteThread
from sandbox_agent.persist.store import (
    Changes,
    EnvelopeRow,
    EventRow,
    SnapshotRow,
    SQLiteSessionStore,
    TextRow,
)
from sandbox_agent.testing.drivers import make_event, make_session
from tests.persist.store.making import (
    PLENTY,
    TIME,
    envelope,
    event,
    filled,
    indexes,
    opened,
    permission,
    sequences,
    session,
    turn,
)

pytestmark = pytest.mark.anyio

FULL = session(
    managed=True,
    native_session_id="native",
    server_id="server",
    directory="/ä",
    title='a "title"\0 \U0001f980',
    model="m",
    agent_mode="plan",
    permission_mode="ask",
    variant="high",
    ended=True,
    first_sequence=2,
    last_sequence=9,
    last_envelope=7,
    usage=b'{"inputTokens":1}',
    settings=b'{"agent":"claude"}',
)


@pytest.fixture(params=["file", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    return tmp_path / "store.db" if request.param == "file" else ":memory:"


async def test_store_returns_every_column_of_what_was_committed(place: Path | str) -> None:
    turns = [
        turn(1, idempotency_key="k", digest=b"\x00\xff", usage=b"{}", error="é", first_sequence=1),
        turn(2, state="running", prompt=b'[{"text":"\xc3\xa4"}]', started_at=5, stop_reason="x"),
    ]
    asked = [permission("p"), permission("q", kind="question", answered="answered", answered_by="me")]
    snapshot = SnapshotRow(1, 7, 9, b'{"s":1}')
    changes = Changes(
        sessions=[FULL],
        events=[event(1), EventRow(1, 2, TIME + 1, "error", 4, b'{"t":"\xc3\xa4"}')],
        envelopes=[envelope(1), EnvelopeRow(1, 2, TIME, "client", "c\xe4", b"\xff\x00 no JSON")],
        turns=turns,
        permissions=asked,
        snapshots=[snapshot],
    )
    async with opened(place) as store:
        for _ in range(2):  # a job may run twice
            await store.commit(changes)
            assert await store.session("session-1") == FULL
            assert await store.native_session("claude", "native") == FULL
            assert await store.sessions(limit=5) == ([FULL], None)
            assert await store.events(1, after=0, limit=9, max_bytes=PLENTY) == changes.events
            assert await store.envelopes(1, after=0, limit=9) == changes.envelopes
            assert await store.turns(1, limit=9) == turns
            assert await store.turn(1, turn_id="turn_2") == turns[1]
            assert await store.turn(1, idempotency_key="k") == turns[0]
            assert await store.open_turns() == [(FULL, turns[1])]
            assert await store.permission(1, "q") == asked[1]
            assert await store.pending_permissions(limit=5) == [(FULL, asked[0])]
            assert await store.snapshot(1) == snapshot


async def test_store_returns_nothing_where_there_is_nothing(place: Path | str) -> None:
    async with opened(place) as store:
        assert await store.session("session-1") is None
        assert await store.native_session("claude", "x") is None
        assert await store.sessions(limit=5) == ([], None)
        assert await store.events(1, after=0, limit=9, max_bytes=1) == []
        assert await store.newest_envelopes(1, limit=3) == []
        assert await store.turn(1, turn_id="t") is None
        assert await store.turn(1, idempotency_key="k") is None
        assert await store.snapshot(1) is None
        assert await store.permission(1, "p") is None


async def test_sessions_turns_and_permissions_replace_theirs(place: Path | str) -> None:
    async with opened(place) as store:
        await store.commit(Changes(sessions=[session(title="a")], turns=[turn(1, state="accepted")]))
        await store.commit(Changes(permissions=[permission("p")], snapshots=[SnapshotRow(1, 5, 5, b"{}")]))
        await store.commit(
            Changes(
                sessions=[session(title="b")],
                turns=[turn(1, state="done", stop_reason="end_turn")],
                permissions=[permission("p", answered="accepted")],
                snapshots=[SnapshotRow(1, 4, 4, b"{}")],
            )
        )
        assert (await store.sessions(limit=9))[0] == [session(title="b")]
        assert await store.turns(1, limit=9) == [turn(1, stop_reason="end_turn")]
        assert await store.open_turns() == []
        assert await store.pending_permissions(limit=9) == []
        newest = await store.snapshot(1)
        assert newest is not None
        assert newest.envelope == 5


@pytest.mark.parametrize("rows", [1, 2, 3, 127, 128, 129, 511, 512, 513, 1500])
async def test_commit_stores_every_row_of_a_batch_of_any_size(rows: int, place: Path | str) -> None:
    async with opened(place) as store:
        await store.commit(filled(1, rows, text="word"))
        assert await sequences(store) == list(range(1, rows + 1))
        assert await indexes(store) == list(range(1, rows + 1))
        assert len(await store.search("word", limit=1000)) == min(rows, 1000)


async def test_events_begin_behind_any_sequence_and_end_at_the_session(place: Path | str) -> None:
    async with opened(place) as store:
        await store.commit(filled(1, 30))
        await store.commit(filled(2, 5))
        for after in (0, 1, 15, 29, 30, 31, 2**32, 10**30, -1, -(10**30)):
            expected = list(range(min(max(after, 0), 30) + 1, 31))
            assert await sequences(store, 1, after) == expected
        assert len(await store.events(1, after=3, limit=7, max_bytes=PLENTY)) == 7
        assert await store.events(1, after=0, limit=0, max_bytes=PLENTY) == []
        assert [row.index for row in await store.newest_envelopes(1, limit=2)] == [29, 30]
        assert [row.index for row in await store.envelopes(1, after=27, limit=2)] == [28, 29]


async def test_events_fit_the_bytes_asked_for_but_one_always_comes(place: Path | str) -> None:
    async with opened(place) as store:
        rows = [event(number, size=1_000) for number in range(1, 11)]
        await store.commit(Changes(sessions=[session()], events=rows))
        size = len(rows[0].data)
        assert len(await store.events(1, after=0, limit=9, max_bytes=0)) == 1
        assert len(await store.events(1, after=0, limit=9, max_bytes=2 * size)) == 2
        assert len(await store.events(1, after=0, limit=9, max_bytes=3 * size - 1)) == 2


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        (b'{"a":[1, 2]}', {"a": [1, 2]}),
        (b'{\r"a":\n1}', {"a": 1}),
        (b"not JSON \xff", "not JSON �"),
        (b'{"a":NaN}', '{"a":NaN}'),
        (b"\0", "\0"),
        (b"[" * 20_000, "[" * 20_000),
    ],
)
async def test_events_have_their_envelope_in_raw_when_asked(
    raw: bytes, shown: Any, place: Path | str
) -> None:
    unparsed = EventRow(1, 2, TIME, "agent.unparsed", 1, b'{"raw":"own"}')
    rows = [event(1, envelope=1), unparsed, event(3), event(4, envelope=9)]
    async with opened(place) as store:
        await store.commit(Changes(sessions=[session()], events=rows, envelopes=[envelope(1, data=raw)]))
        found = await store.events(1, after=0, limit=9, max_bytes=PLENTY, include_raw=True)
        first = json.loads(found[0].data)
        assert first.pop("raw") == shown
        assert first == json.loads(rows[0].data)
        assert b"\n" not in found[0].data
        assert b"\r" not in found[0].data
        assert [row.data for row in found[1:]] == [row.data for row in rows[1:]]


async def test_sessions_come_newest_first_on_pages_without_repeats(place: Path | str) -> None:
    async with opened(place) as store:
        await store.commit(Changes(sessions=[session(key) for key in range(1, 24)]))
        keys: list[int] = []
        cursor: str | None = None
        while True:
            page, cursor = await store.sessions(limit=5, cursor=cursor)
            keys += [row.key for row in page]
            if cursor is None:
                break
        assert keys == list(range(23, 0, -1))


@pytest.mark.parametrize("cursor", ["", "x", "-1", "1.5", "9" * 40, "\u0661", "\0"])
async def test_sessions_refuses_a_cursor_that_is_none_of_its_own(cursor: str, place: Path | str) -> None:
    async with opened(place) as store:
        with pytest.raises(InvalidRequestError, match="nextCursor"):
            await store.sessions(limit=5, cursor=cursor)


async def test_keys_are_never_used_again_even_after_deletes_and_restarts(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        assert [await store.next_key(), await store.next_key()] == [1, 2]
        await store.commit(Changes(sessions=[session(2)]))
        await store.delete(2)
    async with opened(tmp_path / "store.db") as store:
        assert await store.next_key() == 3


async def test_commit_stores_nothing_when_a_sequence_has_another_event(place: Path | str) -> None:
    async with opened(place) as store:
        await store.commit(filled(1, 3))
        other = EventRow(1, 3, TIME, "error", 0, b'{"other":1}')
        with pytest.raises(PersistError, match="session number 1 has another event of sequence 3"):
            await store.commit(Changes(events=[other, event(4)], turns=[turn(1)]))
        with pytest.raises(PersistError, match="another envelope of index 2"):
            await store.commit(Changes(envelopes=[envelope(2, data=b"{}")], turns=[turn(1)]))
        assert await sequences(store) == [1, 2, 3]
        assert await store.turns(1, limit=9) == []


async def test_commit_stores_nothing_when_a_name_is_taken(place: Path | str) -> None:
    async with opened(place) as store:
        await store.commit(Changes(sessions=[session()], turns=[turn(1, idempotency_key="k")]))
        with pytest.raises(PersistError, match="contradicts a row that is there"):
            await store.commit(Changes(sessions=[session(2, session_id="session-1")], events=[event(1, 2)]))
        with pytest.raises(PersistError, match="contradicts a row that is there"):
            await store.commit(Changes(turns=[turn(2, idempotency_key="k")], events=[event(1)]))
        assert await sequences(store, 2) == await sequences(store, 1) == []


async def test_stale_row_of_a_session_takes_nothing_back(place: Path | str) -> None:
    async with opened(place) as store:
        await store.commit(Changes(sessions=[session(first_sequence=5, last_sequence=9)]))
        await store.commit(Changes(sessions=[session(title="new", first_sequence=1, last_sequence=8)]))
        row = await store.session("session-1")
        assert row == session(title="new", first_sequence=5, last_sequence=9)


async def test_odd_characters_never_fail_a_commit(place: Path | str) -> None:
    odd = "\ud800 \0 \U0001f980 é"
    async with opened(place) as store:
        await store.commit(
            Changes(
                sessions=[session(title=odd, directory=odd)],
                turns=[turn(1, error=odd)],
                permissions=[permission("p", action=odd)],
                texts=[TextRow(1, 1, -5, odd), TextRow(1, 2, 2**62, "x" * 3_000_000), TextRow(1, 3, 0, "")],
            )
        )
        row = await store.session("session-1")
        assert row is not None
        assert row.title == odd.replace("\ud800", "?")
        assert [hit.sequence for hit in await store.search("é", limit=5)] == [1]
        assert await store.session(odd) is None
        assert await store.turn(1, idempotency_key=odd) is None


async def test_store_shares_its_file_with_the_driver_of_an_sdk(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    driver = SQLiteSessionPersistDriver(path)
    await driver.update_session(make_session("s"))
    await driver.append_events("s", [make_event("e", "s")])
    async with opened(path) as store:
        await store.commit(filled(1, 3, text="word"))
        assert await sequences(store) == [1, 2, 3]
    assert await driver.last_event_index("s") == 1
    await driver.close()


async def test_commit_says_so_and_stores_nothing_while_another_program_holds_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_agent.persist.sqlite_worker.BUSY_TIMEOUT", 0.05)
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await store.commit(filled(1, 3))
        with closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(PersistError, match=r"locked by another program.*close the program"):
                await store.commit(filled(1, 9))
            assert await sequences(store) == [1, 2, 3]  # reading goes on
            holder.execute("ROLLBACK")
        await store.commit(filled(1, 9))
        assert await sequences(store) == list(range(1, 10))


async def test_store_of_ten_thousand_sessions_pages_through_them_by_key(tmp_path: Path) -> None:
    """How long it takes is the benchmark's; here: no page reads more than itself."""
    async with opened(tmp_path / "store.db") as store:
        await store.commit(Changes(sessions=[session(key) for key in range(1, 10_001)]))
        page, cursor = await store.sessions(limit=100, cursor="5000")
        assert [row.key for row in page] == list(range(4999, 4899, -1))
        assert cursor == "4900"
    with closing(sqlite3.connect(tmp_path / "store.db")) as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN SELECT * FROM store_sessions WHERE key < 5 AND NOT deleted ORDER BY key DESC"
        ).fetchall()
        assert "USING INTEGER PRIMARY KEY" in plan[0][3]


async def test_reads_and_commits_go_on_side_by_side(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        await store.commit(Changes(sessions=[session()]))
        done = anyio.Event()

        async def write() -> None:
            for start in range(1, 400, 4):
                await store.commit(Changes(events=[event(start + part) for part in range(4)]))
            done.set()

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            while not done.is_set():
                found = await sequences(store)
                assert found == list(range(1, len(found) + 1))
                assert len(found) % 4 == 0


async def test_closed_store_says_so(tmp_path: Path) -> None:
    writer = SQLiteThread(tmp_path / "store.db")
    store = SQLiteSessionStore(writer, writer)
    await store.open()
    await writer.close()
    with pytest.raises(PersistError, match="is closed"):
        await store.commit(filled())
