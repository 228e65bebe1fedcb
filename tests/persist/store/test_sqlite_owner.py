"""Two servers on one file without its lock: the one that was there first is refused, and has lost nothing."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from anyio.streams.text import TextReceiveStream

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.store import Changes
from tests.persist.store.making import event, filled, opened, sequences, session
from tests.persist.store.test_store_processes import ENVIRONMENT, ROOT

pytestmark = pytest.mark.anyio


async def test_first_server_is_refused_once_a_second_one_has_opened_the_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with opened(path) as first:
        await first.commit(filled(1, 3, text="word"))
        assert first.trouble is None
        async with opened(path) as second:
            # What the first one had acknowledged, the second one has.
            assert await sequences(second) == [1, 2, 3]
            with pytest.raises(
                PersistError, match=r"was opened by another server \(process \d+ on .*stop one"
            ):
                await first.commit(Changes(events=[event(4)]))
            await first.check()
            assert first.trouble is not None
            for change in (first.next_key(), first.delete(1), first.hide(1), first.expire(max_bytes=0)):
                with pytest.raises(PersistError, match="was opened by another server"):
                    await change
            await second.commit(Changes(events=[event(4)]))
            # Each reads on.
            assert await sequences(first) == await sequences(second) == [1, 2, 3, 4]
            assert second.trouble is None
    async with opened(path) as third:
        assert await sequences(third) == [1, 2, 3, 4]
        await third.commit(Changes(events=[event(5)]))


async def test_of_many_servers_in_turn_only_the_newest_writes(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(opened(path)) for _ in range(4)]
        for key, store in enumerate(stores, 1):
            if store is stores[-1]:
                await store.commit(Changes(sessions=[session(key)]))
            else:
                with pytest.raises(PersistError, match="was opened by another server"):
                    await store.commit(Changes(sessions=[session(key)]))
        assert [row.key for row in (await stores[0].sessions(limit=9))[0]] == [4]


async def test_process_that_was_replaced_has_all_that_it_acknowledged_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    program = [sys.executable, "-m", "tests.persist.store.programs.committer", str(path)]
    text = ""
    with anyio.fail_after(60):
        async with await anyio.open_process(program, cwd=ROOT, env=ENVIRONMENT) as process:
            assert process.stdout is not None
            async with AsyncExitStack() as stack:
                second: SQLiteSessionStore | None = None
                async for part in TextReceiveStream(process.stdout):
                    text += part
                    if second is None and text.count("\n") >= 5:
                        second = await stack.enter_async_context(opened(path))
                assert second is not None
                last = int(text.splitlines()[-1].split()[1])
                stored = await sequences(second)
                assert stored == list(range(1, len(stored) + 1))
                assert len(stored) >= last
                await second.commit(Changes(sessions=[session(99)]))
        assert process.returncode != 0
