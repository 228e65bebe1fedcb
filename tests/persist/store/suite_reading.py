"""What is read: every column and byte, pages, names, keys, also after the store was opened again."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.persist.store import (
    Changes,
    EnvelopeRow,
    EventRow,
    SessionStore,
    SnapshotRow,
)
from tests.persist.store.making import (
    NASTY,
    PLENTY,
    TIME,
    envelope,
    event,
    filled,
    permission,
    sequences,
    session,
    turn,
)
from tests.persist.store.suite_base import Opener, StoreSuite

__all__ = ["ReadingSuite"]


class ReadingSuite(StoreSuite):
    """What is read: every column and byte, pages, names, keys, also after the store was opened again."""

    async def test_store_returns_nothing_where_there_is_nothing(self, store: SessionStore) -> None:
        assert await store.session("session-1") is None
        assert await store.native_session("claude", "x") is None
        assert await store.sessions(limit=5) == ([], None)
        assert await store.events(1, after=0, limit=9, max_bytes=1) == []
        assert await store.newest_envelopes(1, limit=3) == []
        assert await store.turn(1, turn_id="t") is None
        assert await store.turn(1, idempotency_key="k") is None
        assert await store.snapshot(1) is None
        assert await store.permission(1, "p") is None

    async def test_events_begin_behind_any_sequence_and_end_at_the_session(self, store: SessionStore) -> None:
        await store.commit(filled(1, 30))
        await store.commit(filled(2, 5))
        for after in (0, 1, 15, 29, 30, 31, 2**32, 10**30, -1, -(10**30)):
            expected = list(range(min(max(after, 0), 30) + 1, 31))
            assert await sequences(store, 1, after) == expected
        assert len(await store.events(1, after=3, limit=7, max_bytes=PLENTY)) == 7
        assert await store.events(1, after=0, limit=0, max_bytes=PLENTY) == []
        assert [row.index for row in await store.newest_envelopes(1, limit=2)] == [29, 30]
        assert [row.index for row in await store.envelopes(1, after=27, limit=2)] == [28, 29]

    async def test_events_fit_the_bytes_asked_for_but_one_always_comes(self, store: SessionStore) -> None:
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
        self, raw: bytes, shown: Any, store: SessionStore
    ) -> None:
        unparsed = EventRow(1, 2, TIME, "agent.unparsed", 1, b'{"raw":"own"}')
        rows = [event(1, envelope=1), unparsed, event(3), event(4, envelope=9)]
        await store.commit(Changes(sessions=[session()], events=rows, envelopes=[envelope(1, data=raw)]))
        found = await store.events(1, after=0, limit=9, max_bytes=PLENTY, include_raw=True)
        first = json.loads(found[0].data)
        assert first.pop("raw") == shown
        assert first == json.loads(rows[0].data)
        assert b"\n" not in found[0].data
        assert b"\r" not in found[0].data
        assert [row.data for row in found[1:]] == [row.data for row in rows[1:]]

    async def test_sessions_come_newest_first_on_pages_without_repeats(self, store: SessionStore) -> None:
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
    async def test_sessions_refuses_a_cursor_that_is_none_of_its_own(
        self, cursor: str, store: SessionStore
    ) -> None:
        with pytest.raises(InvalidRequestError, match="nextCursor"):
            await store.sessions(limit=5, cursor=cursor)

    async def test_store_returns_the_bytes_that_it_was_given(self, store: SessionStore) -> None:
        rows = Changes(sessions=[session(usage=NASTY[1], settings=NASTY[2])])
        for number, data in enumerate(NASTY, 1):
            rows.envelopes.append(EnvelopeRow(1, number, TIME, "client", "c\xe4", data))
            rows.events.append(EventRow(1, number, TIME, "item.delta", number, data))
        rows.snapshots = [SnapshotRow(1, 5, 5, NASTY[1])]
        rows.turns = [turn(1, prompt=NASTY[1], usage=NASTY[2], digest=bytes(range(32)))]
        rows.permissions = [permission("p", metadata=NASTY[1], request_id=b'"\\ud800"')]
        await store.commit(rows)
        assert await store.session("session-1") == rows.sessions[0]
        assert await store.envelopes(1, after=0, limit=9) == rows.envelopes
        assert await store.events(1, after=0, limit=9, max_bytes=PLENTY) == rows.events
        assert await store.snapshot(1) == rows.snapshots[0]
        assert await store.turns(1, limit=9) == rows.turns
        assert await store.permission(1, "p") == rows.permissions[0]

    async def test_native_session_is_the_newest_of_that_agent(self, store: SessionStore) -> None:
        columns = {"native_session_id": "n"}
        await store.commit(
            Changes(
                sessions=[
                    session(1, **columns),
                    session(2, **columns),
                    session(3, agent="codex", **columns),
                    session(4, native_session_id="m"),
                ]
            )
        )
        found = await store.native_session("claude", "n")
        assert found is not None
        assert found.key == 2
        assert await store.native_session("claude", "N") is None
        # It may get another name from its agent.
        await store.commit(Changes(sessions=[session(2, native_session_id="other"), session(1)]))
        assert await store.native_session("claude", "n") is None
        assert await store.native_session("claude", "other") is not None
        await store.delete(2)
        assert await store.native_session("claude", "other") is None

    async def test_page_of_sessions_that_ends_exactly_is_the_last(self, store: SessionStore) -> None:
        await store.commit(Changes(sessions=[session(key) for key in range(1, 5)]))
        page, cursor = await store.sessions(limit=2)
        assert [row.key for row in page] == [4, 3]
        assert cursor is not None
        # What comes and goes meanwhile moves nothing.
        await store.commit(Changes(sessions=[session(5)]))
        await store.delete(3)
        page, cursor = await store.sessions(limit=2, cursor=cursor)
        assert [row.key for row in page] == [2, 1]
        assert cursor is None
        assert await store.sessions(limit=0) == ([], None)

    async def test_turns_are_found_by_number_id_and_key(self, store: SessionStore) -> None:
        rows = [
            turn(number, key, turn_id=f"t{number}", idempotency_key=f"k{number % 3}" if number < 3 else None)
            for key in (1, 2)
            for number in (3, 1, 2, 10, 9)
        ]
        await store.commit(Changes(sessions=[session(1), session(2)], turns=rows))
        assert [row.number for row in await store.turns(1, limit=99)] == [1, 2, 3, 9, 10]
        assert [row.number for row in await store.turns(1, limit=2)] == [9, 10]
        assert await store.turns(1, limit=0) == []
        found = await store.turn(2, turn_id="t2")
        assert found is not None
        assert (found.key, found.number) == (2, 2)
        assert await store.turn(2, idempotency_key="k2") == found
        assert await store.turn(2, turn_id="k2") is None
        assert await store.turn(2, idempotency_key="t2") is None
        assert await store.turn(3, turn_id="t2") is None

    async def test_open_turns_come_by_session_and_number(self, store: SessionStore) -> None:
        rows = [
            turn(number, key, state=state)
            for key in (2, 1, 10)
            for number, state in ((10, "accepted"), (2, "running"), (3, "done"), (4, "failed"))
        ]
        await store.commit(Changes(sessions=[session(1), session(2), session(10)], turns=rows))
        found = await store.open_turns()
        assert [(row.key, one.key, one.number) for row, one in found] == [
            (1, 1, 2),
            (1, 1, 10),
            (2, 2, 2),
            (2, 2, 10),
            (10, 10, 2),
            (10, 10, 10),
        ]
        await store.delete(2)
        assert {row.key for row, _ in await store.open_turns()} == {1, 10}

    async def test_pending_permissions_come_oldest_first(self, store: SessionStore) -> None:
        asked = [
            permission("b", 1, requested_at=TIME + 2, sequence=4),
            permission("a", 2, requested_at=TIME + 2, sequence=3),
            permission("c", 1, requested_at=TIME + 1, sequence=9),
            permission("d", 1, requested_at=TIME + 2, sequence=2),
            permission("e", 1, requested_at=TIME, answered="accepted"),
        ]
        await store.commit(Changes(sessions=[session(1), session(2)], permissions=asked))
        found = await store.pending_permissions(limit=9)
        assert [one.permission_id for _, one in found] == ["c", "d", "b", "a"]
        assert [row.key for row, _ in found] == [1, 1, 1, 2]
        assert len(await store.pending_permissions(limit=2)) == 2
        await store.commit(Changes(permissions=[permission("d", 1, sequence=2, answered="expired")]))
        await store.delete(2)
        found = await store.pending_permissions(limit=9)
        assert [one.permission_id for _, one in found] == ["c", "b"]

    async def test_keys_are_never_used_again_even_after_deletes_and_restarts(self, opener: Opener) -> None:
        async with opener() as store:
            assert [await store.next_key(), await store.next_key()] == [1, 2]
            await store.commit(Changes(sessions=[session(2)]))
            await store.delete(2)
        async with opener() as store:
            assert await store.next_key() == 3
            await store.commit(Changes(sessions=[session(7)]))
            assert await store.next_key() == 8

    async def test_store_has_everything_when_it_is_opened_again(self, opener: Opener) -> None:
        rows = filled(1, 9, text="word", managed=True)
        rows.turns, rows.permissions = [turn(1, state="running")], [permission("p")]
        rows.snapshots = [SnapshotRow(1, 9, 9, NASTY[1])]
        async with opener() as store:
            await store.commit(rows)
        for _ in range(2):
            async with opener() as store:
                assert await store.session("session-1") == rows.sessions[0]
                assert await store.events(1, after=0, limit=99, max_bytes=PLENTY) == rows.events
                assert await store.envelopes(1, after=0, limit=99) == rows.envelopes
                assert await store.open_turns() == [(rows.sessions[0], rows.turns[0])]
                assert await store.pending_permissions(limit=9) == [(rows.sessions[0], rows.permissions[0])]
                assert await store.snapshot(1) == rows.snapshots[0]
                assert len(await store.search("word", limit=99)) == 9
                await store.commit(rows)
