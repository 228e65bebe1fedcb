"""Files of other drivers and of older shapes open here, and lose nothing."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.sqlite.driver import SQLiteSessionPersistDriver
from sandbox_agent.persist.sqlite.schema import SCHEMA_VERSION, prepare_store
from sandbox_agent.testing.drivers import all_events, all_sessions, make_event, make_session
from sandbox_agent.wire.records import SessionEvent, SessionRecord

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parent / "golden"
LEGACY = ["missing_columns", "integer_ids", "no_event_index", "duplicate_indexes", "interrupted_rebuild"]
# What the TypeScript driver runs on a file that it opens (seed 002, initialize).
TYPESCRIPT_INDEX = (
    "CREATE INDEX IF NOT EXISTS idx_events_session_order ON events(session_id, event_index, id)"
)


def place(golden: str, folder: Path) -> Path:
    path = folder / "store.db"
    if (GOLDEN / golden).suffix == ".db":
        shutil.copy(GOLDEN / golden, path)
        return path
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((GOLDEN / f"{golden}.sql").read_text(encoding="utf-8"))
    return path


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [*connection.iterdump(), str(connection.execute("PRAGMA user_version").fetchone())]


def codex(session_id: str, **fields: Any) -> SessionRecord:
    number = fields.pop("number", 9)
    return make_session(
        session_id,
        agent="codex",
        agent_session_id=f"agent-{number}",
        last_connection_id=f"c-{number}",
        created_at=1740000000000,
        **fields,
    )


async def read(path: Path) -> tuple[list[SessionRecord], dict[str, list[SessionEvent]]]:
    """Return everything, once through the driver that migrates and once through one that finds it done."""
    driver = SQLiteSessionPersistDriver(path)
    try:
        sessions = await all_sessions(driver)
        with closing(sqlite3.connect(path)) as connection:
            ids = [row[0] for row in connection.execute("SELECT DISTINCT session_id FROM events")]
        events = {session_id: await all_events(driver, session_id, limit=2) for session_id in ids}
    finally:
        await driver.close()
    before = dump(path)
    again = SQLiteSessionPersistDriver(path)
    try:
        assert await all_sessions(again) == sessions
        assert {session_id: await all_events(again, session_id) for session_id in ids} == events
    finally:
        await again.close()
    assert dump(path) == before
    return sessions, events


def numbered(events: list[SessionEvent]) -> list[tuple[int, str, int]]:
    """Index, id and the number in the payload of each."""
    return [(event.event_index, event.id, event.payload["n"]) for event in events]


async def test_driver_reads_every_value_of_a_file_that_better_sqlite3_wrote(tmp_path: Path) -> None:
    sessions, events = await read(place("typescript.db", tmp_path))
    assert sessions == [
        SessionRecord(
            id="main",
            agent="claude",
            agent_session_id="agent-1",
            last_connection_id="c-1",
            created_at=1760000000000,
            destroyed_at=1760000000999,
            sandbox_id="local/127.0.0.1:2468",
            session_init={"cwd": "/workspace", "mcpServers": []},
            config_options=[{"id": "model", "currentValue": "sonnet"}],
            modes={"currentModeId": "default", "availableModes": [{"id": "default", "name": "Default"}]},
        ),
        SessionRecord(
            id="bare",
            agent="mock",
            agent_session_id="agent-2",
            last_connection_id="c-2",
            created_at=1760000000001,
        ),
    ]
    prompt, update, answer = events["main"]
    assert (prompt.id, prompt.event_index, prompt.session_id) == ("aaaa-1", 1, "main")
    assert (prompt.created_at, prompt.connection_id, prompt.sender) == (1760000000100, "c-1", "client")
    assert prompt.payload["params"]["prompt"][0]["text"] == 'Grüße \U0001f980 \u2028 \ud800 "q" \0'
    assert (update.id, update.event_index, update.sender) == ("bbbb-2", 2, "agent")
    assert update.payload["params"] == {"n": 1e21, "f": 0.1, "deep": [[[None]]]}
    assert (answer.id, answer.payload) == (
        "cccc-3",
        {"jsonrpc": "2.0", "id": 1, "result": {"stopReason": "end_turn"}},
    )
    assert [event.id for event in events["bare"]] == ["dddd-1"]


async def test_driver_adds_the_columns_that_an_old_file_misses(tmp_path: Path) -> None:
    sessions, events = await read(place("missing_columns", tmp_path))
    assert sessions == [
        codex("gone", number=8, destroyed_at=1740000000500),
        codex("old", session_init={"cwd": "/w", "mcpServers": []}),
    ]
    assert [(event.event_index, event.id, event.sender) for event in events["old"]] == [
        (1, "e-1", "client"),
        (2, "e-2", "agent"),
    ]


async def test_driver_makes_integer_ids_text_and_keeps_their_order(tmp_path: Path) -> None:
    sessions, events = await read(place("integer_ids", tmp_path))
    assert sessions == [codex("old")]
    assert numbered(events["old"]) == [(1, "8", 1), (2, "9", 2), (3, "10", 3), (4, "11", 4)]
    assert numbered(events["other"]) == [(1, "7", 1)]


async def test_driver_numbers_events_by_creation_when_they_have_no_index(tmp_path: Path) -> None:
    _, events = await read(place("no_event_index", tmp_path))
    assert numbered(events["old"]) == [(1, "9", 1), (2, "10", 2), (3, "12", 3), (4, "11", 4)]
    assert numbered(events["other"]) == [(1, "13", 1)]


async def test_driver_numbers_only_the_sessions_anew_that_have_an_index_twice(tmp_path: Path) -> None:
    _, events = await read(place("duplicate_indexes", tmp_path))
    assert numbered(events["raced"]) == [(1, "z", 1), (2, "a", 2), (3, "y", 3), (4, "b", 4), (5, "c", 5)]
    assert numbered(events["calm"]) == [(5, "g", 1), (9, "h", 2)]


async def test_driver_finishes_a_rebuild_that_the_typescript_driver_left(tmp_path: Path) -> None:
    path = place("interrupted_rebuild", tmp_path)
    _, events = await read(path)
    assert numbered(events["old"]) == [(1, "9", 1), (2, "10", 2)]
    assert not any("events_legacy" in line for line in dump(path))


async def test_driver_reads_every_value_of_its_own_first_version(tmp_path: Path) -> None:
    path = place("version_1", tmp_path)
    before = dump(path)
    sessions, events = await read(path)
    assert dump(path) == before
    assert sessions == [
        make_session("bare", created_at=1),
        make_session(
            "main",
            destroyed_at=5,
            sandbox_id="local/x",
            session_init={"cwd": "/w", "mcpServers": []},
            config_options=[{"id": "model"}],
            modes={"currentModeId": "ask"},
        ),
    ]
    assert [(event.event_index, event.id) for event in events["main"]] == [(1, "a"), (2, "b")]
    # The bytes as they came, spaces and escapes included.
    params = '{"t":"Grüße \U0001f980 \\ud800 \\u0000"}'
    text = f'{{"jsonrpc": "2.0","id":1,"method":"session/prompt","params":{params}}}'
    assert events["main"][0].payload_json == text.encode()


@pytest.mark.parametrize("golden", ["before_writers", "with_writers.db"])
async def test_driver_goes_on_with_a_file_of_its_first_version_with_and_without_the_later_tables(
    golden: str, tmp_path: Path
) -> None:
    path = place(golden, tmp_path)
    before = dump(path)
    sessions, events = await read(path)
    assert dump(path) == before
    assert [session.id for session in sessions] == ["main", "bare"]
    assert sessions[0].modes == {
        "currentModeId": "default",
        "availableModes": [],
    }
    assert [(event.event_index, event.id) for event in events["main"]] == [
        (number, f"00-{number - 1}") for number in range(1, 5)
    ]
    assert "Grüße \\ud800 \\u0000, tidy".encode() in events["main"][0].payload_json
    assert events["main"][3].payload_json == b'{ "jsonrpc":"2.0", "id":1, "result":{"stopReason":"end_turn"}}'
    driver = SQLiteSessionPersistDriver(path)
    assert [hit.sequence for hit in await driver.search_events("cobwebs")] == [2]
    assert [hit.sequence for hit in await driver.search_events("cellar")] == [1]
    # Two claims and a deletion are in the one, none in the other.
    assert await driver.claim_session("main") == (3 if golden == "with_writers.db" else 1)
    event = make_event("next", "main")
    with pytest.raises(SessionFencedError):
        await driver.append_events("main", [event], generation=-1)
    await driver.append_events("main", [event], generation=3)
    assert event.event_index == 5
    await driver.delete_session("main")
    assert await driver.search_events("cobwebs") == []
    await driver.close()


@pytest.mark.parametrize("golden", [*LEGACY, "typescript.db"])
async def test_driver_appends_after_the_last_event_of_an_older_file(golden: str, tmp_path: Path) -> None:
    path = place(golden, tmp_path)
    _, before = await read(path)
    driver = SQLiteSessionPersistDriver(path)
    try:
        for session_id, events in before.items():
            event = make_event(f"new-{session_id}", session_id)
            await driver.append_events(session_id, [event])
            assert event.event_index == events[-1].event_index + 1
            assert await all_events(driver, session_id) == [*events, event]
    finally:
        await driver.close()


@pytest.mark.parametrize("golden", LEGACY)
def test_migration_leaves_the_old_shape_when_it_fails_in_the_middle(golden: str, tmp_path: Path) -> None:
    path = place(golden, tmp_path)
    before = dump(path)
    steps = 0
    failing_step = 0
    while True:
        failing_step += 1
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            steps = 0

            def fail_at_the_step(_action: int, *_: str | None) -> int:
                nonlocal steps
                steps += 1
                return sqlite3.SQLITE_DENY if steps == failing_step else sqlite3.SQLITE_OK  # noqa: B023

            connection.set_authorizer(fail_at_the_step)
            try:
                prepare_store(connection)
            except sqlite3.Error:
                pass
            else:
                break
        assert dump(path) == before, f"step {failing_step}"
    assert steps > 20
    assert dump(path) != before


async def test_typescript_statements_find_nothing_to_change_in_our_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    driver = SQLiteSessionPersistDriver(path)
    await driver.update_session(make_session("s", session_init={"cwd": "/é"}, modes={"currentModeId": "a"}))
    await driver.append_events("s", [make_event("a"), make_event("b")])
    await driver.close()
    before = dump(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY)")
        connection.execute(TYPESCRIPT_INDEX)
        connection.commit()
        types = {row[1]: row[2] for row in connection.execute("PRAGMA table_info(events)")}
        assert types["id"] == "TEXT"
        assert "event_index" in types
        rows = connection.execute("SELECT typeof(payload_json), payload_json FROM events").fetchall()
        assert [(kind, json.loads(text)["params"]) for kind, text in rows] == [
            ("text", {"event": "a"}),
            ("text", {"event": "b"}),
        ]
        assert connection.execute("SELECT session_init_json FROM sessions").fetchone() == ('{"cwd":"/é"}',)
        # The TypeScript SDK knows this message and takes the next index.
        with pytest.raises(
            sqlite3.IntegrityError, match=r"UNIQUE constraint failed: .*session_id, .*event_index"
        ):
            connection.execute("INSERT INTO events VALUES ('c', 2, 's', 1, 'c', 'agent', '{}')")
    assert dump(path) == before


async def test_driver_refuses_a_file_of_a_newer_version(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    content = path.read_bytes()
    driver = SQLiteSessionPersistDriver(path)
    with pytest.raises(PersistError, match=rf"schema version {SCHEMA_VERSION + 1}.*upgrade"):
        await driver.list_sessions()
    with pytest.raises(PersistError, match="upgrade"):
        await driver.append_events("s", [make_event("e")])
    await driver.close()
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    "table",
    ["CREATE TABLE sessions (id INTEGER PRIMARY KEY, user TEXT)", "CREATE TABLE events (id TEXT, what TEXT)"],
)
async def test_driver_refuses_another_programs_tables(table: str, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(table)
    before = dump(path)
    driver = SQLiteSessionPersistDriver(path)
    with pytest.raises(PersistError, match="belongs to another program"):
        await driver.list_sessions()
    await driver.close()
    assert dump(path) == before
