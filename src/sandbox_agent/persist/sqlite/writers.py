"""Which writer a session has: generations, in a table of their own beside those of the TypeScript SDK.

The table is made when a session is first claimed or deleted, so that a file in which neither happened is as
the TypeScript driver makes it. A row outlives its session: an old writer must not write into a session
that is made again under the same id.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Final

import msgspec

from sandbox_agent.errors import SessionFencedError
from sandbox_agent.persist.base import UNFENCED
from sandbox_agent.persist.follow import Mark
from sandbox_agent.persist.sql.log import UNKNOWN, Known, Writers
from sandbox_agent.persist.sql.work import Query, Work
from sandbox_agent.persist.sqlite.texts import erase_texts, forget_extent
from sandbox_agent.wire.records import SessionEvent

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS session_writers (
  session_id TEXT PRIMARY KEY,
  generation INTEGER NOT NULL,
  deletions INTEGER NOT NULL
)"""
_RAISE: Final = """
INSERT INTO session_writers (session_id, generation, deletions) VALUES ($1, 1, $2)
ON CONFLICT (session_id) DO UPDATE SET
  generation = generation + 1, deletions = deletions + excluded.deletions
RETURNING generation
"""
_HAS_TABLE: Final = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'session_writers'"
_MANY: Final = "json_each($1)"
_ONE: Final = "(SELECT $1 AS value)"
_LAST: Final = "coalesce((SELECT max(event_index) FROM events WHERE session_id = ids.value), 0)"
_DELETIONS: Final = "coalesce((SELECT deletions FROM session_writers WHERE session_id = ids.value), 0)"


class SQLiteWriters(Writers):
    """Implements ``sql.log.Writers``: the file's write lock is held by every transaction."""

    def claim(self, session_id: str) -> Work[int]:
        return (yield from _raise_generation(session_id, 0))

    def check(self, session_id: str, generation: int, known: Known = UNKNOWN) -> Work[Known]:
        if generation == UNFENCED:
            return UNKNOWN
        try:
            rows = yield Query("SELECT generation FROM session_writers WHERE session_id = $1", (session_id,))
        except sqlite3.OperationalError:
            # Asked only now: every statement gives the interpreter's lock away.
            if (yield Query(_HAS_TABLE)):
                raise
            return UNKNOWN
        if rows and rows[0][0] > generation:
            raise SessionFencedError(session_id, generation)
        return UNKNOWN

    def replaced(self, event: SessionEvent) -> Work[None]:
        yield from forget_extent(event)

    def delete(self, session_id: str) -> Work[None]:
        yield from _raise_generation(session_id, 1)
        yield from erase_texts(session_id)
        yield Query("DELETE FROM events WHERE session_id = $1", (session_id,))
        yield Query("DELETE FROM sessions WHERE id = $1", (session_id,))


def read_marks(session_ids: Collection[str]) -> Work[dict[str, Mark]]:
    """Return the last index and the deletions of each session."""
    deletions = _DELETIONS if (yield Query(_HAS_TABLE)) else "0"
    # SQLite's JSON ends a text at a null character.
    apart = [session_id for session_id in session_ids if "\0" in session_id]
    together = msgspec.json.encode([session_id for session_id in session_ids if "\0" not in session_id])
    marks: dict[str, Mark] = {}
    for source, value in [(_MANY, together.decode()), *((_ONE, one) for one in apart)]:
        rows = yield Query(f"SELECT ids.value, {_LAST}, {deletions} FROM {source} AS ids", (value,))
        marks.update((session_id, Mark(last, deleted)) for session_id, last, deleted in rows)
    return marks


def _raise_generation(session_id: str, deletions: int) -> Work[int]:
    yield Query(_CREATE)
    rows = yield Query(_RAISE, (session_id, deletions))
    return int(rows[0][0])
