"""What is found, in which order, and that no query is an error."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_agent.persist.searching import parse_query
from sandbox_agent.persist.sqlite.store import SQLiteSessionStore
from sandbox_agent.persist.store import Changes, TextRow
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
