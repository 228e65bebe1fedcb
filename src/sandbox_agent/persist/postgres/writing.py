"""What is written to a PostgreSQL store, under the lock of the session's writer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.base import UNFENCED
from sandbox_agent.persist.columns import to_row
from sandbox_agent.persist.postgres.library import Connection, Row
from sandbox_agent.persist.postgres.rows import event_arrays
from sandbox_agent.persist.postgres.schema import Tables, mark
from sandbox_agent.wire.records import SessionEvent, SessionRecord

__all__ = ["UNKNOWN", "Known", "Writing"]


class Known(NamedTuple):
    """What a driver has seen acknowledged of a session."""

    last_index: int = 0
    deletions: int = 0


UNKNOWN: Final = Known()
# So long a session that somebody else holds locked keeps the others waiting that are stored with it.
_PATIENCE_MS: Final = 500

# One statement, so that it is one round trip and a transaction by itself. A session whose writer's row is
# missing, of another generation or behind what is known, is left out of the result. The last index is that
# of the writer's row; a program that keeps no such row (the TypeScript driver) takes the next one, if any,
# and then the unique index refuses the statement.
_TOGETHER: Final = """
WITH wanted AS MATERIALIZED (
  SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
    AS wanted (session_id, generation, known, first, amount)
  WHERE (SELECT set_config('lock_timeout', '{patience}', TRUE)) IS NOT NULL
), taken AS (
  UPDATE {writers} AS writer
  SET last_index = writer.last_index + wanted.amount
  FROM wanted
  WHERE writer.session_id = wanted.session_id
    AND (wanted.generation = 0 OR writer.generation = wanted.generation)
    AND writer.last_index >= wanted.known
    AND EXISTS (SELECT FROM {store} WHERE store_id = $12)
  RETURNING writer.session_id, writer.last_index - wanted.amount AS before, writer.deletions,
    wanted.first, wanted.amount
), stored AS (
  INSERT INTO {events} (id, event_index, session_id, created_at, connection_id, sender, payload_json)
  SELECT event.id, taken.before + number - taken.first + 1, taken.session_id, event.created_at,
    event.connection_id, event.sender, event.payload::json
  FROM taken
  CROSS JOIN generate_series(taken.first, taken.first + taken.amount - 1) AS number
  JOIN unnest($6::text[], $7::bigint[], $8::text[], $9::text[], $10::text[])
    WITH ORDINALITY AS event (id, created_at, connection_id, sender, payload, number) USING (number)
)
SELECT session_id, before, deletions, (SELECT pg_notify('{channel}', $11)) FROM taken
"""
_MAKE_WRITERS: Final = """
INSERT INTO {writers} (session_id, last_index)
SELECT asked.session_id, coalesce((
  SELECT max(event_index) FROM {events} WHERE session_id = asked.session_id
), 0)
FROM unnest($1::text[]) AS asked (session_id)
WHERE EXISTS (SELECT FROM {store} WHERE store_id = $2)
ORDER BY asked.session_id
ON CONFLICT DO NOTHING
"""
_INSERT: Final = """
WITH stored AS (
  INSERT INTO {events} (id, event_index, session_id, created_at, connection_id, sender, payload_json)
  SELECT event.id, event.place, $8, event.created_at, event.connection_id, event.sender, event.payload::json
  FROM unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[], $6::bigint[])
    AS event (id, created_at, connection_id, sender, payload, place)
  {conflict}
), counted AS (
  UPDATE {writers} SET last_index = greatest(last_index, $7) WHERE session_id = $8
), changed AS (
  DELETE FROM {searched} WHERE session_id = $8 AND last_index >= $7
)
SELECT pg_notify('{channel}', $9)
"""
_REPLACE: Final = """
ON CONFLICT (id) DO UPDATE SET
  event_index = excluded.event_index, session_id = excluded.session_id, created_at = excluded.created_at,
  connection_id = excluded.connection_id, sender = excluded.sender, payload_json = excluded.payload_json
