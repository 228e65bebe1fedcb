"""Following sessions of a PostgreSQL store: one connection listens, one reader reads for all followers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, Protocol

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.library import Connection, Row
from sandbox_agent.persist.postgres.link import PostgresLink
from sandbox_agent.persist.postgres.listen import Listener
from sandbox_agent.persist.postgres.schema import Tables, mark
from sandbox_agent.persist.sql.log import Known, to_event
from sandbox_agent.wire.records import ListPage, SessionEvent

__all__ = ["Followers", "History"]

logger: logging.Logger = logging.getLogger("sandbox_agent.persist")

# How often is looked, in seconds, where the server tells of every event: for programs that tell nobody.
_SWEEP: Final = 1.0
# And where it doesn't.
_POLL: Final = 0.1
# After a failure; doubled up to the second.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
# What is kept for followers that are a little behind; one that is further behind reads for itself.
_KEPT: Final = 1_024
_KEPT_BYTES: Final = 4 * 1024 * 1024
# Events of one session in one reading.
_AT_ONCE: Final = 256


class History(Protocol):
    """What a follower reads where it is far behind."""

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        """Return a page of a session's events by (event_index, id), oldest first."""
        ...

    def cursor_after(self, event_index: int, /) -> str:
        """Return the cursor of ``list_events`` behind that index."""
        ...


class _Tail:
    """The newest events of one followed session."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self.followers = 0
        # Everything up to here was read: what is behind ``base`` is kept here, the rest is in the store.
        self.position: int | None = None
        self.base = 0
        self.deletions = 0
        self.ended = False
        self.changed = asyncio.Event()
        self.error: Exception | None = None
        self._kept: deque[SessionEvent] = deque()
        self._bytes = 0

    def begin(self, position: int, deletions: int) -> None:
        self.position = self.base = position
        self.deletions = deletions
        self.tell()

    def add(self, event: SessionEvent) -> None:
        self._kept.append(event)
        self._bytes += len(event.payload_json)
        self.position = event.event_index
        while len(self._kept) > _KEPT or (self._bytes > _KEPT_BYTES and len(self._kept) > 1):
            dropped = self._kept.popleft()
            self._bytes -= len(dropped.payload_json)
            self.base = dropped.event_index

    def behind(self, index: int) -> list[SessionEvent] | None:
        """Return copies of the events behind an index, or None where some are no longer kept."""
        if index < self.base:
            return None
        found: list[SessionEvent] = []
        for event in reversed(self._kept):
            if event.event_index <= index:
                break
            found.append(event)
        return [_copy(event, event.event_index) for event in reversed(found)]

    def end(self) -> None:
        self.ended = True
        self.tell()

    def tell(self) -> None:
        """Wake who waits."""
        self.changed.set()
        self.changed = asyncio.Event()


class Followers:
    """All followers of a driver.

    Args:
        link: the connections.
        tables: the store's.
    """

    def __init__(self, link: PostgresLink, tables: Tables) -> None:
        self._link = link
        self._listener = Listener(link, tables.channel, self._notified)
        self._tails: dict[str, _Tail] = {}
        self._marks: dict[str, set[str]] = {}
        self._dirty: set[str] = set()
        self._wake = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None
        self._closed = False
        self._begin = f"""
SELECT asked.session_id, coalesce(writer.deletions, 0),
  (SELECT coalesce(max(event_index), 0) FROM {tables.events} WHERE session_id = asked.session_id)
FROM unnest($1::text[]) AS asked (session_id) LEFT JOIN {tables.writers} AS writer USING (session_id)
"""
        self._read = f"""
