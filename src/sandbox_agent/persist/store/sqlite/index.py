"""Taking what was erased out of the full text index.

FTS5 keeps an index in segments, which lie on levels, the newest lowest. An erasure is a note in a new
segment; the words, and the note, go when segments are merged into the one that is the oldest of all. FTS5
takes that for the oldest only if there is no level above it, be it an empty one.
https://www.sqlite.org/fts5.html#the_merge_command
"""

from __future__ import annotations

import sqlite3
from typing import Final, NamedTuple

__all__ = ["MERGE_PAGES", "begin_merge", "index_pages", "merge_index", "rebuild_index", "stir_index"]

# Pages of the index that one slice of merging writes.
MERGE_PAGES: Final = 250
# An index so small is made anew sooner than merged.
_FEW_PAGES: Final = 32
# Merging all adds levels, and they stay. SQLite 3.40 has no bound, and reads no index of more than 2,000.
_MANY_LEVELS: Final = 1_900
# The row that tells of the segments.
_STRUCTURE_ID: Final = 10


class _Level(NamedTuple):
    segments: int
    merging: int  # how many of them a merge that has begun takes


def index_pages(connection: sqlite3.Connection) -> int:
    """Return about how many pages the index has."""
    return int(connection.execute("SELECT count(*) FROM store_text_index_data").fetchone()[0])


def stir_index(connection: sqlite3.Connection, *, add: bool) -> None:
    """Add a word to the index, or take it away: each is a segment of its own once it is committed.

    An index of a single segment is not merged, though it may be full of notes of what was erased.
    """
    columns, values = ("", "") if add else ("store_text_index, ", "'delete', ")
    connection.execute(
        f"INSERT INTO store_text_index ({columns}rowid, text, scope) VALUES ({values}0, '', 'erased')"  # noqa: S608
    )


def begin_merge(connection: sqlite3.Connection) -> bool | None:
    """Begin to merge all that is there now; what is written meanwhile stays for the next time.

    A small index is made anew instead, in one go.

    Args:
        connection: in a transaction; the index was stirred before it.

    Returns:
        True while there is more to do, None if it has to be stirred again first.
    """
    levels = _levels(connection)
    few = "SELECT count(*) FROM (SELECT 1 FROM store_text_index_data LIMIT ?)"
    pages = connection.execute(few, (_FEW_PAGES + 1,)).fetchone()[0]
    if levels is None or len(levels) > _MANY_LEVELS or pages <= _FEW_PAGES:
        rebuild_index(connection)
        return False
    if _keeps_notes(levels):
        # With a part of it on the next level, and something new below, FTS5 puts all on a new last one.
        _merge(connection, -1)
        return None
    return _merge(connection, -MERGE_PAGES)


def rebuild_index(connection: sqlite3.Connection) -> None:
    """Make the index anew out of the texts, in one go: some 100 ms for each megabyte of them."""
    connection.execute("INSERT INTO store_text_index (store_text_index) VALUES ('rebuild')")


def merge_index(connection: sqlite3.Connection) -> bool:
    """Go on merging; True while there is more to do."""
    return _merge(connection, MERGE_PAGES)


def _merge(connection: sqlite3.Connection, pages: int) -> bool:
    before = connection.total_changes
    connection.execute("INSERT INTO store_text_index (store_text_index, rank) VALUES ('merge', ?)", (pages,))
    return connection.total_changes - before >= 2


def _keeps_notes(levels: list[_Level]) -> bool:
    """Whether FTS5 would merge the segments where they lie, with levels above the result.

    It does so if they are all on one level, or all but one are being merged already.
    """
    total = sum(level.segments for level in levels)
    for number, (segments, merging) in enumerate(levels):
        if segments and segments == total:
            return number < len(levels) - 2
        if segments and segments == merging == total - 1:
            return True
    return False


def _levels(connection: sqlite3.Connection) -> list[_Level] | None:
    """Return the index's levels, the newest first; None where they are written in an unknown way."""
    query = "SELECT block FROM store_text_index_data WHERE id = ?"
    row = connection.execute(query, (_STRUCTURE_ID,)).fetchone()
    if row is None:
        return None
    # A cookie of four bytes, how many levels, how many segments, a counter; then level by level.
    numbers = _varints(row[0][4:])
    if numbers is None or len(numbers) < 3:
        return None
    count, segments = numbers[:2]
    levels: list[_Level] = []
    position = 3
    while len(levels) < count and position + 1 < len(numbers):
        merging, here = numbers[position : position + 2]
        levels.append(_Level(here, merging))
        position += 2 + 3 * here  # of a segment: its id, first and last page
    exact = position == len(numbers) and len(levels) == count
    return levels if exact and sum(level.segments for level in levels) == segments else None


def _varints(data: bytes) -> list[int] | None:
    """Return SQLite's variable-length integers, of up to eight bytes."""
    numbers: list[int] = []
    value = length = 0
    for byte in data:
        value = value << 7 | byte & 0x7F
        length += 1
        if byte < 0x80:
            numbers.append(value)
            value = length = 0
        elif length == 8:
            return None
    return None if length else numbers