"""
_SAVE: Final = """
INSERT INTO {sessions} (
  id, agent, agent_session_id, last_connection_id, created_at, destroyed_at, sandbox_id,
  session_init_json, config_options_json, modes_json
) VALUES ($1, $2, $3, $4, $5, $6, $7, $8::text::json, $9::text::json, $10::text::json)
ON CONFLICT (id) DO UPDATE SET
  agent = excluded.agent, agent_session_id = excluded.agent_session_id,
  last_connection_id = excluded.last_connection_id, created_at = excluded.created_at,
  destroyed_at = excluded.destroyed_at, sandbox_id = excluded.sandbox_id,
  session_init_json = excluded.session_init_json, config_options_json = excluded.config_options_json,
  modes_json = excluded.modes_json
"""
_LOCK: Final = """
SELECT generation, last_index, deletions FROM {writers} WHERE session_id = $1 FOR NO KEY UPDATE
"""
_CLAIM: Final = """
INSERT INTO {writers} AS writer (session_id, generation) VALUES ($1, 1)
ON CONFLICT (session_id) DO UPDATE SET generation = writer.generation + 1
RETURNING generation
"""
_DELETE: Final = """
WITH gone_events AS (DELETE FROM {events} WHERE session_id = $1),
  gone_texts AS (DELETE FROM {texts} WHERE session_id = $1),
  gone_searched AS (DELETE FROM {searched} WHERE session_id = $1),
  gone_session AS (DELETE FROM {sessions} WHERE id = $1),
  fenced AS (
    UPDATE {writers} SET generation = generation + 1, deletions = deletions + 1, last_index = 0
    WHERE session_id = $1
  )