SELECT asked.session_id, coalesce(writer.deletions, 0), event.*
FROM unnest($1::text[], $2::bigint[]) AS asked (session_id, position)
LEFT JOIN {tables.writers} AS writer USING (session_id)
LEFT JOIN LATERAL (
  SELECT id, event_index, session_id, created_at, connection_id, sender, payload_json::text
  FROM {tables.events}
  WHERE events.session_id = asked.session_id AND event_index > asked.position
  ORDER BY event_index LIMIT {_AT_ONCE}
) AS event ON TRUE
ORDER BY asked.session_id, event.event_index
"""

    async def follow(self, history: History, session_id: str, after: int) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events behind an index, once each and in order."""
        self._link.refuse_unusable()
        tail = self._join(session_id)
        last = after
        try:
            while not tail.ended:
                changed = tail.changed
                if tail.error is not None:
                    raise PersistError(str(tail.error), session_id=session_id) from tail.error
                if tail.position is None:
                    await changed.wait()
                    continue
                events = tail.behind(last)
                if events is None:
                    # What is kept begins at the base: read up to there, at least.
                    events = (await history.list_events(session_id, cursor=history.cursor_after(last))).items
                    if not events:
                        # They were erased, or never had these indexes.
                        last = max(last, tail.base)
                for event in events:
                    if tail.ended:
                        return
                    last = event.event_index
                    yield event
                if not events and changed is tail.changed:
                    await changed.wait()
        finally:
            self._leave(tail)

    def stored(self, session_id: str, events: Sequence[SessionEvent], known: Known) -> None:
        """Hand on what this process has just stored, without waiting for the server to tell of it.

        Args:
            session_id: which session.
            events: what was stored, the newest last.
            known: the index of the newest, and the session's deletions.
        """
        tail = self._tails.get(session_id)
        first = known.last_index - len(events) + 1
        if tail is None or tail.ended or tail.deletions != known.deletions or tail.position != first - 1:
            return  # it is read, with what is in between
        for index, event in enumerate(events, first):
            tail.add(_copy(event, index))
        tail.tell()

    async def close(self) -> None:
        """End every follower, and stop listening."""
        self._closed = True
        for tail in list(self._tails.values()):
            tail.end()
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.cancel()
            await asyncio.wait({reader})

    def _join(self, session_id: str) -> _Tail:
        tail = self._tails.get(session_id)
        if tail is None:
            tail = self._tails[session_id] = _Tail(session_id)
            self._marks.setdefault(mark(session_id), set()).add(session_id)
            self._dirty.add(session_id)
            self._wake.set()
        tail.followers += 1
        if self._reader is None:
            self._reader = asyncio.create_task(self._run(), name="follow PostgreSQL")
        return tail

    def _leave(self, tail: _Tail) -> None:
        tail.followers -= 1
        if tail.followers == 0 and self._tails.get(tail.session_id) is tail:
            self._forget(tail)
        if not self._tails:
            self._wake.set()

    def _forget(self, tail: _Tail) -> None:
        del self._tails[tail.session_id]
        self._dirty.discard(tail.session_id)
        sessions = self._marks[mark(tail.session_id)]
        sessions.discard(tail.session_id)
        if not sessions:
            del self._marks[mark(tail.session_id)]

    def _notified(self, text: str | None) -> None:
        """Look at the sessions that a notification names; at all of them for None or an empty one."""
        if text:
            for one in text.split():
                self._dirty |= self._marks.get(one, set())
        else:
            self._dirty |= self._tails.keys()
        if self._dirty:
            self._wake.set()

    async def _run(self) -> None:
        pause = _FIRST_PAUSE
        try:
            while self._tails:
                self._wake.clear()
                try:
                    await self._listener.listen()
                    await self._look()
                    wait = _SWEEP if self._listener.hears else _POLL
                    pause = _FIRST_PAUSE
                except PersistError as error:
                    # Who has just come is told; the others wait until the store is back.
                    self._refuse(error, [tail for tail in self._tails.values() if tail.position is None])
                    if pause == _FIRST_PAUSE:
                        logger.warning("following waits for the store: %s", error)
                    wait = pause
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    # Whatever happened meanwhile was not heard.
                    await asyncio.sleep(wait)
                    self._dirty |= self._tails.keys()
                    continue
                if not self._dirty:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait):
                            await self._wake.wait()
                            continue
                    self._dirty |= self._tails.keys()
        except Exception as error:
            logger.exception("following broke off")
            self._refuse(error, list(self._tails.values()))
        finally:
            if self._reader is asyncio.current_task():
                self._reader = None
            await self._listener.close()
            if self._tails and self._reader is None and not self._closed:
                # Somebody came while it was ending.
                self._reader = asyncio.create_task(self._run(), name="follow PostgreSQL")

    def _refuse(self, error: Exception, tails: list[_Tail]) -> None:
        for tail in tails:
            tail.error = error
            self._forget(tail)
            tail.tell()

    async def _look(self) -> None:
        dirty = [self._tails[one] for one in self._dirty if one in self._tails]
        self._dirty.clear()
        if not dirty:
            return
        try:
            fresh = [tail.session_id for tail in dirty if tail.position is None]
            if fresh:
                await self._look_first(fresh)
            known = [tail for tail in dirty if tail.position is not None and not tail.ended]
            if known:
                await self._look_again(known)
        except BaseException:
            self._dirty |= {tail.session_id for tail in dirty}
            raise

    async def _look_first(self, session_ids: list[str]) -> None:
        for session_id, deletions, position in await self._fetch(self._begin, session_ids):
            tail = self._tails.get(session_id)
            if tail is not None and tail.position is None:
                tail.begin(position, deletions)

    async def _look_again(self, tails: list[_Tail]) -> None:
        rows = await self._fetch(
            self._read, [tail.session_id for tail in tails], [tail.position for tail in tails]
        )
        counts: dict[str, int] = {}
        for row in rows:
            tail = self._tails.get(row[0])
            if tail is None or tail.ended or tail.position is None:
                continue
            if row[1] != tail.deletions:
                self._forget(tail)
                tail.end()
            elif row[2] is not None and row[3] > tail.position:
                tail.add(to_event(row[2:]))
                counts[tail.session_id] = counts.get(tail.session_id, 0) + 1
        for session_id, count in counts.items():
            tail = self._tails.get(session_id)
            if tail is not None:
                tail.tell()
                if count == _AT_ONCE:
                    self._dirty.add(session_id)

    async def _fetch(self, query: str, *values: Any) -> list[Row]:
        async def read(connection: Connection) -> list[Row]:
            return await connection.fetch(query, *values)

        return await self._link.run(read)


def _copy(event: SessionEvent, index: int) -> SessionEvent:
    copied = event.copy()
    copied.event_index = index
    return copied
