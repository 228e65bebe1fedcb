"""Searching has a thread of its own."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import anyio
import pytest

from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from tests.persist.store.making import filled, sequences

pytestmark = pytest.mark.anyio


async def test_pages_are_read_while_a_search_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    writer, reader, searcher = SQLiteThread(path), SQLiteThread(path), SQLiteThread(path, read_only=True)
    held, release = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        held.set()
        release.wait(20)

    hits: list[object] = []
    try:
        store = SQLiteSessionStore(writer, reader, searcher)
        await store.open()
        await store.commit(filled(1, 3, text="word"))
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: searcher.run(hold, transaction=False))
                await anyio.to_thread.run_sync(held.wait)

                async def search() -> None:
                    hits.extend(await store.search("word", limit=9))

                tasks.start_soon(search)
                assert await sequences(store) == [1, 2, 3]
                assert hits == []
                release.set()
            assert len(hits) == 3
    finally:
        release.set()
        for thread in (searcher, reader, writer):
            await thread.close()
