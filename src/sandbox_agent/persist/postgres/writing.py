"""Writing sessions of the SDK in PostgreSQL: which writer may, and many appends by one statement.

Each session has a row with the generation of its writer and its last index, which a transaction that writes
the session locks. The ``event_index`` of new events is allocated from that row.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Coroutine, Iterable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Final, NamedTuple

from sandbox_agent.errors import PersistError, SessionFencedError
from sandbox_agent.persist.base import UNFENCED, own_error
from sandbox_agent.persist.follow import Mark
from sandbox_agent.persist.postgres.dialect import UNIQUE_VIOLATION, PostgresDatabase
from sandbox_agent.persist.postgres.errors import sqlstate
from sandbox_agent.persist.postgres.link import Row
from sandbox_agent.persist.postgres.schema import mark
from sandbox_agent.persist.sql.log import UNKNOWN, Appended, Log, Writers
from sandbox_agent.persist.sql.work import Query, Work
from sandbox_agent.wire.records import SessionEvent

# Events and bytes of one statement, about; one append is never divided.
_MAX_EVENTS: Final = 2_000
_MAX_BYTES: Final = 8 * 1024 * 1024
# Sessions whose last index is remembered.
_REMEMBERED: Final = 10_000
# Classes of what one row can do to the statement: a value, a constraint, a conflict, a lock.
_REFUSALS: Final = frozenset({"21", "22", "23", "40", "55"})

# A notification's text is below 8,000 bytes.
_MOST_MARKS: Final = 800
_MAKE: Final = """
INSERT INTO {session_writers} (session_id, last_index)
SELECT asked.session_id, coalesce((
  SELECT max(event_index) FROM {events} WHERE session_id = asked.session_id
), 0)
FROM unnest($1::text[]) AS asked (session_id)
WHERE EXISTS (SELECT FROM {session_store} WHERE store_id = $2)
ORDER BY asked.session_id
ON CONFLICT DO NOTHING
"""
_LOCK: Final = """
SELECT generation, last_index, deletions FROM {session_writers} WHERE session_id = $1 FOR NO KEY UPDATE
"""
_LOCK_WHOLLY: Final = "SELECT 1 FROM {session_writers} WHERE session_id = $1 FOR UPDATE"
_CLAIM: Final = """
INSERT INTO {session_writers} AS writer (session_id, generation) VALUES ($1, 1)
ON CONFLICT (session_id) DO UPDATE SET generation = writer.generation + 1
RETURNING generation
"""
_STORED: Final = """
WITH counted AS (
  UPDATE {session_writers} SET last_index = greatest(last_index, $2) WHERE session_id = $1
)
SELECT pg_notify('{channel}', $3)
"""
# The head is the row's, because an event that is updated with every append would leave a dead row, with its
# entries in the indexes, each time.
_KEEP_HEAD: Final = """
UPDATE {session_writers} SET head_time = $2, head = $3 WHERE session_id = $1
"""
_FORGET_EXTENTS: Final = """
DELETE FROM {extents} WHERE (session_id = $1 AND last_index >= $2)
  OR session_id IN (SELECT session_id FROM {events} WHERE id = $3)
"""
_DELETE: Final = """
WITH gone_events AS (DELETE FROM {events} WHERE session_id = $1),
  gone_texts AS (DELETE FROM {session_texts} WHERE session_id = $1),
  gone_extents AS (DELETE FROM {extents} WHERE session_id = $1),
  gone_session AS (DELETE FROM {sessions} WHERE id = $1),
  fenced AS (
    UPDATE {session_writers}
    SET generation = generation + 1, deletions = deletions + 1, last_index = 0, head = NULL
    WHERE session_id = $1
  )
