"""What is erased is gone from the rows, the index and the file; the rest stays."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sql.erase import Eraser
from sandbox_agent.persist.sqlite import store as sqlite_store
from sandbox_agent.persist.sqlite.dialect import run
from sandbox_agent.persist.sqlite.ledger import SQLiteLedger, used_bytes
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from sandbox_agent.persist.store import (
    Changes,
    SessionStore,
    SnapshotRow,
    TextRow,
)
from tests.persist.store.making import (
    PLENTY,
    TIME,
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

SECRET = "Xylophagous quintessential zwitterion"
# The index keeps words folded, and the common beginning of neighbours once.
TRACES = [SECRET.encode(), *(word.lower().encode()[3:] for word in SECRET.split())]


def traces(folder: Path) -> list[tuple[str, bytes]]:
    """Return which file holds what of the secret."""
    found: list[tuple[str, bytes]] = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes().lower()
        found += [(file.name, trace) for trace in TRACES if trace.lower() in data]
    return found


def used(folder: Path) -> int:
    with closing(sqlite3.connect(folder / "store.db")) as connection:
        return run(connection, used_bytes)


def secret_session(key: int = 1) -> Changes:
    data = b'{"text":"%s"}' % SECRET.encode()
    rows = filled(key, 20, text=SECRET, title=SECRET, directory=SECRET, settings=data, usage=data)
    for row in [*rows.events, *rows.envelopes]:
        row.data = data
    rows.events.append(event(21, key, size=50_000))
    rows.events[-1].data += data
    rows.turns = [turn(1, key, prompt=data, error=SECRET)]
    rows.permissions = [permission("p", key, metadata=data, action=SECRET)]
    rows.snapshots = [SnapshotRow(key, 20, 20, data)]
    return rows


async def test_deleted_session_leaves_no_trace_in_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        await store.commit(filled(2, 300, text="innocent text", agent="codex"))
        await store.commit(secret_session())
        # Merges of the index, and rewritten rows, leave copies behind.
        for number in range(301, 340):
            await store.commit(
                Changes(
                    sessions=[session(1, title=f"{SECRET} {number}")],
                    texts=[
                        TextRow(2, number, TIME, "innocent"),
                        TextRow(1, number, TIME, f"{SECRET} {number}"),
                    ],
                    turns=[turn(1, prompt=SECRET.encode() * (number % 7))],
                )
            )
        assert {trace for _, trace in traces(tmp_path)} == set(TRACES)
        await store.delete(1)
        assert traces(tmp_path) == []
        assert await store.session("session-1") is None
        assert await store.search("zwitterion", limit=9) == []
        assert await sequences(store) == await indexes(store) == []
        assert await store.turns(1, limit=9) == []
        assert await store.permission(1, "p") is None
        assert await store.snapshot(1) is None
        # The other one is whole, and goes on.
        assert await sequences(store, 2) == list(range(1, 301))
        assert len(await store.search("innocent", limit=1000)) == 339
        await store.commit(Changes(events=[event(301, 2)], sessions=[session(3, session_id="session-1")]))
        assert await store.session("session-1") == session(3, session_id="session-1")
    assert traces(tmp_path) == []


@pytest.mark.parametrize("stage", ["marked", "sliced", "erased"])
async def test_interrupted_delete_is_out_of_sight_and_ends_at_the_next_open(
    stage: str, tmp_path: Path
) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await store.commit(filled(2, 5, text="innocent"))
        await store.commit(secret_session())
    # As the store does, whatever this SQLite was made with.
    writer = SQLiteThread(path, prepare=lambda one: one.execute("PRAGMA secure_delete=ON").close())
    still = SQLiteSessionStore(writer, writer)
    await still.hide(1)
    eraser = Eraser(SQLiteLedger(str(path)))

    async def erase_slice() -> bool:
        return await writer.run(lambda connection: run(connection, lambda: eraser.erase(1)))

    if stage == "sliced":
        await erase_slice()
    while stage == "erased" and await erase_slice():
        pass
    assert await still.session("session-1") is None
    assert await still.search("zwitterion", limit=9) == []
    assert [row.key for row in (await still.sessions(limit=9))[0]] == [2]
    # A late row of the recorder's doesn't bring it back.
    await still.commit(Changes(sessions=[session(1)]))
    assert await still.session("session-1") is None
    await writer.close()
    async with opened(path) as store:
        assert traces(tmp_path) == []
        assert await sequences(store) == []
        assert await sequences(store, 2) == [1, 2, 3, 4, 5]
    async with opened(path) as store:
        assert await store.next_key() == 3


async def test_commits_go_on_while_a_large_session_is_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        await store.commit(filled(1, 30_000, text=""))
        await store.commit(Changes(texts=[TextRow(1, n, TIME, f"word w{n}") for n in range(1, 3_000)]))
        await store.commit(Changes(sessions=[session(2)]))
        during = 0
        deleted = anyio.Event()

        async def delete() -> None:
            await store.delete(1)
            deleted.set()

        async with anyio.create_task_group() as group:
            group.start_soon(delete)
            while not deleted.is_set():
                during += 1
                await store.commit(
                    Changes(events=[event(during, 2)], texts=[TextRow(2, during, TIME, "word")])
                )
        # Slices: were it one transaction, no more than two would have come between.
        assert during > 10
        assert await sequences(store, 2) == list(range(1, during + 1))
        assert await sequences(store) == []


async def test_deletes_at_once_all_end(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        for key in range(1, 13):
            await store.commit(secret_session(key))
        async with anyio.create_task_group() as group:
            for key in range(1, 12):
                group.start_soon(store.delete, key)
                group.start_soon(store.delete, key)
        assert [row.key for row in (await store.sessions(limit=99))[0]] == [12]
        await store.delete(12)
        assert traces(tmp_path) == []


@pytest.mark.parametrize("erasure", ["delete", "expire"])
@pytest.mark.parametrize("end", ["later", "reopened"])
async def test_erasure_that_a_reader_keeps_in_the_file_is_told_and_ends_later(
    erasure: str,
    end: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sqlite_store, "_CUTS", 3)
    path = tmp_path / "store.db"
    async with opened(path) as store:
        await store.commit(filled(2, 3, managed=True, time=TIME + PLENTY))
        await store.commit(secret_session())
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM store_events").fetchone()
            with anyio.fail_after(10):
                if erasure == "delete":
                    await store.delete(1)
                else:
                    await store.expire(before=TIME + 1_000)
            assert "its words are still in the store's file" in caplog.text
            assert await store.session("session-1") is None
            assert await store.search("zwitterion", limit=9) == []
            assert traces(tmp_path)
            # It doesn't keep the store from anything else.
            await store.commit(filled(3, 3))
            caplog.clear()
            await store.finish_deletes()
            assert "its words are still in the store's file" in caplog.text
        if end == "later":
            await store.finish_deletes()
            assert traces(tmp_path) == []
    async with opened(path) as store:
        assert traces(tmp_path) == []
        assert await sequences(store, 2) == await sequences(store, 3) == [1, 2, 3]
        caplog.clear()
        await store.finish_deletes()
        assert caplog.text == ""


@pytest.mark.parametrize("managed", [True, False])
async def test_expired_session_leaves_no_trace_in_the_file(managed: bool, tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        await store.commit(filled(1, 10, text=SECRET, managed=managed))
        await store.expire(before=TIME + 1_000)
        assert (await store.session("session-1") is not None) == managed
        assert traces(tmp_path) == []


async def test_failed_delete_says_so_and_can_be_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path / "store.db") as store:
        await store.commit(secret_session())

        def fail(*_: object, **__: object) -> None:
            raise PersistError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(Eraser, "erase", fail)
            with pytest.raises(PersistError, match="disk is full"):
                await store.delete(1)
        await store.delete(1)
        assert traces(tmp_path) == []


def test_store_is_what_the_server_asks_for() -> None:
    thread = SQLiteThread(":memory:")
    store: SessionStore = SQLiteSessionStore(thread, thread)
    assert store is not None
