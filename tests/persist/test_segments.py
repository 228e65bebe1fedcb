"""Feed segments in a temporary file: read back as they were written, and gone with their feed."""

from __future__ import annotations

import sqlite3

import pytest

from sandbox_agent.engine.feed import Chunk
from sandbox_agent.errors import PersistError
from sandbox_agent.persist.segments import SEGMENT_BYTES, temporary_segments
from sandbox_agent.persist.sqlite.thread import TEMPORARY, SQLiteThread

pytestmark = pytest.mark.anyio

ALL = 10**9


def chunk(first: int, last: int, *, audience: str | None = None, size: int = 1) -> Chunk:
    return Chunk(first, last, audience, b"x" * size)


async def test_chunks_are_read_after_a_cursor_about_as_many_as_wanted() -> None:
    large = [chunk(n, n, size=SEGMENT_BYTES) for n in range(1, 5)]
    async with temporary_segments() as segments:
        assert await segments.read("one", 0, ALL) == []
        await segments.write("one", large)
        await segments.write("other", [chunk(1, 9)])
        assert await segments.read("one", 0, ALL) == large
        assert await segments.read("one", 2, 1) == [large[2]]
        assert await segments.read("one", 1, SEGMENT_BYTES + 1) == large[1:3]
        assert await segments.read("one", 4, ALL) == []


async def test_neighbors_of_one_audience_are_one_chunk() -> None:
    async with temporary_segments() as segments:
        await segments.write("one", [chunk(1, 1), chunk(2, 3), chunk(4, 4, audience="a")])
        assert await segments.read("one", 0, ALL) == [
            Chunk(1, 3, None, b"xx"),
            chunk(4, 4, audience="a"),
        ]


async def test_feed_that_ends_leaves_the_others() -> None:
    async with temporary_segments() as segments:
        await segments.write("one", [chunk(1, 1)])
        await segments.write("other", [chunk(1, 2)])
        await segments.drop("one")
        await segments.drop("unknown")
        assert await segments.read("one", 0, ALL) == []
        assert await segments.read("other", 0, ALL) == [chunk(1, 2)]


async def test_full_disk_is_explained_although_the_file_has_no_name() -> None:
    def limit(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA max_page_count=3")

    def fill(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE data AS SELECT zeroblob(1000000)")

    thread = SQLiteThread(TEMPORARY, prepare=limit)
    with pytest.raises(PersistError, match=r"temporary store .*TMPDIR.* can't grow.*disk is full"):
        await thread.run(fill)
    await thread.close()
