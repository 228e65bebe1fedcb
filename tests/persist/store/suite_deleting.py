"""What is left of sessions that are deleted or hidden: nothing."""

from __future__ import annotations

import anyio

from sandbox_agent.persist.store import (
    Changes,
    SessionRow,
    SessionStore,
    SnapshotRow,
    TextRow,
)
from tests.persist.store.making import (
    TIME,
    event,
    filled,
    indexes,
    listed,
    permission,
    sequences,
    session,
    turn,
)
from tests.persist.store.suite_base import MeasuredStore, Opener, StoreSuite

__all__ = ["DeletingSuite"]


class DeletingSuite(StoreSuite):
    """What is left of sessions that are deleted or hidden: nothing."""

    async def test_delete_of_no_session_changes_nothing(self, store: SessionStore) -> None:
        await store.commit(filled(1, 3))
        await store.delete(7)
        assert await sequences(store) == [1, 2, 3]

    async def test_deleted_session_is_gone_and_its_name_is_free(self, store: MeasuredStore) -> None:
        await store.commit(filled(2, 5, text="innocent"))
        before = await store.used_bytes()
        rows = filled(1, 300, text="word", native_session_id="n")
        rows.turns, rows.permissions = [turn(1, state="running")], [permission("p")]
        rows.snapshots = [SnapshotRow(1, 300, 300, b"{}")]
        await store.commit(rows)
        for _ in range(2):
            await store.delete(1)
            assert await store.session("session-1") is None
            assert await store.native_session("claude", "n") is None
            assert await listed(store) == [2]
            assert await sequences(store) == await indexes(store) == []
            assert await store.turns(1, limit=9) == []
            assert await store.turn(1, turn_id="turn_1") is None
            assert await store.permission(1, "p") is None
            assert await store.snapshot(1) is None
            assert await store.search("word", limit=9) == []
            assert await store.open_turns() == []
            assert await store.pending_permissions(limit=9) == []
        assert await store.used_bytes() <= before * 1.5
        assert await sequences(store, 2) == [1, 2, 3, 4, 5]
        await store.commit(filled(3, 2, session_id="session-1", text="word"))
        found = await store.session("session-1")
        assert found is not None
        assert found.key == 3
        assert await sequences(store, 3) == [1, 2]
        assert len(await store.search("word", limit=9)) == 2

    async def test_hidden_session_is_out_of_sight_until_it_is_deleted(self, opener: Opener) -> None:
        async with opener() as store:
            for key in (1, 2):
                rows = filled(key, 3, text="word", native_session_id="n")
                rows.turns, rows.permissions = [turn(1, key, state="running")], [permission("p", key)]
                await store.commit(rows)
            await store.hide(1)
            await store.hide(9)
            assert await store.session("session-1") is None
            assert await listed(store) == [2]
            assert {row.key for row, _ in await store.open_turns()} == {2}
            assert {row.key for row, _ in await store.pending_permissions(limit=9)} == {2}
            # A late row of the recorder's doesn't bring it back, nor is its name taken.
            await store.commit(Changes(sessions=[session(1)]))
            assert await store.session("session-1") is None
            await store.commit(Changes(sessions=[session(3, session_id="session-1")]))
        async with opener() as store:
            assert await sequences(store, 1) == await indexes(store, 1) == []
            assert await listed(store) == [3, 2]
            assert await sequences(store, 2) == [1, 2, 3]

    async def test_deletes_and_commits_at_once_all_end(self, store: SessionStore) -> None:
        for key in range(1, 9):
            await store.commit(filled(key, 50, text="word"))

        async def write() -> None:
            for number in range(51, 71):
                await store.commit(
                    Changes(events=[event(number, 8)], texts=[TextRow(8, number, TIME, "word")])
                )

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            for key in range(1, 8):
                group.start_soon(store.delete, key)
                group.start_soon(store.delete, key)
        assert await listed(store) == [8]
        assert await sequences(store, 8) == list(range(1, 71))
        assert len(await store.search("word", limit=99)) == 70

    async def test_expiry_asks_before_it_deletes_a_session(self, store: SessionStore) -> None:
        for key in (1, 2, 3):
            await store.commit(filled(key, 5))
        await store.commit(filled(4, 5, managed=True))
        asked: list[SessionRow] = []

        async def retire(row: SessionRow) -> bool:
            asked.append(row)
            if row.key == 3:
                await store.hide(row.key)
            return row.key != 2

        lost = await store.expire(before=TIME + 1_000, retire=retire)
        assert sorted(row.key for row in lost) == [1, 2, 3, 4]
        assert sorted(row.key for row in asked) == [1, 2, 3]
        assert all((row.first_sequence, row.last_sequence) == (6, 5) for row in [*asked, *lost])
        assert await listed(store) == [4, 2]
        assert await sequences(store, 2) == await indexes(store, 4) == []
