"""A delete that a killed server had begun goes on beside the next one's work."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.sqlite.thread import SQLiteThread
from sandbox_agent.server.store import open_store
from tests.persist.store.making import filled

pytestmark = pytest.mark.anyio


async def test_a_store_opens_before_a_delete_that_was_interrupted_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store.db"
    thread = SQLiteThread(path)
    former = SQLiteSessionStore(thread, thread)
    await former.open()
    await former.commit(filled(1, 20, text="word"))
    await former.hide(1)
    await thread.close()
    ended = anyio.Event()
    finish = SQLiteSessionStore.finish_deletes
    gate = anyio.Event()

    async def held(store: SQLiteSessionStore) -> None:
        await gate.wait()
        await finish(store)
        ended.set()

    monkeypatch.setattr(SQLiteSessionStore, "finish_deletes", held)
    with anyio.fail_after(20):
        async with open_store(f"sqlite:{path}") as store:
            assert await store.sessions.session("session-1") is None
            assert await store.sessions.search("word", limit=9) == []
            assert len(await store.sessions.events(1, after=0, limit=99, max_bytes=1 << 20)) == 20
            gate.set()
            await ended.wait()
            assert await store.sessions.events(1, after=0, limit=99, max_bytes=1 << 20) == []
