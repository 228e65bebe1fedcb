"""Files of every version open here, and newer ones are refused."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sqlite import schema
from sandbox_agent.persist.sqlite.schema import STORE_VERSION
from sandbox_agent.persist.store import Changes, SnapshotRow, TextRow
from tests.persist.store.making import TIME, event, filled, opened, permission, sequences, session, turn

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parent / "golden"


def golden_changes() -> Changes:
    """What every golden file holds; it is made by ``python -m tests.persist.store.make_golden``."""
    changes = filled(1, 5, text="golden text", managed=True, title="Gold", settings=b'{"agent":"claude"}')
    changes.turns = [turn(1, idempotency_key="k", digest=b"\x01\xff"), turn(2, state="accepted")]
    changes.permissions = [permission("p"), permission("q", answered="accepted")]
    changes.snapshots = [SnapshotRow(1, 5, 5, b"{}")]
    return changes


def tables(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(
            "SELECT name, sql FROM sqlite_master WHERE sql NOT NULL ORDER BY 1"
        ).fetchall()


def test_every_version_has_its_golden_file() -> None:
    versions = range(1, STORE_VERSION + 1)
    assert sorted(file.name for file in GOLDEN.glob("*.db")) == [f"version_{n}.db" for n in versions]


@pytest.mark.parametrize("version", range(1, STORE_VERSION + 1))
async def test_file_of_any_version_opens_and_has_lost_nothing(version: int, tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    shutil.copy(GOLDEN / f"version_{version}.db", path)
    expected = golden_changes()
    for _ in range(2):
        async with opened(path) as store:
            assert (await store.sessions(limit=9))[0] == expected.sessions
            assert await store.events(1, after=0, limit=9, max_bytes=9_999) == expected.events
            assert await store.envelopes(1, after=0, limit=9) == expected.envelopes
            assert await store.turns(1, limit=9) == expected.turns
            assert [row for _, row in await store.pending_permissions(limit=9)] == expected.permissions[:1]
            assert await store.snapshot(1) == expected.snapshots[0]
            assert {hit.sequence for hit in await store.search("golden", limit=9)} == {1, 2, 3, 4, 5}
    async with opened(path) as store:
        assert await store.next_key() == 2
        await store.commit(Changes(events=[event(6)], texts=[TextRow(1, 6, TIME, "golden")]))
        assert await sequences(store, after=5) == [6]
        await store.delete(1)
        assert await store.search("golden", limit=9) == []
    async with opened(tmp_path / "new.db"):
        pass
    assert tables(path) == tables(tmp_path / "new.db")


async def test_newer_file_is_refused_with_what_to_do_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await store.commit(Changes(sessions=[session()]))
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE store_meta SET value = 99 WHERE name = 'schema_version'")
        connection.execute("ALTER TABLE store_sessions ADD COLUMN future TEXT")
        connection.commit()
    before = tables(path)
    with pytest.raises(PersistError, match=r"schema version 99 .* up to \d+: upgrade .* or give --store"):
        async with opened(path):
            pass
    assert tables(path) == before


async def test_migration_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    shutil.copy(GOLDEN / "version_1.db", path)
    before = tables(path)

    bad = ("ALTER TABLE store_sessions ADD COLUMN later TEXT", "INSERT INTO nowhere VALUES (1)")

    with monkeypatch.context() as patch:
        patch.setattr(schema, "STORE_MIGRATIONS", (*schema.STORE_MIGRATIONS, bad))
        with pytest.raises(PersistError, match="no such table: nowhere"):
            async with opened(path):
                pass
    assert tables(path) == before
    async with opened(path) as store:
        assert await sequences(store) == [1, 2, 3, 4, 5]


async def test_later_migrations_run_once_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    shutil.copy(GOLDEN / "version_1.db", path)
    second = ("CREATE TABLE ran (step TEXT)", "INSERT INTO ran VALUES ('second')")
    third = ("INSERT INTO ran VALUES ('third')",)
    monkeypatch.setattr(schema, "STORE_MIGRATIONS", (*schema.STORE_MIGRATIONS[:1], second, third))
    for _ in range(2):
        async with opened(path):
            pass
    with closing(sqlite3.connect(path)) as connection:
        ran = connection.execute("SELECT step FROM ran ORDER BY rowid").fetchall()
    assert ran == [("second",), ("third",)]


async def test_sqlite_without_full_text_search_is_refused_at_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "_FULL_TEXT", "fts99")
    with pytest.raises(PersistError, match=r"without full text search .* use a Python from"):
        async with opened(tmp_path / "store.db"):
            pass


async def test_sqlite_that_is_too_old_is_refused_at_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 31, 1))
    with pytest.raises(PersistError, match=r"the store needs 3\.32\.0: use a newer Python"):
        async with opened(tmp_path / "store.db"):
            pass


async def test_file_that_is_no_database_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database, " * 512)
    with pytest.raises(PersistError, match="is not an SQLite database: name another file"):
        async with opened(path):
            pass
