"""What is found, in which order, and that no query is an error."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_agent.persist.store import Changes, SQLiteSessionStore, TextRow
from sandbox_agent.persist.store.sqlite_search import parse_query
from tests.persist.store.making import TIME, opened, session

pytestmark = pytest.mark.anyio

TEXTS = [
    "the quick brown Fox",
    "a FOX, a fox and the fox",
    "Crème brûlée with naïve café",
    "foo-bar (foo_baz) 100% C++ \u4f60\u597d",
    "lazy dog\nquick as a fox",
]


async def fill(store: SQLiteSessionStore) -> None:
    await store.commit(
        Changes(
            sessions=[session(1, title="One"), session(2, agent="codex", session_id="two")],
            texts=[TextRow(1 + n % 2, n + 1, TIME + 10 * n, text) for n, text in enumerate(TEXTS)],
        )
    )


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
    query: str, found: set[int], tmp_path: Path
) -> None:
    async with opened(tmp_path / "store.db") as store:
        await fill(store)
        assert {hit.sequence for hit in await store.search(query, limit=9)} == found


async def test_search_tells_where_with_the_words_in_brackets(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
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


async def test_search_puts_the_item_that_has_most_of_a_word_first(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        await fill(store)
        everything = [hit.sequence for hit in await store.search("fox", limit=9)]
        assert everything[0] == 2
        pages = [await store.search("fox", limit=1, offset=offset) for offset in range(4)]
        assert [hit.sequence for page in pages for hit in page] == everything


async def test_search_keeps_to_its_filters(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
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


async def test_search_of_common_words_gives_the_newest_first(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        texts = [TextRow(1, n, TIME + n, "the error" + " rare" * (n == 7)) for n in range(1, 3_001)]
        await store.commit(Changes(sessions=[session()], texts=texts))
        assert [hit.sequence for hit in await store.search("the error", limit=3)] == [3000, 2999, 2998]
        page = await store.search("error", limit=2, offset=2_500)
        assert [hit.sequence for hit in page] == [500, 499]
        assert [hit.sequence for hit in await store.search("the rare error", limit=3)] == [7]
        assert await store.search("error", limit=3, offset=10**12) == []


async def test_search_finds_items_by_their_time_when_the_clock_went_back(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        await store.commit(Changes(sessions=[session()]))
        times = [50, 10, 50, 10, 30, 10, 50, 0, 49]
        for number, time in enumerate(times, 1):
            await store.commit(Changes(texts=[TextRow(1, number, TIME + time, "word")]))
        for time in sorted(set(times)):
            hits = await store.search("word", limit=9, since=TIME + time, until=TIME + time + 1)
            assert {hit.sequence for hit in hits} == {n for n, t in enumerate(times, 1) if t == time}


async def test_search_finds_more_items_of_one_millisecond_than_an_id_has_room_for(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        await store.commit(Changes(sessions=[session()]))
        for start in range(0, 9_000, 3_000):
            texts = [TextRow(1, start + n, TIME, f"word{start + n}") for n in range(1, 3_001)]
            await store.commit(Changes(texts=[*texts, TextRow(1, 10_000 + start, TIME - 1, "before")]))
        for sequence in (1, 3_000, 4_097, 9_000):
            (hit,) = await store.search(f"word{sequence}", limit=2)
            assert (hit.sequence, hit.time) == (sequence, TIME)
        assert len(await store.search("before", limit=9)) == 3


async def test_search_finds_only_the_beginning_of_a_huge_item(tmp_path: Path) -> None:
    async with opened(tmp_path / "store.db") as store:
        text = "first " + "ä" * (256 * 1024) + " last"
        await store.commit(Changes(sessions=[session()], texts=[TextRow(1, 1, TIME, text)]))
        assert len(await store.search("first", limit=9)) == 1
        assert await store.search("last", limit=9) == []


@settings(deadline=None)  # it is not about how long they take
@given(st.lists(st.text(max_size=40), min_size=30, max_size=30))
def test_no_query_is_an_error(queries: list[str]) -> None:
    async def ask() -> None:
        async with opened(":memory:") as store:
            await fill(store)
            for query in [*queries, *(f'"{query}" fox' for query in queries)]:
                await store.search(query, limit=3, agent=query or None)

    anyio.run(ask)


def test_only_the_beginning_of_a_long_query_counts() -> None:
    assert len(parse_query("word " * 100_000)) == 32
    assert parse_query('a"b c"d') == ["a", "b c", "d"]
