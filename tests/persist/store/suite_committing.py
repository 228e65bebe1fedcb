"""What is committed: all or nothing, once, and the rows that it replaces."""

from __future__ import annotations

import anyio
import pytest
from msgspec.structs import replace

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store import (
    LARGE_BYTES,
    Changes,
    EnvelopeRow,
    EventRow,
    SessionStore,
    SnapshotRow,
    TextRow,
)
from tests.persist.store.making import (
    FULL,
    PLENTY,
    TIME,
    envelope,
    event,
    filled,
    indexes,
    listed,
    permission,
    repeating,
    sequences,
    session,
    turn,
)
from tests.persist.store.suite_base import MeasuredStore, StoreSuite

__all__ = ["CommittingSuite"]


class CommittingSuite(StoreSuite):
    """What is committed: all or nothing, once, and the rows that it replaces."""

    async def test_store_returns_every_column_of_what_was_committed(self, store: SessionStore) -> None:
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

    async def test_envelopes_that_repeat_an_earlier_one_are_returned_as_they_were_committed(
        self, store: SessionStore
    ) -> None:
        large, other = b"a" * LARGE_BYTES, b"b" * LARGE_BYTES
        rows = [
            envelope(1, data=large),
            repeating(2, 1, large),  # in the same commit
            repeating(3, 2, large),
            repeating(4, 3, other),  # a wrong hint
            repeating(5, 99, large),  # another one
            repeating(6, 5, large),
            envelope(7, data=b"=1"),
            envelope(8, data=b"==1"),
        ]
        events = [event(number, envelope=number) for number in range(1, 9)]
        for part in (slice(2), slice(8), slice(8)):
            await store.commit(Changes(sessions=[session()], envelopes=rows[part], events=events[part]))
        expected = [replace(row, same_as=0) for row in rows]
        assert await store.envelopes(1, after=0, limit=99) == expected
        assert await store.envelopes(1, after=2, limit=1) == expected[2:3]
        assert await store.newest_envelopes(1, limit=4) == expected[4:]
        raw = await store.events(1, after=0, limit=99, max_bytes=PLENTY, include_raw=True)
        assert [large.decode() in row.data.decode() for row in raw[:6]] == [
            True,
            True,
            True,
            False,
            True,
            True,
        ]
        small = await store.events(
            1, after=0, limit=99, max_bytes=3 * LARGE_BYTES + LARGE_BYTES // 2, include_raw=True
        )
        assert [row.sequence for row in small] == [1, 2, 3]
        with pytest.raises(PersistError, match="another envelope of index 3"):
            await store.commit(Changes(envelopes=[repeating(3, 1, other)]))

    async def test_sessions_turns_and_permissions_replace_theirs(self, store: SessionStore) -> None:
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
    async def test_commit_stores_every_row_of_a_batch_of_any_size(
        self, rows: int, store: SessionStore
    ) -> None:
        await store.commit(filled(1, rows, text="word"))
        assert await sequences(store) == list(range(1, rows + 1))
        assert await indexes(store) == list(range(1, rows + 1))
        assert len(await store.search("word", limit=1000)) == min(rows, 1000)

    async def test_commit_stores_nothing_when_a_sequence_has_another_event(self, store: SessionStore) -> None:
        await store.commit(filled(1, 3))
        other = EventRow(1, 3, TIME, "error", 0, b'{"other":1}')
        with pytest.raises(PersistError, match="session number 1 has another event of sequence 3"):
            await store.commit(Changes(events=[other, event(4)], turns=[turn(1)]))
        with pytest.raises(PersistError, match="another envelope of index 2"):
            await store.commit(Changes(envelopes=[envelope(2, data=b"{}")], turns=[turn(1)]))
        assert await sequences(store) == [1, 2, 3]
        assert await store.turns(1, limit=9) == []

    async def test_commit_stores_nothing_when_a_name_is_taken(self, store: SessionStore) -> None:
        await store.commit(Changes(sessions=[session()], turns=[turn(1, idempotency_key="k")]))
        with pytest.raises(PersistError, match="contradicts a row that is there"):
            await store.commit(Changes(sessions=[session(2, session_id="session-1")], events=[event(1, 2)]))
        with pytest.raises(PersistError, match="contradicts a row that is there"):
            await store.commit(Changes(turns=[turn(2, idempotency_key="k")], events=[event(1)]))
        assert await sequences(store, 2) == await sequences(store, 1) == []

    async def test_stale_row_of_a_session_takes_nothing_back(self, store: SessionStore) -> None:
        await store.commit(Changes(sessions=[session(first_sequence=5, last_sequence=9)]))
        await store.commit(Changes(sessions=[session(title="new", first_sequence=1, last_sequence=8)]))
        row = await store.session("session-1")
        assert row == session(title="new", first_sequence=5, last_sequence=9)

    async def test_odd_characters_never_fail_a_commit(self, store: SessionStore) -> None:
        odd = "\ud800 \0 \U0001f980 é"
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

    async def test_reads_and_commits_go_on_side_by_side(self, store: SessionStore) -> None:
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

    async def test_commit_of_the_same_rows_again_changes_nothing(self, store: MeasuredStore) -> None:
        """Its outcome may have been unknown, and more may have come to it since."""
        rows = filled(1, 20, text="word")
        rows.turns, rows.permissions = [turn(1, idempotency_key="k")], [permission("p")]
        rows.snapshots = [SnapshotRow(1, 20, 20, b"{}")]
        await store.commit(rows)
        used = await store.used_bytes()
        await store.commit(rows)
        assert await store.used_bytes() == used
        longer = filled(1, 25, text="word")
        longer.turns, longer.permissions = rows.turns, rows.permissions
        for _ in range(2):
            await store.commit(longer)
        assert await sequences(store) == await indexes(store) == list(range(1, 26))
        assert len(await store.search("word", limit=99)) == 25
        assert await store.turns(1, limit=9) == rows.turns

    async def test_commit_takes_the_last_of_several_rows_of_one_name(self, store: SessionStore) -> None:
        await store.commit(
            Changes(
                sessions=[session(title="a", last_sequence=5), session(title="b", last_sequence=4)],
                turns=[turn(1, state="accepted"), turn(1, state="running"), turn(1, state="done")],
                permissions=[permission("p"), permission("p", answered="accepted")],
                snapshots=[SnapshotRow(1, 3, 3, b"{}"), SnapshotRow(1, 2, 2, b"{}")],
                events=[event(1), event(1)],
                envelopes=[envelope(1), envelope(1)],
            )
        )
        assert await store.session("session-1") == session(title="b", last_sequence=5)
        assert await store.turns(1, limit=9) == [turn(1)]
        assert await store.open_turns() == []
        assert await store.pending_permissions(limit=9) == []
        assert await store.snapshot(1) == SnapshotRow(1, 3, 3, b"{}")
        assert await sequences(store) == await indexes(store) == [1]

    async def test_commit_of_nothing_is_fine(self, store: SessionStore) -> None:
        await store.commit(Changes())
        assert await store.sessions(limit=9) == ([], None)

    async def test_commit_stores_nothing_when_any_row_is_refused(self, store: MeasuredStore) -> None:
        """Whichever kind of row it is, and whatever comes beside it."""
        first = filled(1, 3, text="first")
        first.turns = [turn(1, idempotency_key="k")]
        await store.commit(first)
        before = await store.used_bytes()

        def beside() -> Changes:
            rows = filled(2, 3, text="beside")
            rows.turns, rows.permissions = [turn(1, 2)], [permission("p", 2)]
            rows.snapshots = [SnapshotRow(2, 3, 3, b"{}")]
            rows.events.append(event(4))
            return rows

        for refused in ("event", "time", "envelope", "sender", "name", "key"):
            rows = beside()
            match refused:
                case "event":
                    rows.events.append(EventRow(1, 2, TIME + 2, "item.delta", 2, b'{"other":1}'))
                case "time":
                    rows.events.append(EventRow(1, 2, TIME + 9, "item.delta", 2, first.events[1].data))
                case "envelope":
                    rows.envelopes.append(envelope(3, data=b"{}"))
                case "sender":
                    rows.envelopes.append(EnvelopeRow(1, 1, TIME + 1, "client", "epoch", b'{"index":1}'))
                case "name":
                    rows.sessions.append(session(3, session_id="session-1"))
                case _:
                    rows.turns.append(turn(2, idempotency_key="k"))
            with pytest.raises(PersistError):
                await store.commit(rows)
            assert await listed(store) == [1]
            assert await sequences(store) == [1, 2, 3]
            assert await sequences(store, 2) == await indexes(store, 2) == []
            assert await store.search("beside", limit=9) == []
            assert await store.turns(2, limit=9) == []
            assert await store.permission(2, "p") is None
            assert await store.snapshot(2) is None
            assert await store.used_bytes() == before
        await store.commit(beside())
        assert await sequences(store) == [1, 2, 3, 4]

    async def test_commits_at_once_are_all_stored(self, store: SessionStore) -> None:
        async def write(key: int) -> None:
            await store.commit(Changes(sessions=[session(key)]))
            for number in range(1, 11):
                await store.commit(
                    Changes(
                        sessions=[session(key, last_sequence=number, last_envelope=number)],
                        events=[event(number, key)],
                        envelopes=[envelope(number, key)],
                    )
                )

        async with anyio.create_task_group() as group:
            for key in range(1, 11):
                group.start_soon(write, key)
        for key in range(1, 11):
            assert await sequences(store, key) == await indexes(store, key) == list(range(1, 11))
            row = await store.session(f"session-{key}")
            assert row == session(key, last_sequence=10, last_envelope=10)

    async def test_session_may_be_renamed_and_its_name_used_again(self, store: SessionStore) -> None:
        await store.commit(Changes(sessions=[session(1)]))
        await store.commit(Changes(sessions=[session(1, session_id="renamed")]))
        assert await store.session("session-1") is None
        await store.commit(Changes(sessions=[session(2, session_id="session-1")]))
        found = await store.session("session-1")
        assert found is not None
        assert found.key == 2