SELECT pg_notify('{channel}', $2)
"""
# One statement, so that it is one round trip and a transaction by itself. A session whose writer's row is
# missing, of another generation, behind what is known, or not at the index that a sealed append expects, is
# left out of the result. The last index is that of the writer's row; a program that keeps no such row (the
# TypeScript driver) uses the next one, if any, and then the unique index refuses the statement. A session
# that another program holds locked delays the others for half a second at most.
_TOGETHER: Final = """
WITH wanted AS MATERIALIZED (
  SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $13::bigint[],
    $14::bigint[], $15::text[])
    AS wanted (session_id, generation, known, first, amount, after, head_time, head)
  WHERE (SELECT set_config('lock_timeout', '500ms', TRUE)) IS NOT NULL
), taken AS (
  UPDATE {session_writers} AS writer
  SET last_index = writer.last_index + wanted.amount, head = coalesce(wanted.head, writer.head),
    head_time = coalesce(wanted.head_time, writer.head_time)
  FROM wanted
  WHERE writer.session_id = wanted.session_id
    AND (wanted.generation = 0 OR writer.generation = wanted.generation)
    AND writer.last_index >= wanted.known
    AND (wanted.after IS NULL OR writer.last_index = wanted.after)
    AND EXISTS (SELECT FROM {session_store} WHERE store_id = $12)
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


class PostgresWriters(Writers):
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
        yield from self.check_store(session_id)
        yield from self.make([session_id])
        rows = yield Query(_CLAIM, (session_id,))
        return int(rows[0][0])

    def check(self, session_id: str, generation: int, known: Mark = UNKNOWN) -> Work[Mark]:
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
        return Mark(last_index, deletions)

    def check_store(self, session_id: str) -> Work[None]:
        rows = yield Query("SELECT store_id FROM {session_store}")
        if not rows or rows[0][0] != self.store_id:
            raise self._gone(session_id)

    def stored(self, session_id: str, last_index: int) -> Work[None]:
        # This notifies the followers, too.
        yield Query(_STORED, (session_id, last_index, mark(session_id)))

    def keep_head(self, session_id: str, head: SessionEvent) -> Work[Sequence[SessionEvent]]:
        yield Query(_KEEP_HEAD, (session_id, head.created_at, head.payload_json.decode()))
        return ()

    def replace_head(self, session_id: str, head: SessionEvent) -> Work[None]:
        """Store the head of a session without events."""
        yield from self.check(session_id, UNFENCED)
        yield from self.keep_head(session_id, head)

    def replaced(self, event: SessionEvent) -> Work[None]:
        # The texts of the session are derived again if they were derived from that place.
        yield Query(_FORGET_EXTENTS, (event.session_id, event.event_index, event.id))

    def delete(self, session_id: str) -> Work[None]:
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


class Sealed(NamedTuple):
    """What ``append_sealed`` adds to an append: the last index that must be stored, and the head."""

    after: int
    head: SessionEvent


class _Append:
    """One call that waits."""

    def __init__(
        self,
        session_id: str,
        events: list[SessionEvent],
        payloads: list[str],
        generation: int,
        sealed: Sealed | None,
    ) -> None:
        self.sealed = sealed
        self.session_id = session_id
        self.events = events
        self.payloads = payloads
        self.generation = generation
        self.size = sum(len(event.payload_json) for event in events)
        self.outcome: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    def stored(self, indexes: list[int]) -> None:
        if not self.outcome.done():
            self.outcome.set_result(indexes)

    def failed(self, error: BaseException) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


class Appender:
    """Stores events after the last one of their session.

    While one statement is on its way, the appends of all tasks and sessions gather for the next one. One
    that it does not store (a retry, a new session, a writer that was replaced, a row that another program
    holds locked, a value that PostgreSQL refuses) is stored, or refused, in a transaction of its own.

    Args:
        database: the connections.
        writers: the sessions' writers.
        log: the works.
    """

    def __init__(
        self,
        database: PostgresDatabase,
        writers: PostgresWriters,
        log: Log,
    ) -> None:
        self._database = database
        self._writers = writers
        self._log = log
        self._known: OrderedDict[str, Mark] = OrderedDict()
        self._waiting: list[_Append] = []
        # Sessions that have an append on its way by itself: later ones wait for it.
        self._alone: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gathering = False

    async def append(
        self,
        session_id: str,
        events: Sequence[SessionEvent],
        generation: int,
        sealed: Sealed | None = None,
    ) -> list[int]:
        """Store the events, all or none, and return the index of each.

        Raises:
            NotLastError: for ``sealed``, the session has another last index or some of the events.
            SessionFencedError: the session was claimed after that generation.
            PersistError: an id is stored in another session, events of the session are gone, a payload
                is not text, or the store failed.
        """
        self._database.link.refuse_unusable()
        append = _Append(session_id, list(events), decode_payloads(events), generation, sealed)
        self._waiting.append(append)
        self._start_gathering()
        try:
            return await append.outcome
        except asyncio.CancelledError:
            if append in self._waiting:
                self._waiting.remove(append)
            raise

    def forget(self, session_id: str) -> None:
        """Forget a session, which was deleted."""
        self._known.pop(session_id, None)

    async def close(self) -> None:
        """Store what was accepted."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def _start_gathering(self) -> None:
        if not self._gathering and any(one.session_id not in self._alone for one in self._waiting):
            self._gathering = True
            self._start(self._store_together())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="append to PostgreSQL")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _store_together(self) -> None:
        try:
            while group := self._next_group():
                try:
                    await self._store_group(group)
                except BaseException as error:
                    for append in group:
                        append.failed(own_error(error, append.session_id))
                    if not isinstance(error, Exception):
                        raise
        finally:
            self._gathering = False

    def _next_group(self) -> list[_Append]:
        """Remove and return what one statement stores: of each session only appends of one generation."""
        group: list[_Append] = []
        rest: list[_Append] = []
        generations: dict[str, int] = {}
        passed = set(self._alone)
        events = size = 0
        for append in self._waiting:
            events += len(append.events)
            size += append.size
            fits = not group or (events <= _MAX_EVENTS and size <= _MAX_BYTES)
            again = append.session_id in generations
            agreed = generations.setdefault(append.session_id, append.generation) == append.generation
            agreed = agreed and not (again and append.sealed)
            if append.session_id in passed or not fits or not agreed:
                # Later appends of its session stay after it.
                passed.add(append.session_id)
                rest.append(append)
            else:
                group.append(append)
        self._waiting = rest
        return group

    async def _store_group(self, group: list[_Append]) -> None:
        by_session: dict[str, list[_Append]] = {}
        for append in group:
            by_session.setdefault(append.session_id, []).append(append)
        rows: list[Row] = []
        try:
            # One statement needs no transaction.
            rows = await self._database.read(partial(self._together, by_session))
        except PersistError as error:
            cause = error.__cause__
            value = isinstance(cause, ValueError) and len(group) > 1
            if not value and (cause is None or sqlstate(cause)[:2] not in _REFUSALS):
                raise
        for row in rows:
            session_id, first = row[0], row[1] + 1
            for append in by_session.pop(session_id):
                append.stored(list(range(first, first + len(append.events))))
                first += len(append.events)
            self._remember(session_id, Mark(first - 1, row[2]))
        for session_id, appends in by_session.items():
            self._alone.add(session_id)
            self._start(self._store_alone(session_id, appends))

    def _together(self, by_session: dict[str, list[_Append]]) -> Work[list[Row]]:
        """Return id, last index before and deletions of each session that was stored."""
        known = [self._known.get(session_id, UNKNOWN) for session_id in by_session]
        generations = [appends[0].generation for appends in by_session.values()]
        # No driver has claimed these, nor has this one seen them; a session that was claimed has a row.
        new = [
            session_id
            for session_id, generation, one in zip(by_session, generations, known, strict=True)
            if generation == UNFENCED and one == UNKNOWN
        ]
        if new:
            yield from self._writers.make(new)
        batches = [[event for one in appends for event in one.events] for appends in by_session.values()]
        amounts = list(map(len, batches))
        sealed = [appends[0].sealed for appends in by_session.values()]
        heads = [one and one.head for one in sealed]
        events = [event for batch in batches for event in batch]
        values = (
            list(by_session),
            generations,
            [one.last_index for one in known],
            list(accumulate(amounts[:-1], initial=1)),
            amounts,
            [event.id for event in events],
            [event.created_at for event in events],
            [event.connection_id for event in events],
            [event.sender for event in events],
            [payload for appends in by_session.values() for one in appends for payload in one.payloads],
            # An empty text is about all sessions.
            " ".join(map(mark, by_session)) if len(by_session) <= _MOST_MARKS else "",
            self._writers.store_id,
            [one and one.after for one in sealed],
            [head and head.created_at for head in heads],
            # It is base64.
            [head and head.payload_json.decode() for head in heads],
        )
        return (yield Query(_TOGETHER, values))

    async def _store_alone(self, session_id: str, appends: list[_Append]) -> None:
        try:
            for append in appends:
                try:
                    append.stored(await self._store_one(append))
                except BaseException as error:
                    append.failed(error)
                    if not isinstance(error, Exception):
                        raise
        finally:
            self._alone.discard(session_id)
            self._start_gathering()

    async def _store_one(self, append: _Append) -> list[int]:
        session_id = append.session_id

        def store() -> Work[Appended]:
            if append.sealed is not None:
                return self._log.append_sealed(
                    session_id, append.events, append.sealed.head, append.sealed.after, append.generation
                )
            known = self._known.get(session_id, UNKNOWN)
            return self._log.append(session_id, append.events, append.generation, known)

        try:
            indexes, known = await self._database.write(store, session_id=session_id)
        except PersistError as error:
            # A program that does not lock the session has stored that index, or that id, at the same time.
            if error.__cause__ is None or sqlstate(error.__cause__) != UNIQUE_VIOLATION:
                raise
            indexes, known = await self._database.write(store, session_id=session_id)
        self._remember(session_id, known)
        return indexes

    def _remember(self, session_id: str, known: Mark) -> None:
        self._known[session_id] = known
        self._known.move_to_end(session_id)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)


def decode_payloads(events: Iterable[SessionEvent]) -> list[str]:
    """Return the payloads as texts.

    Raises:
        PersistError: one is not UTF-8.
    """
    payloads: list[str] = []
    for event in events:
        try:
            payloads.append(event.payload_json.decode())
        except UnicodeDecodeError as error:
            raise PersistError(
                f"event '{event.id}' was not stored: its payload is not UTF-8 ({error})",
                session_id=event.session_id,
            ) from error
    return payloads