SELECT pg_notify('{channel}', $2)
"""


class Writing:
    """The statements that write; each method runs in a transaction that its caller has opened.

    Args:
        tables: the store's.
        target: where the store is, for messages.

    Attributes:
        store_id: what tells this store from every other one; set once the tables are there.
    """

    def __init__(self, tables: Tables, target: str) -> None:
        self.store_id: str = ""
        self._target = target
        names = {
            "sessions": tables.sessions,
            "events": tables.events,
            "writers": tables.writers,
            "store": tables.store,
            "texts": tables.texts,
            "searched": tables.searched,
            "channel": tables.channel,
            "patience": f"{_PATIENCE_MS}ms",
        }
        self._together = _TOGETHER.format(**names)
        self._append = _INSERT.format(conflict="", **names)
        self._replace = _INSERT.format(conflict=_REPLACE, **names)
        self._save = _SAVE.format(**names)
        self._lock = _LOCK.format(**names)
        self._lock_wholly = self._lock.replace("FOR NO KEY UPDATE", "FOR UPDATE")
        self._claim = _CLAIM.format(**names)
        self._delete = _DELETE.format(**names)
        self._make_writers = _MAKE_WRITERS.format(**names)
        self._stored = f"SELECT id, session_id, event_index FROM {tables.events} WHERE id = ANY ($1::text[])"
        self._last = f"SELECT coalesce(max(event_index), 0) FROM {tables.events} WHERE session_id = $1"
        self._identity = f"SELECT store_id FROM {tables.store}"

    async def make_writers(self, connection: Connection, session_ids: Sequence[str]) -> None:
        """Make the rows of sessions that nobody has claimed or written yet."""
        await connection.execute(self._make_writers, session_ids, self.store_id)

    async def append_together(
        self, connection: Connection, batches: dict[str, tuple[int, Known, list[SessionEvent]]]
    ) -> list[Row]:
        """Store the events of several sessions, of each all or none.

        Args:
            connection: the connection.
            batches: of each session generation, what is known, and the events.

        Returns:
            Of each session that was stored: id, last index before, deletions.
        """
        events = [event for _, _, batch in batches.values() for event in batch]
        amounts = [len(batch) for _, _, batch in batches.values()]
        return await connection.fetch(
            self._together,
            list(batches),
            [generation for generation, _, _ in batches.values()],
            [known.last_index for _, known, _ in batches.values()],
            list(accumulate(amounts[:-1], initial=1)),
            amounts,
            *event_arrays(events),
            _marks(batches),
            self.store_id,
        )

    async def append(
        self,
        connection: Connection,
        session_id: str,
        events: Sequence[SessionEvent],
        generation: int,
        known: Known,
    ) -> tuple[list[int], Known]:
        """Store those of a session's events that are not stored and return the index of each.

        Raises:
            SessionFencedError: the session was claimed after that generation.
            PersistError: an id is stored in another session, or events that were known have gone.
        """
        last_index, deletions = await self.lock(connection, session_id, generation, known)
        stored: dict[str, int] = {}
        for event_id, owner, index in await connection.fetch(self._stored, [event.id for event in events]):
            if owner != session_id:
                raise PersistError(
                    f"event '{event_id}' was not stored: its id is taken by an event of session '{owner}'",
                    session_id=session_id,
                )
            stored[event_id] = index
        missing = {event.id: event for event in events if event.id not in stored}
        # Written by a program that keeps no account of it.
        last = max(last_index, await connection.fetchval(self._last, session_id))
        if missing:
            places = list(range(last + 1, last + 1 + len(missing)))
            last = places[-1]
            await self._insert(connection, self._append, session_id, list(missing.values()), places)
            stored.update(zip(missing, places, strict=True))
        return [stored[event.id] for event in events], Known(last, deletions)

    async def replace(self, connection: Connection, session_id: str, event: SessionEvent) -> None:
        """Insert the event with the index that it has, or replace the one of its id."""
        await self.lock(connection, session_id, UNFENCED, UNKNOWN)
        await self._insert(connection, self._replace, session_id, [event], [event.event_index])

    async def save(self, connection: Connection, session: SessionRecord, generation: int) -> None:
        """Insert or replace the record.

        Raises:
            SessionFencedError: the session was claimed after that generation.
        """
        row = to_row(session)
        if generation != UNFENCED:
            await self.lock(connection, session.id, generation, UNKNOWN)
        else:
            await self._check_store(connection, session.id)
        await connection.execute(self._save, *row)

    async def claim(self, connection: Connection, session_id: str) -> int:
        """Raise the session's generation and return it."""
        await self._check_store(connection, session_id)
        await self.make_writers(connection, [session_id])
        return int(await connection.fetchval(self._claim, session_id))

    async def delete(self, connection: Connection, session_id: str) -> None:
        """Erase the session; who wrote it until now is refused from now on."""
        await self._check_store(connection, session_id)
        # Before the events go, so that nobody appends, or keeps texts, meanwhile.
        await self.make_writers(connection, [session_id])
        await connection.fetchrow(self._lock_wholly, session_id)
        await connection.fetchval(self._delete, session_id, mark(session_id))

    async def lock(
        self, connection: Connection, session_id: str, generation: int, known: Known
    ) -> tuple[int, int]:
        """Lock the session's writer, see that this one may write, and return last index and deletions.

        Raises:
            SessionFencedError: the session was claimed after that generation.
            PersistError: this is not the store that knew the session.
        """
        await self._check_store(connection, session_id)
        row = await connection.fetchrow(self._lock, session_id)
        if row is None:
            if generation != UNFENCED or known != UNKNOWN:
                raise self._gone(session_id)
            await self.make_writers(connection, [session_id])
            row = await connection.fetchrow(self._lock, session_id)
        assert row is not None
        current, last_index, deletions = row
        if generation not in (UNFENCED, current):
            raise (
                self._gone(session_id) if current < generation else SessionFencedError(session_id, generation)
            )
        if deletions == known.deletions and last_index < known.last_index:
            raise self._gone(session_id)
        return last_index, deletions

    async def _check_store(self, connection: Connection, session_id: str) -> None:
        if await connection.fetchval(self._identity) != self.store_id:
            raise self._gone(session_id)

    def _gone(self, session_id: str) -> PersistError:
        return PersistError(
            f"session '{session_id}' was not written: the store at {self._target} has not what it had "
            "acknowledged (it was replaced, emptied, or brought back from an older copy): bring the right "
            "one back, or open the store anew to go on with this one",
            session_id=session_id,
        )

    async def _insert(
        self,
        connection: Connection,
        statement: str,
        session_id: str,
        events: list[SessionEvent],
        places: list[int],
    ) -> None:
        values: tuple[Any, ...] = (*event_arrays(events), places, places[-1], session_id, mark(session_id))
        await connection.fetchval(statement, *values)


def _marks(session_ids: Collection[str]) -> str:
    # A notification's text is below 8,000 bytes; an empty one is for everybody.
    return " ".join(map(mark, session_ids)) if len(session_ids) <= 800 else ""
