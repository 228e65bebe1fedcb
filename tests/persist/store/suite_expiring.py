"""What expiry erases and what it leaves alone."""

from __future__ import annotations

import pytest

from sandbox_agent.persist.store import (
    LARGE_BYTES,
    Changes,
    SessionRow,
    SessionStore,
    TextRow,
)
from tests.persist.store.making import (
    PLENTY,
    TIME,
    event,
    filled,
    indexes,
    permission,
    repeating,
    sequences,
    session,
    turn,
)
from tests.persist.store.suite_base import MeasuredStore, StoreSuite

__all__ = ["ExpiringSuite"]


class ExpiringSuite(StoreSuite):
    """What expiry erases and what it leaves alone."""

    async def test_expiry_by_age_erases_what_is_older_and_says_from_where_the_rest_is(
        self, store: SessionStore
    ) -> None:
        await store.commit(filled(1, 10, text="word", managed=True))
        await store.commit(filled(2, 5, time=TIME + 100))
        await store.commit(
            Changes(
                turns=[
                    turn(1, prompt=b"[1]", last_sequence=5),
                    turn(2, prompt=b"[2]", last_sequence=6),
                ],
                permissions=[permission("p", sequence=5, answered="x"), permission("q", sequence=5)],
            )
        )
        lost = await store.expire(before=TIME + 6)
        assert [(row.key, row.first_sequence, row.last_sequence) for row in lost] == [(1, 6, 10)]
        assert await store.session("session-1") == lost[0]
        assert await sequences(store) == await indexes(store) == [6, 7, 8, 9, 10]
        assert await sequences(store, 2) == [1, 2, 3, 4, 5]
        assert {hit.sequence for hit in await store.search("word", limit=99)} == {6, 7, 8, 9, 10}
        # What was said in the turns that are gone is gone; that they were, is known.
        assert [row.prompt for row in await store.turns(1, limit=9)] == [b"[]", b"[2]"]
        blanked, kept = await store.permission(1, "p"), await store.permission(1, "q")
        assert blanked is not None
        assert kept is not None
        assert (blanked.metadata, kept.metadata) == (b"{}", b'{"a":1}')
        assert await store.expire(before=TIME + 6) == []

    async def test_what_later_envelopes_repeat_is_kept(self, store: SessionStore) -> None:
        large, other = b"a" * LARGE_BYTES, b"b" * LARGE_BYTES
        for index, data in enumerate((large, other, large, large, other, large), 1):
            row = repeating(index, max(index - 2, 0), data, time=TIME + index)
            row.same_as = {3: 1, 4: 3, 5: 2, 6: 4}.get(index, 0)
            changes = Changes(sessions=[session(managed=True, last_envelope=index)], envelopes=[row])
            await store.commit(changes)
        for before, left in ((2, [2, 3, 4, 5, 6]), (4, [4, 5, 6]), (6, [6])):
            await store.expire(before=TIME + before)
            rows = await store.envelopes(1, after=0, limit=99)
            assert [row.index for row in rows] == left
            assert [row.data for row in rows] == [{2: other, 5: other}.get(index, large) for index in left]

    async def test_what_is_used_is_counted_with_what_is_repeated(self, store: SessionStore) -> None:
        large = b"a" * LARGE_BYTES
        await store.commit(Changes(sessions=[session(managed=True, last_envelope=4)]))
        empty = await store.used_bytes()
        for index in range(1, 5):
            row = repeating(index, index - 1, large, time=TIME + index)
            await store.commit(Changes(envelopes=[row]))
        await store.expire(before=TIME + 3)
        assert await store.used_bytes() >= empty + LARGE_BYTES
        await store.expire(before=TIME + 9)
        # A file keeps some pages for its own tables.
        assert empty <= await store.used_bytes() < empty + LARGE_BYTES

    @pytest.mark.parametrize(
        ("columns", "stays"),
        [({"managed": True}, True), ({"managed": True, "ended": True}, False), ({"managed": False}, False)],
    )
    async def test_session_that_lost_all_stays_while_the_server_drives_it(
        self, columns: dict[str, bool], stays: bool, store: SessionStore
    ) -> None:
        await store.commit(filled(1, 10, text="word", **columns))
        lost = await store.expire(before=TIME + 1_000)
        assert [(row.key, row.first_sequence) for row in lost] == [(1, 11)]
        assert (await store.session("session-1") is not None) == stays
        if stays:
            await store.commit(Changes(sessions=[session(last_sequence=11, **columns)], events=[event(11)]))
            row = await store.session("session-1")
            assert row is not None
            assert (row.first_sequence, row.last_sequence) == (11, 11)

    async def test_expiry_reaches_every_one_of_many_sessions(self, store: SessionStore) -> None:
        keys = range(1, 620)
        rows = Changes(
            sessions=[session(key, managed=True, last_sequence=1) for key in keys],
            events=[event(1, key, time=TIME - key) for key in keys],
        )
        await store.commit(rows)
        lost = await store.expire(before=TIME - 9)
        assert [row.key for row in lost] == list(range(619, 9, -1))
        assert [len(await sequences(store, key)) for key in (1, 9, 10, 250, 251, 500, 619)] == [
            1,
            1,
            0,
            0,
            0,
            0,
            0,
        ]

    async def test_expiry_leaves_a_session_alone_whose_turn_is_open(self, store: SessionStore) -> None:
        for key, state in ((1, "running"), (2, "accepted"), (3, "done")):
            await store.commit(filled(key, 5))
            await store.commit(Changes(turns=[turn(1, key, state=state)]))
        assert [row.key for row in await store.expire(before=TIME + 1_000, max_bytes=0)] == [3]
        assert await sequences(store, 1) == await sequences(store, 2) == [1, 2, 3, 4, 5]

    async def test_expiry_keeps_what_came_behind_a_newer_event_when_the_clock_went_back(
        self, store: SessionStore
    ) -> None:
        times = [1, 2, 50, 3, 4]
        rows = [event(number, time=TIME + time) for number, time in enumerate(times, 1)]
        await store.commit(Changes(sessions=[session(last_sequence=5)], events=rows))
        await store.expire(before=TIME + 10)
        assert await sequences(store) == [3, 4, 5]

    async def test_expiry_by_size_erases_the_oldest_until_it_fits(self, store: MeasuredStore) -> None:
        for key in range(1, 5):
            rows = [event(n, key, time=TIME + key * 1_000 + n, size=2_000) for n in range(1, 501)]
            texts = [TextRow(key, n, row.time, f"word w{key}x{n}") for n, row in enumerate(rows, 1)]
            await store.commit(
                Changes(sessions=[session(key, managed=True, last_sequence=500)], events=rows, texts=texts)
            )
        assert await store.expire(max_bytes=PLENTY) == []
        limit = int(await store.used_bytes() * 0.65)
        lost = await store.expire(max_bytes=limit)
        assert await store.used_bytes() <= limit
        assert {row.key for row in lost} == {1, 2}
        assert await sequences(store, 1) == []
        # Not more than was needed, within a slice.
        assert 50 < len(await sequences(store, 2)) < 450
        assert await sequences(store, 2) == list(range(lost[1].first_sequence, 501))
        assert len(await sequences(store, 3)) == len(await sequences(store, 4)) == 500
        everything = await store.expire(max_bytes=0)
        assert {row.key for row in everything} == {2, 3, 4}
        assert await store.search("word", limit=9) == []

    async def test_expiry_of_nothing_asks_nobody(self, store: SessionStore) -> None:
        async def retire(_: SessionRow) -> bool:
            raise AssertionError

        await store.commit(filled(1, 5))
        assert await store.expire(retire=retire) == []
        assert await store.expire(before=TIME, max_bytes=PLENTY, retire=retire) == []
        assert await sequences(store) == [1, 2, 3, 4, 5]
