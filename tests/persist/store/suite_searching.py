"""What a search finds, and where."""

from __future__ import annotations

import pytest

from sandbox_agent.persist.store import (
    Changes,
    SessionStore,
    TextRow,
)
from tests.persist.store.making import (
    TIME,
    fill,
    filled,
    session,
)
from tests.persist.store.suite_base import StoreSuite

__all__ = ["SearchingSuite"]


class SearchingSuite(StoreSuite):
    """What a search finds, and where."""

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
