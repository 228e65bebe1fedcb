"""Who may write a session: generations, in a table of their own beside those of seed 002.

The table is made when a session is first claimed or deleted, so that a file that neither happened to is as
the TypeScript driver would have made it. A row outlives its session: an old writer must not write into one
that is made anew under the same id.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Final

import msgspec

from sandbox_agent.errors import SessionFencedError
from sandbox_agent.persist.base import UNFENCED
from sandbox_agent.persist.following import Mark

__all__ = ["check_generation", "claim", "forget_writer", "read_marks"]

_CREATE: Final = """
CREATE TABLE IF NOT EXISTS session_writers (
  session_id TEXT PRIMARY KEY,
  generation INTEGER NOT NULL,
  deletions INTEGER NOT NULL
)"""
_RAISE: Final = """
INSERT INTO session_writers (session_id, generation, deletions) VALUES (?, 1, ?)
ON CONFLICT (session_id) DO UPDATE SET
  generation = generation + 1, deletions = deletions + excluded.deletions
RETURNING generation
"""
_MANY: Final = "json_each(?)"
_ONE: Final = "(SELECT ? AS value)"
_LAST: Final = "COALESCE((SELECT MAX(event_index) FROM events WHERE session_id = ids.value), 0)"
_DELETIONS: Final = "COALESCE((SELECT deletions FROM session_writers WHERE session_id = ids.value), 0)"


def claim(connection: sqlite3.Connection, session_id: str) -> int:
    """Return a generation above all that the session had."""
    return _raise_generation(connection, session_id, 0)


def forget_writer(connection: sqlite3.Connection, session_id: str) -> None:
    """Refuse every writer that the session has: it is being deleted."""
    _raise_generation(connection, session_id, 1)


def check_generation(connection: sqlite3.Connection, session_id: str, generation: int) -> None:
    """Refuse a writer whose session was claimed since.

    Raises:
        SessionFencedError: the stored generation is above this one.
    """
    if generation == UNFENCED:
        return
    query = "SELECT generation FROM session_writers WHERE session_id = ?"
    try:
        row = connection.execute(query, (session_id,)).fetchone()
    except sqlite3.OperationalError:
        # Asked only now: every statement gives the interpreter's lock away.
        if _has_table(connection):
            raise
        return
    if row is not None and row[0] > generation:
        raise SessionFencedError(session_id, generation)


def read_marks(connection: sqlite3.Connection, session_ids: Collection[str]) -> dict[str, Mark]:
    """Return how far each of the sessions is."""
    deletions = _DELETIONS if _has_table(connection) else "0"
    # SQLite's JSON ends a text at a null character.
    apart = [session_id for session_id in session_ids if "\0" in session_id]
    together = msgspec.json.encode([session_id for session_id in session_ids if "\0" not in session_id])
    rows: list[tuple[str, int, int]] = []
    for source, value in [(_MANY, together.decode()), *((_ONE, one) for one in apart)]:
        query = f"SELECT ids.value, {_LAST}, {deletions} FROM {source} AS ids"  # noqa: S608 - constants only
        rows += connection.execute(query, (value,)).fetchall()
    return {session_id: Mark(last, deleted) for session_id, last, deleted in rows}


def _raise_generation(connection: sqlite3.Connection, session_id: str, deletions: int) -> int:
    connection.execute(_CREATE)
    (generation,) = connection.execute(_RAISE, (session_id, deletions)).fetchall()[0]
    return int(generation)


def _has_table(connection: sqlite3.Connection) -> bool:
    query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'session_writers'"
    return connection.execute(query).fetchone() is not None
