"""Other views of a session's events: with their envelopes, or only those of one turn."""

from __future__ import annotations

from typing import Protocol

from sandbox_agent.engine.feed import Slice
from sandbox_agent.engine.sse import encode_event, encode_messages
from sandbox_agent.persist.store import EventRow, SessionRow, SessionStore
from sandbox_agent.server import metrics
from sandbox_agent.server.streams.usage import Usage
from sandbox_agent.server.streams.viewers import Signal
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.universal import TurnEventData, decode_event

# A page of the store.
PAGE_EVENTS = 1000


class ViewedSession(Protocol):
    """What a view needs of a session."""

    signal: Signal
    usage: Usage
    row: SessionRow
    finished: bool


class RawView:
    """A session's events with the envelopes that they were made from, which are only in the store."""

    def __init__(self, session: ViewedSession, store: SessionStore) -> None:
        self.signal: Signal = session.signal
        self.usage: Usage = session.usage
        self._session = session
        self._store = store

    @property
    def finished(self) -> bool:
        """Whether the session was deleted."""
        return self._session.finished

    async def read(self, cursor: int, viewer: str, *, max_bytes: int) -> Slice:
        return await read_stored(self._session, self._store, cursor, max_bytes, include_raw=True)


class TurnView:
    """The events of one turn, from its turn.started to its turn.ended.

    ``first`` and ``last`` are the sequences of these; None if the turn has not started, or not ended.
    """

    def __init__(
        self,
        session: ViewedSession,
        store: SessionStore,
        turn_id: str,
        *,
        first: int | None,
        last: int | None,
        include_raw: bool = False,
    ) -> None:
        self.signal: Signal = session.signal
        self.usage: Usage = session.usage
        self._session = session
        self._store = store
        self._turn_id = turn_id
        self._last = last
        self._raw = include_raw
        self._begun = first is not None
        self._ended = False

    @property
    def finished(self) -> bool:
        """Whether all of the turn was read, or no event of it will follow."""
        return self._ended or self._session.finished

    async def read(self, cursor: int, viewer: str, *, max_bytes: int) -> Slice:
        """Return events of the turn after the cursor; events of other turns are skipped."""
        if self._ended:
            return Slice(b"", cursor)
        events, gap = await _page(self._session, self._store, cursor, max_bytes, include_raw=self._raw)
        if gap is not None:
            self._ended = self._last is not None and gap.cursor >= self._last
            return gap
        shown: list[EventRow] = []
        for event in events:
            cursor = event.sequence
            if event.type == "turn.started" and not self._begun:
                self._begun = self._is_of_turn(event)
            ends = cursor == self._last or (event.type == "turn.ended" and self._is_of_turn(event))
            if self._begun or ends:
                shown.append(event)
            if ends:
                self._ended = True
                break
        if not shown:
            return Slice(b"", cursor)
        return Slice(encode_messages(shown[0].sequence, [event.data for event in shown]), cursor)

    def _is_of_turn(self, event: EventRow) -> bool:
        data = decode_event(event.data).data
        return isinstance(data, TurnEventData) and data.turn_id == self._turn_id


async def read_stored(
    session: ViewedSession, store: SessionStore, cursor: int, max_bytes: int, *, include_raw: bool = False
) -> Slice:
    """Return events after the cursor from the store, each with its sequence as its id.

    A ``gap`` event with the first and last sequence stands for what retention has erased.

    Raises:
        PersistError: the store failed.
    """
    events, gap = await _page(session, store, cursor, max_bytes, include_raw=include_raw)
    if gap is not None:
        return gap
    if not events:
        return Slice(b"", cursor)
    return Slice(encode_messages(events[0].sequence, [e.data for e in events]), events[-1].sequence)


async def _page(
    session: ViewedSession, store: SessionStore, cursor: int, max_bytes: int, *, include_raw: bool
) -> tuple[list[EventRow], Slice | None]:
    """Return events after the cursor, or a gap event for those that were erased."""
    while True:
        row = session.row
        if session.finished or cursor >= row.last_sequence:
            return [], None
        if cursor + 1 < row.first_sequence:
            return [], _gap(cursor + 1, row.first_sequence - 1)
        events = await store.events(
            row.key, after=cursor, limit=PAGE_EVENTS, max_bytes=max_bytes, include_raw=include_raw
        )
        if events and events[0].sequence > cursor + 1:
            return [], _gap(cursor + 1, events[0].sequence - 1)
        if events or session.finished:
            return events, None
        if session.row.last_sequence == row.last_sequence:
            return [], _gap(cursor + 1, row.last_sequence)
        # More came while the store was read, and the signal has fired already.


def _gap(first: int, last: int) -> Slice:
    metrics.GAPS.add("session_events")
    return Slice(encode_event("gap", dumps({"from": first, "to": last}), event_id=last), last)
