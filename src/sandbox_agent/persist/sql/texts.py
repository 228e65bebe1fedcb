"""The texts that the SDK's drivers search, which a search derives from the events first.

Appends never touch them. A search derives the texts of what was stored since the last one, session by
session; the extent of a session says how far its texts go.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import anyio.to_thread

from sandbox_agent.persist.folding import Folder, Said
from sandbox_agent.persist.sql.log import to_event
from sandbox_agent.persist.sql.work import Database, Query, Work
from sandbox_agent.wire.records import SessionEvent

# Events that are read, and turned into texts, in one go.
_SLICE: Final = 1_000

_STALE: Final = """
SELECT session.id, extent.resume_at, extent.last_index, extent.last_id
FROM {sessions} AS session LEFT JOIN {extents} AS extent ON extent.session_id = session.id
WHERE (CAST($1 AS text) IS NULL OR session.id = $1) AND (
  coalesce(extent.last_index, 0) <> coalesce((
    SELECT max(event_index) FROM {events} WHERE session_id = session.id
  ), 0)
  OR (extent.last_id IS NOT NULL AND NOT EXISTS (
    SELECT 1 FROM {events} WHERE session_id = session.id AND event_index = extent.last_index
      AND id = extent.last_id
  ))
)
"""
_EVENTS: Final = """
SELECT {event_columns} FROM {events} WHERE session_id = $1 AND event_index >= $2
ORDER BY event_index LIMIT $3
"""
_IS_THERE: Final = "SELECT 1 FROM {events} WHERE session_id = $1 AND event_index = $2 AND id = $3"
_EXTENT: Final = "SELECT resume_at, last_index, last_id FROM {extents} WHERE session_id = $1{for_update}"
_FORGET: Final = "DELETE FROM {extents} WHERE session_id = $1"
_FIRST_EXTENT: Final = """
INSERT INTO {extents} (session_id, resume_at, last_index, last_id) VALUES ($1, $2, $3, $4)
ON CONFLICT DO NOTHING RETURNING 1
"""
_NEXT_EXTENT: Final = """
UPDATE {extents} SET resume_at = $2, last_index = $3, last_id = $4 WHERE session_id = $1 RETURNING 1
"""


class Extent(NamedTuple):
    """How far a session's texts go; see ``Folder.resume_at``.

    The last event's id differs for a session that was made again under the same id.
    """

    resume_at: int
    last_index: int
    last_id: str


class TextIndex(Protocol):
    """An engine's full-text index over the texts."""

    def prepare(self, texts: Sequence[Said]) -> Sequence[Any]:
        """Return the texts as ``add`` receives them; called in a thread."""
        return texts

    def lock(self, session_id: str) -> Work[None]:
        """Make the tables where they are missing, and keep the session from being deleted meanwhile."""
        ...

    def remove(self, session_id: str, first: int) -> Work[None]:
        """Remove the session's texts from that event index on."""
        ...

    def add(self, session_id: str, texts: Sequence[Any]) -> Work[None]:
        """Add texts that ``prepare`` returned."""
        ...


async def update_texts(database: Database, index: TextIndex, session_id: str | None) -> None:
    """Derive the texts of all events that are stored, of one session or of all.

    Raises:
        PersistError: the store failed.
    """
    for row in await database.read(partial(_query, _STALE, (session_id,))):
        await _update(database, index, row[0], None if row[1] is None else Extent(*row[1:]))


async def _update(database: Database, index: TextIndex, session_id: str, known: Extent | None) -> None:
    """Update a session, or leave it where another search or a deletion was faster."""
    if known is not None and not await database.read(
        partial(_query, _IS_THERE, (session_id, known.last_index, known.last_id))
    ):
        # Made again under the same id by a program that does not know about the texts.
        if not await database.write(partial(_store, index, session_id, known, None, 0, ())):
            return
        known = None
    folder = Folder()
    start = replaced_from = known.resume_at if known else 0
    while True:
        rows = await database.read(partial(_query, _EVENTS, (session_id, start, _SLICE + 1)))
        if not rows:
            return
        is_end = len(rows) <= _SLICE
        events = [to_event(row) for row in rows[:_SLICE]]
        texts = await anyio.to_thread.run_sync(_extract, index, folder, events, is_end)
        extent = Extent(folder.resume_at, events[-1].event_index, events[-1].id)
        store = partial(_store, index, session_id, known, extent, replaced_from, texts)
        if not await database.write(store) or is_end:
            return
        # What is stored from here on comes after it.
        known, start, replaced_from = extent, extent.last_index + 1, extent.last_index + 1


def _extract(index: TextIndex, folder: Folder, events: Sequence[SessionEvent], is_end: bool) -> Sequence[Any]:
    for event in events:
        folder.add(event)
    return index.prepare([*folder.finished(), *(folder.unfinished() if is_end else ())])


def _store(
    index: TextIndex,
    session_id: str,
    known: Extent | None,
    extent: Extent | None,
    replaced_from: int,
    texts: Sequence[Any],
) -> Work[bool]:
    """Store a slice's texts, and how far they go; False where what they are derived from has changed."""
    yield from index.lock(session_id)
    rows = yield Query(_EXTENT, (session_id,))
    if (Extent(*rows[0]) if rows else None) != known:
        return False
    if extent is None:
        yield from index.remove(session_id, 0)
        yield Query(_FORGET, (session_id,))
        return True
    if not (yield Query(_IS_THERE, (session_id, extent.last_index, extent.last_id))):
        return False
    if not (yield Query(_FIRST_EXTENT if known is None else _NEXT_EXTENT, (session_id, *extent))):
        return False
    yield from index.remove(session_id, replaced_from)
    yield from index.add(session_id, texts)
    return True


def _query(statement: str, values: Sequence[Any]) -> Work[list[Sequence[Any]]]:
    return (yield Query(statement, values))
