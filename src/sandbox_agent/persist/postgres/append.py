"""Appending to a PostgreSQL store: what waits at one time is stored together, by one statement."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import UNFENCED
from sandbox_agent.persist.postgres.errors import sqlstate
from sandbox_agent.persist.postgres.library import Connection, Row
from sandbox_agent.persist.postgres.link import PostgresLink
from sandbox_agent.persist.postgres.rows import check_texts
from sandbox_agent.persist.postgres.writing import UNKNOWN, Known, Writing
from sandbox_agent.wire.records import SessionEvent

__all__ = ["Appender"]

# Events and bytes of one statement, about; one append is never parted.
_MAX_EVENTS: Final = 2_000
_MAX_BYTES: Final = 8 * 1024 * 1024
# Sessions whose last index is remembered.
_REMEMBERED: Final = 10_000
_UNIQUE_VIOLATION: Final = "23505"
# Classes of what one row can do to the statement: a value, a constraint, a conflict, a lock.
_REFUSALS: Final = frozenset({"21", "22", "23", "40", "55"})


class _Append:
    """One call that waits."""

    def __init__(self, session_id: str, events: list[SessionEvent], generation: int) -> None:
        self.session_id = session_id
        self.events = events
        self.generation = generation
        self.size = sum(len(event.payload_json) for event in events)
        self.outcome: asyncio.Future[list[int]] = asyncio.get_running_loop().create_future()

    def stored(self, indexes: list[int]) -> None:
        if not self.outcome.done():
            self.outcome.set_result(indexes)

    def failed(self, error: BaseException) -> None:
        if not self.outcome.done():
            self.outcome.set_exception(error)


class _ApartError(Exception):
    """A row is refused: the appends of the statement are stored each by itself."""


class Appender:
    """Stores events behind the last one of their session.

    While one statement is on its way, the appends of all tasks and sessions gather for the next one. One
    that it does not store (a retry, a new session, a writer that was replaced, a row that somebody holds
    locked, a value that PostgreSQL refuses) is stored, or refused, in a transaction of its own.

    Args:
        link: the connections.
        writing: the statements.
        stored: told of what was stored together with others.
    """

    def __init__(
        self,
        link: PostgresLink,
        writing: Writing,
        stored: Callable[[str, Sequence[SessionEvent], Known], None],
    ) -> None:
        self._link = link
        self._stored = stored
        self._writing = writing
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._waiting: list[_Append] = []
        # Sessions that have an append on its way by itself: what comes after it waits for it.
        self._alone: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._gathering = False

    async def append(self, session_id: str, events: Sequence[SessionEvent], generation: int) -> list[int]:
        """Store the events, all or none, and return the index of each.

        Raises:
            SessionFencedError: the session was claimed after that generation.
            PersistError: an id is stored in another session, events of the session have gone, a payload
                is no text, or the store failed.
        """
        self._link.refuse_unusable()
        check_texts(events)
        append = _Append(session_id, list(events), generation)
        self._waiting.append(append)
        self._go_on()
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

    def _go_on(self) -> None:
        if not self._gathering and any(one.session_id not in self._alone for one in self._waiting):
            self._gathering = True
            self._start(self._store_together())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name="append to PostgreSQL")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _store_together(self) -> None:
        try:
            while group := self._take():
                try:
                    await self._store_group(group)
                except BaseException as error:
                    for append in group:
                        append.failed(_own(error, append.session_id))
                    if not isinstance(error, Exception):
                        raise
        finally:
            self._gathering = False

    def _take(self) -> list[_Append]:
        """Take what one statement stores: appends of a session only with the same generation."""
        group: list[_Append] = []
        rest: list[_Append] = []
        generations: dict[str, int] = {}
        passed = set(self._alone)
        events = size = 0
        for append in self._waiting:
            events += len(append.events)
            size += append.size
            fits = not group or (events <= _MAX_EVENTS and size <= _MAX_BYTES)
            agreed = generations.setdefault(append.session_id, append.generation) == append.generation
            if append.session_id in passed or not fits or not agreed:
                # Whatever comes behind it of its session stays behind it.
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
        batches = {
            session_id: (
                appends[0].generation,
                self._known.get(session_id, UNKNOWN),
                [event for append in appends for event in append.events],
            )
            for session_id, appends in by_session.items()
        }

        # Nobody has seen them here; who claimed one has a row already.
        new = [
            session_id
            for session_id, (generation, known, _) in batches.items()
            if generation == UNFENCED and known == UNKNOWN
        ]

        async def together(connection: Connection) -> list[Row]:
            try:
                if new:
                    await self._writing.make_writers(connection, new)
                return await self._writing.append_together(connection, batches)
            except Exception as error:
                if sqlstate(error)[:2] in _REFUSALS or (isinstance(error, ValueError) and len(group) > 1):
                    raise _ApartError from error
                raise

        try:
            rows = await self._link.run(together)
        except _ApartError:
            rows = []
        for row in rows:
            session_id, first = row[0], row[1] + 1
            for append in by_session.pop(session_id):
                append.stored(list(range(first, first + len(append.events))))
                first += len(append.events)
            known = Known(first - 1, row[2])
            self._remember(session_id, known)
            self._stored(session_id, batches[session_id][2], known)
        for session_id, appends in by_session.items():
            self._alone.add(session_id)
            self._start(self._store_alone(session_id, appends))

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
            self._go_on()

    async def _store_one(self, append: _Append) -> list[int]:
        session_id = append.session_id

        async def store(connection: Connection) -> tuple[list[int], Known]:
            known = self._known.get(session_id, UNKNOWN)
            return await self._writing.append(connection, session_id, append.events, append.generation, known)

        try:
            indexes, known = await self._link.transaction(store, session_id=session_id)
        except PersistError as error:
            # Somebody who does not lock the session took an index, or an id, at the same time.
            if error.__cause__ is None or sqlstate(error.__cause__) != _UNIQUE_VIOLATION:
                raise
            indexes, known = await self._link.transaction(store, session_id=session_id)
        self._remember(session_id, known)
        return indexes

    def _remember(self, session_id: str, known: Known) -> None:
        self._known[session_id] = known
        self._known.move_to_end(session_id)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)


def _own(error: BaseException, session_id: str) -> BaseException:
    """Return an error that is one caller's own: each raises it with a traceback of its own."""
    if not isinstance(error, PersistError):
        return error
    own = PersistError(str(error), session_id=session_id)
    own.__cause__ = error
    return own
