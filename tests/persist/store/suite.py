"""What every server store keeps to: a store's test module subclasses it and says how it is opened.

::

    class TestMyStore(SessionStoreSuite):
        @pytest.fixture
        def opener(self, tmp_path: Path) -> Opener:
            return lambda: opened(tmp_path / "store.db")

Each call of the opener opens the same store, which is empty at first, and lets go of it at the end; it also
finishes the deletes that were interrupted. Only one is open at a time.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import anyio
import pytest

from sandbox_agent.errors import InvalidRequestError, PersistError
from sandbox_agent.persist.store import (
    Changes,
    EnvelopeRow,
    EventRow,
    SessionRow,
    SessionStore,
    SnapshotRow,
    TextRow,
)
from tests.persist.store.making import (
    PLENTY,
    TIME,
    envelope,
    event,
    filled,
    indexes,
    permission,
    sequences,
    session,
    turn,
)

__all__ = ["MeasuredStore", "Opener", "SessionStoreSuite"]


class MeasuredStore(SessionStore, Protocol):
    """A store that says how much of ``--retain-bytes`` it uses, as all here do."""

    async def used_bytes(self) -> int:
        """Return what ``expire(max_bytes=…)`` compares."""
        ...


Opener = Callable[[], AbstractAsyncContextManager[MeasuredStore]]

FULL = session(
    managed=True,
    native_session_id="native",
    server_id="server",
    directory="/ä",
    title='a "title"\0 \U0001f980 \x01 \ufffe',
    model="m",
    agent_mode="plan",
    permission_mode="ask",
    variant="high",
    ended=True,
    first_sequence=2,
    last_sequence=9,
    last_envelope=7,
    usage=b'{"inputTokens":1}',
    settings=b'{"agent":"claude"}',
)

# Bytes that a store may spoil: no UTF-8, a null character, escapes of what no strict text can hold, blanks.
NASTY = (
    b"\xff\x00 no JSON",
    b'{"a":"\\u0000 \\ud800 \\"q\\"","b":"\xf0\x9f\xa6\x80 \xe2\x80\xa8","big":1234567890123456789012345678}',
    b'{ "sp":  [ 1 , 2 ],\t"f":1e-7}\r\n',
    b"",
    bytes(range(256)),
)

TEXTS = [
    "the quick brown Fox",
    "a FOX, a fox and the fox",
    "Crème brûlée with naïve café",
    "foo-bar (foo_baz) 100% C++ \u4f60\u597d",
    "lazy dog\nquick as a fox",
]


async def fill(store: SessionStore) -> None:
    await store.commit(
        Changes(
            sessions=[session(1, title="One"), session(2, agent="codex", session_id="two")],
            texts=[TextRow(1 + n % 2, n + 1, TIME + 10 * n, text) for n, text in enumerate(TEXTS)],
        )
    )


async def listed(store: SessionStore) -> list[int]:
    """Return the keys of the sessions, newest first."""
    return [row.key for row in (await store.sessions(limit=1_000))[0]]


class SessionStoreSuite:
    """The promises of ``SessionStore``; see the module's docstring for its use."""

    @pytest.fixture
    def opener(self) -> Opener:
        """How the store is opened."""
        raise NotImplementedError

    @pytest.fixture
    async def store(self, opener: Opener) -> AsyncGenerator[MeasuredStore]:
        """The store, open."""
        async with opener() as store:
            yield store

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

    @pytest.mark.parametrize(
        ("query", "found"),
        [
            ("fox", {1, 2, 5}),
            ("FOX quick", {1, 5}),
            ('"quick brown"', {1}),
            ('"brown quick"', set[int]()),
            ('"quick brown', {1}),
            ("creme BRULEE", {3}),
            ("cafe\u0301", {3}),
            ("foo-bar", {4}),
            ("foo bar", {4}),
            ("fox nothing", set[int]()),
            ("fox AND dog", set[int]()),
            ("lazy -dog", {5}),
            ("qui*", set[int]()),
            ("text:fox", set[int]()),
            ('fox "" ()', {1, 2, 5}),
            ("", set[int]()),
            (" \t\n", set[int]()),
            ('"', set[int]()),
            ('* " - ( ) : ^', set[int]()),
        ],
    )
    async def test_search_finds_items_with_all_words_and_phrases(
        self, query: str, found: set[int], store: SessionStore
    ) -> None:
        await fill(store)
        assert {hit.sequence for hit in await store.search(query, limit=9)} == found

    async def test_search_tells_where_with_the_words_in_brackets(self, store: SessionStore) -> None:
        await fill(store)
        (hit,) = await store.search("CAFE naive", limit=9)
        assert hit.snippet == "Crème brûlée with [naïve] [café]"
        assert (hit.session_id, hit.agent, hit.title, hit.sequence, hit.time) == (
            "session-1",
            "claude",
            "One",
            3,
            TIME + 20,
        )

    async def test_search_puts_the_item_that_has_most_of_a_word_first(self, store: SessionStore) -> None:
        await fill(store)
        everything = [hit.sequence for hit in await store.search("fox", limit=9)]
        assert everything[0] == 2
        pages = [await store.search("fox", limit=1, offset=offset) for offset in range(4)]
        assert [hit.sequence for page in pages for hit in page] == everything

    async def test_search_keeps_to_its_filters(self, store: SessionStore) -> None:
        await fill(store)

        async def found(agent: str | None = None, session_id: str | None = None, **times: int) -> set[int]:
            hits = await store.search("fox", limit=9, agent=agent, session_id=session_id, **times)
            return {hit.sequence for hit in hits}

        assert await found(agent="claude") == {1, 5}
        assert await found(agent="codex", session_id="two") == {2}
        assert await found(agent="claude", session_id="two") == set()
        assert await found(session_id="unknown") == set()
        assert await found(agent="un known\ud800") == set()
        assert await found(since=TIME + 10) == {2, 5}
        assert await found(until=TIME + 10) == {1}
        assert await found(since=TIME + 10, until=TIME + 11) == {2}
        assert await found(since=-(10**30), until=10**30) == {1, 2, 5}
        # The words that the filters use are found by no query.
        assert await store.search("s1", limit=9) == []

    async def test_search_of_common_words_gives_the_newest_first(self, store: SessionStore) -> None:
        texts = [TextRow(1, n, TIME + n, "the error" + " rare" * (n == 7)) for n in range(1, 3_001)]
        await store.commit(Changes(sessions=[session()], texts=texts))
        assert [hit.sequence for hit in await store.search("the error", limit=3)] == [3000, 2999, 2998]
        page = await store.search("error", limit=2, offset=2_500)
        assert [hit.sequence for hit in page] == [500, 499]
        assert [hit.sequence for hit in await store.search("the rare error", limit=3)] == [7]
        assert await store.search("error", limit=3, offset=10**12) == []

    async def test_search_finds_items_by_their_time_when_the_clock_went_back(
        self, store: SessionStore
    ) -> None:
        await store.commit(Changes(sessions=[session()]))
        times = [50, 10, 50, 10, 30, 10, 50, 0, 49]
        for number, time in enumerate(times, 1):
            await store.commit(Changes(texts=[TextRow(1, number, TIME + time, "word")]))
        for time in sorted(set(times)):
            hits = await store.search("word", limit=9, since=TIME + time, until=TIME + time + 1)
            assert {hit.sequence for hit in hits} == {n for n, t in enumerate(times, 1) if t == time}

    async def test_search_finds_more_items_of_one_millisecond_than_an_id_has_room_for(
        self, store: SessionStore
    ) -> None:
        await store.commit(Changes(sessions=[session()]))
        for start in range(0, 9_000, 3_000):
            texts = [TextRow(1, start + n, TIME, f"word{start + n}") for n in range(1, 3_001)]
            await store.commit(Changes(texts=[*texts, TextRow(1, 10_000 + start, TIME - 1, "before")]))
        for sequence in (1, 3_000, 4_097, 9_000):
            (hit,) = await store.search(f"word{sequence}", limit=2)
            assert (hit.sequence, hit.time) == (sequence, TIME)
        assert len(await store.search("before", limit=9)) == 3

    async def test_search_finds_only_the_beginning_of_a_huge_item(self, store: SessionStore) -> None:
        text = "first " + "ä" * (256 * 1024) + " last"
        await store.commit(Changes(sessions=[session()], texts=[TextRow(1, 1, TIME, text)]))
        assert len(await store.search("first", limit=9)) == 1
        assert await store.search("last", limit=9) == []

    async def test_delete_of_no_session_changes_nothing(self, store: SessionStore) -> None:
        await store.commit(filled(1, 3))
        await store.delete(7)
        assert await sequences(store) == [1, 2, 3]

    async def test_expiry_by_age_erases_what_is_older_and_says_from_where_the_rest_is(
        self, store: SessionStore
    ) -> None:
        await store.commit(filled(1, 10, text="word", managed=True))
        await store.commit(filled(2, 5, time=TIME + 100))
        await store.commit(
            Changes(
                envelopes=[envelope(1, 0, time=TIME), envelope(2, 0, time=TIME + 50)],
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
        assert await indexes(store, 0) == [2]
        assert {hit.sequence for hit in await store.search("word", limit=99)} == {6, 7, 8, 9, 10}
        # What was said in the turns that are gone is gone; that they were, is known.
        assert [row.prompt for row in await store.turns(1, limit=9)] == [b"[]", b"[2]"]
        blanked, kept = await store.permission(1, "p"), await store.permission(1, "q")
        assert blanked is not None
        assert kept is not None
        assert (blanked.metadata, kept.metadata) == (b"{}", b'{"a":1}')
        assert await store.expire(before=TIME + 6) == []

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

    async def test_store_keeps_the_connections_own_envelopes_under_no_session(
        self, store: SessionStore
    ) -> None:
        await store.commit(Changes(envelopes=[envelope(1, 0), envelope(2, 0)]))
        await store.commit(Changes(sessions=[session()], envelopes=[envelope(3, 0), envelope(1, 1)]))
        assert await indexes(store, 0) == [1, 2, 3]
        assert [row.index for row in await store.newest_envelopes(0, limit=1)] == [3]
        assert await indexes(store, 1) == [1]

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

    async def test_session_may_be_renamed_and_its_name_used_again(self, store: SessionStore) -> None:
        await store.commit(Changes(sessions=[session(1)]))
        await store.commit(Changes(sessions=[session(1, session_id="renamed")]))
        assert await store.session("session-1") is None
        await store.commit(Changes(sessions=[session(2, session_id="session-1")]))
        found = await store.session("session-1")
        assert found is not None
        assert found.key == 2

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

    # Search.

    async def test_search_finds_long_items_and_phrases_anywhere_in_them(self, store: SessionStore) -> None:
        words = " ".join(f"word{n} the" for n in range(17_000))
        await store.commit(
            Changes(
                sessions=[session()],
                texts=[TextRow(1, 1, TIME, words), TextRow(1, 2, TIME, "X" * 5_000 + " end")],
            )
        )
        for query in ("word16000", '"word16000 the word16001"', "word0 word16999", '"the word15000"'):
            assert [hit.sequence for hit in await store.search(query, limit=9)] == [1], query
        assert await store.search('"word16001 the word16000"', limit=9) == []
        (hit,) = await store.search('"word16000 the word16001"', limit=9)
        assert "[word16000" in hit.snippet
        assert len(hit.snippet) < 1_000
        assert [hit.sequence for hit in await store.search("end", limit=9)] == [2]

    async def test_search_finds_nothing_of_what_was_deleted_or_hidden(self, store: SessionStore) -> None:
        for key in (1, 2, 3):
            await store.commit(filled(key, 3, text="word"))
        await store.delete(1)
        await store.hide(2)
        assert {hit.session_id for hit in await store.search("word", limit=99)} == {"session-3"}
        assert await store.search("word", limit=99, session_id="session-2") == []

    async def test_search_tells_the_name_and_title_of_now(self, store: SessionStore) -> None:
        await store.commit(filled(1, 1, text="word", title="old"))
        await store.commit(Changes(sessions=[session(1, session_id="new name", title="new")]))
        (hit,) = await store.search("word", limit=9, session_id="new name")
        assert (hit.session_id, hit.title) == ("new name", "new")

    @pytest.mark.parametrize(
        "query", ["\ud800", "\0", "'", "\\", "%", "a' OR 1=1 --", "& | ! <->", ":*", "\x01", "-@()|~{}"]
    )
    async def test_no_query_is_an_error(self, query: str, store: SessionStore) -> None:
        await fill(store)
        for asked in (query, f'"{query}', f"fox{query}fox", f"{query} fox", query * 1_000):
            await store.search(asked, limit=9, agent=query, session_id="two")
            await store.search(asked, limit=9, offset=1)

    # Deleting.

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

    # Expiring.

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

    async def test_expiry_of_nothing_asks_nobody(self, store: SessionStore) -> None:
        async def retire(_: SessionRow) -> bool:
            raise AssertionError

        await store.commit(filled(1, 5))
        assert await store.expire(retire=retire) == []
        assert await store.expire(before=TIME, max_bytes=PLENTY, retire=retire) == []
        assert await sequences(store) == [1, 2, 3, 4, 5]
