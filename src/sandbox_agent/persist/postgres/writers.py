"""Which writer a session of a PostgreSQL store has, and the session's last index: one row, locked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.base import UNFENCED
from sandbox_agent.persist.follow import Mark
from sandbox_agent.persist.postgres.schema import mark
from sandbox_agent.persist.sql.log import UNKNOWN, Known
from sandbox_agent.persist.sql.work import Query, Work
from sandbox_agent.wire.records import SessionEvent

# A notification's text is below 8,000 bytes.
_MOST_MARKS: Final = 800
_MAKE: Final = """
INSERT INTO {writers} (session_id, last_index)
SELECT asked.session_id, coalesce((
  SELECT max(event_index) FROM {events} WHERE session_id = asked.session_id
), 0)
FROM unnest($1::text[]) AS asked (session_id)
WHERE EXISTS (SELECT FROM {store} WHERE store_id = $2)
ORDER BY asked.session_id
ON CONFLICT DO NOTHING
"""
_LOCK: Final = """
SELECT generation, last_index, deletions FROM {writers} WHERE session_id = $1 FOR NO KEY UPDATE
"""
_LOCK_WHOLLY: Final = "SELECT 1 FROM {writers} WHERE session_id = $1 FOR UPDATE"
_CLAIM: Final = """
INSERT INTO {writers} AS writer (session_id, generation) VALUES ($1, 1)
ON CONFLICT (session_id) DO UPDATE SET generation = writer.generation + 1
RETURNING generation
"""
_STORED: Final = """
WITH counted AS (
  UPDATE {writers} SET last_index = greatest(last_index, $2) WHERE session_id = $1
)
SELECT pg_notify('{channel}', $3)
"""
_FORGET_EXTENTS: Final = """
DELETE FROM {extents} WHERE (session_id = $1 AND last_index >= $2)
  OR session_id IN (SELECT session_id FROM {events} WHERE id = $3)
"""
_STATES: Final = """
SELECT asked.session_id, coalesce(writer.deletions, 0),
  (SELECT coalesce(max(event_index), 0) FROM {events} WHERE session_id = asked.session_id)
FROM unnest($1::text[]) AS asked (session_id) LEFT JOIN {writers} AS writer USING (session_id)
"""
_DELETE: Final = """
WITH gone_events AS (DELETE FROM {events} WHERE session_id = $1),
  gone_texts AS (DELETE FROM {texts} WHERE session_id = $1),
  gone_extents AS (DELETE FROM {extents} WHERE session_id = $1),
  gone_session AS (DELETE FROM {sessions} WHERE id = $1),
  fenced AS (
    UPDATE {writers} SET generation = generation + 1, deletions = deletions + 1, last_index = 0
    WHERE session_id = $1
  )
SELECT pg_notify('{channel}', $2)
"""


class PostgresWriters:
    """Implements ``sql.log.Writers``: the writer's row is locked until the transaction ends.

    Args:
        target: where the store is, for messages.

    Attributes:
        store_id: identifies this store; set once its tables are there.
    """

    def __init__(self, target: str) -> None:
        self.store_id: str = ""
        self._target = target

    def make(self, session_ids: Sequence[str]) -> Work[None]:
        """Make the rows of sessions that were not claimed or written yet."""
        yield Query(_MAKE, (session_ids, self.store_id))

    def claim(self, session_id: str) -> Work[int]:
        """Return a generation above all that the session had."""
        yield from self.check_store(session_id)
        yield from self.make([session_id])
        rows = yield Query(_CLAIM, (session_id,))
        return int(rows[0][0])

    def check(self, session_id: str, generation: int, known: Known = UNKNOWN) -> Work[Known]:
        """Lock the session's writer and check that this one may write.

        Raises:
            SessionFencedError: the session was claimed after that generation.
            PersistError: this is not the store that knew the session.
        """
        yield from self.check_store(session_id)
        rows = yield Query(_LOCK, (session_id,))
        if not rows:
            if generation != UNFENCED or known != UNKNOWN:
                raise self._gone(session_id)
            yield from self.make([session_id])
            rows = yield Query(_LOCK, (session_id,))
        current, last_index, deletions = rows[0]
        if generation not in (UNFENCED, current):
            raise (
                self._gone(session_id) if current < generation else SessionFencedError(session_id, generation)
            )
        if deletions == known.deletions and last_index < known.last_index:
            raise self._gone(session_id)
        return Known(last_index, deletions)

    def check_store(self, session_id: str) -> Work[None]:
        """Check that this is the store that was opened.

        Raises:
            PersistError: it is another one.
        """
        rows = yield Query("SELECT store_id FROM {store}")
        if not rows or rows[0][0] != self.store_id:
            raise self._gone(session_id)

    def stored(self, session_id: str, last_index: int) -> Work[None]:
        """Note the last index, and notify the followers."""
        yield Query(_STORED, (session_id, last_index, mark(session_id)))

    def replaced(self, event: SessionEvent) -> Work[None]:
        """Have the texts of the session derived again if they were derived from that place."""
        yield Query(_FORGET_EXTENTS, (event.session_id, event.event_index, event.id))

    def delete(self, session_id: str) -> Work[None]:
        """Erase the session; its writer is refused from now on."""
        yield from self.check_store(session_id)
        # Before the events are erased, so that nothing is appended, and no texts are stored, meanwhile.
        yield from self.make([session_id])
        yield Query(_LOCK_WHOLLY, (session_id,))
        yield Query(_DELETE, (session_id, mark(session_id)))

    def _gone(self, session_id: str) -> PersistError:
        return PersistError(
            f"session '{session_id}' was not written: the store at {self._target} does not have what it had "
            "acknowledged (it was replaced, emptied, or restored from an older copy): bring the right one "
            "back, or open the store again to continue with this one",
            session_id=session_id,
        )


def read_marks(session_ids: Collection[str]) -> Work[dict[str, Mark]]:
    """Return the last index and the deletions of each session."""
    rows = yield Query(_STATES, (list(session_ids),))
    return {session_id: Mark(last, deletions) for session_id, deletions, last in rows}


def marks_of(session_ids: Collection[str]) -> str:
    """Return the text of a notification about sessions; an empty one is about all."""
    return " ".join(map(mark, session_ids)) if len(session_ids) <= _MOST_MARKS else ""
