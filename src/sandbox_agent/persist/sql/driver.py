"""The one driver over SQL; an engine gives it a database, its writers and a search."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Final

from sandbox_agent.persist.base import (
    UNFENCED,
    Capability,
    Keyset,
    check_session,
    decode_cursor,
    event_position,
    make_page,
    normalize_limit,
    record_position,
)
from sandbox_agent.persist.columns import to_record
from sandbox_agent.persist.follow import FollowedDriver, MakeHint
from sandbox_agent.persist.sql.log import LAST_INDEX, Log, Writers, to_event
from sandbox_agent.persist.sql.work import Database, Query, Work, reading
from sandbox_agent.wire.records import ListPage, SessionEvent, SessionRecord

if TYPE_CHECKING:
    from sandbox_agent.wire.sessions import SearchHit

_SESSION: Final = "SELECT {session_columns} FROM {sessions} "
_ONE_SESSION: Final = _SESSION + "WHERE id = $1"
_SESSION_ORDER: Final = " ORDER BY created_at, id{collate} LIMIT $1 OFFSET $2"
_FIRST_SESSIONS: Final = _SESSION + _SESSION_ORDER
_NEXT_SESSIONS: Final = _SESSION + "WHERE (created_at, id{collate}) > ($3, $4)" + _SESSION_ORDER
_EVENT: Final = "SELECT {event_columns} FROM {events} WHERE session_id = $1 "
# No two events of a session have one index: after (index, id) is after the index, or at it.
_AFTER: Final = "AND event_index >= $4 AND (event_index, id{collate}) > ($4, $5) "
_EVENT_ORDER: Final = "ORDER BY event_index LIMIT $2 OFFSET $3"
_FIRST_EVENTS: Final = _EVENT + _EVENT_ORDER
_NEXT_EVENTS: Final = _EVENT + _AFTER + _EVENT_ORDER
_TAIL: Final = _EVENT + "ORDER BY event_index DESC LIMIT $2"
# More than any memory holds.
_MAX_ROWS: Final = 2**31


class SqlSessionPersistDriver(FollowedDriver):
    """Keeps sessions and events in the tables of the TypeScript SDK.

    Args:
        database: runs works.
        writers: decides which generation may write a session.
        make_hint: makes the followers' hint; None where no other program writes the tables.
    """

    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability)
    appends_head: ClassVar[bool] = True

    def __init__(
        self,
        database: Database,
        writers: Writers,
        *,
        make_hint: MakeHint | None = None,
    ) -> None:
        super().__init__(make_hint=make_hint)
        self._database = database
        self._log = Log(writers)

    @reading
    def get_session(self, session_id: str, /) -> Work[SessionRecord | None]:
        rows = yield Query(_ONE_SESSION, (session_id,))
        return to_record(rows[0]) if rows else None

    @reading
    def list_sessions(
        self, *, limit: int | None = None, cursor: str | None = None
    ) -> Work[ListPage[SessionRecord]]:
        size = normalize_limit(limit)
        after = self._after(cursor)
        if after is None or after.offset:
            rows = yield Query(_FIRST_SESSIONS, (size + 1, after.offset if after else 0))
        else:
            rows = yield Query(_NEXT_SESSIONS, (size + 1, 0, after.position, after.id))
        return make_page([to_record(row) for row in rows], size, record_position)

    async def update_session(self, session: SessionRecord, /) -> None:
        await self.save_session(session)

    async def claim_session(self, session_id: str, /) -> int:
        claim = partial(self._log.writers.claim, session_id)
        return await self._database.write(claim, session_id=session_id)

    async def save_session(self, session: SessionRecord, /, *, generation: int = UNFENCED) -> None:
        await self._database.write(partial(self._log.save, session, generation), session_id=session.id)

    @reading
    def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> Work[ListPage[SessionEvent]]:
        size = normalize_limit(limit)
        after = self._after(cursor)
        if after is None or after.offset:
            rows = yield Query(_FIRST_EVENTS, (session_id, size + 1, after.offset if after else 0))
        else:
            rows = yield Query(_NEXT_EVENTS, (session_id, size + 1, 0, after.position, after.id))
        return make_page([to_event(row) for row in rows], size, event_position)

    async def insert_event(self, session_id: str, event: SessionEvent, /) -> None:
        """Insert the event as it is, or replace the one of that id.

        Raises:
            PersistError: another event of the session has its index, or the store failed.
        """
        check_session(session_id, event)
        stored = event.copy()
        await self._database.write(partial(self._log.replace, session_id, stored), session_id=session_id)
        self._following.stored(session_id, [stored])

    async def append_events(
        self, session_id: str, events: Sequence[SessionEvent], /, *, generation: int = UNFENCED
    ) -> None:
        """Append the events and set their ``event_index``, in one transaction: all of them or none.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
            PersistError: an id is stored in another session, or the store failed.
        """
        for event in events:
            check_session(session_id, event)
        batch = list(events)
        for event, index in zip(batch, await self._append(session_id, batch, generation), strict=True):
            event.event_index = index
        self._following.stored(session_id, batch)

    async def append_sealed(
        self,
        session_id: str,
        events: Sequence[SessionEvent],
        head: SessionEvent,
        /,
        *,
        after: int,
        generation: int = UNFENCED,
    ) -> None:
        batch = list(events)
        append = partial(self._log.append_sealed, session_id, batch, head, after, generation)
        await self._database.write(append, session_id=session_id)
        self._following.stored(session_id, batch)

    @reading
    def last_event_index(self, session_id: str, /) -> Work[int]:
        rows = yield Query(LAST_INDEX, (session_id,))
        return int(rows[0][0]) if rows else 0

    @reading
    def tail_events(self, session_id: str, /, *, limit: int) -> Work[list[SessionEvent]]:
        if limit < 1:
            return []
        rows = yield Query(_TAIL, (session_id, min(limit, _MAX_ROWS)))
        return [to_event(row) for row in reversed(rows)]

    async def delete_session(self, session_id: str, /) -> None:
        """Erase the record and its events; nothing happens if there is none.

        A writer that claimed the session before is refused from now on.
        """
        await self.delete_sessions([session_id])

    async def delete_sessions(self, session_ids: Sequence[str], /) -> None:
        def delete() -> Work[None]:
            # An append locks a session before what belongs to it.
            for session_id in reversed(session_ids):
                yield from self._log.writers.delete(session_id)

        await self._database.write(delete, session_id=session_ids[0] if session_ids else None)
        for session_id in session_ids:
            self._following.deleted(session_id)

    async def search_events(
        self, query: str, /, *, session_id: str | None = None, limit: int | None = None
    ) -> list[SearchHit]:
        """Return where all words of the query occur, the newest first.

        The index is brought up to date first: the first search of a long history takes a while, some
        seconds for 100,000 events. Appends pay nothing for it.
        """
        return await self._search(query, session_id, normalize_limit(limit))

    async def _append(self, session_id: str, events: Sequence[SessionEvent], generation: int) -> list[int]:
        append = partial(self._log.append, session_id, events, generation)
        return (await self._database.write(append, session_id=session_id)).indexes

    @abstractmethod
    async def _search(self, query: str, session_id: str | None, limit: int) -> list[SearchHit]: ...

    def _after(self, cursor: str | None) -> Keyset | None:
        return decode_cursor(cursor)
