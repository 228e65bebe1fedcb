"""Other views of a session's events: with their envelopes, or only those of one turn."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from sandbox_agent.engine.feed import Slice
from sandbox_agent.engine.sse import encode_event, encode_messages
from sandbox_agent.engine.ui_messages import Chunk, UiMessageChunks
from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store import EventRow, SessionRow, SessionStore
from sandbox_agent.server import metrics
from sandbox_agent.server.streams.usage import Usage
from sandbox_agent.server.streams.viewers import Signal
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.universal import TurnEventData, decode_event

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# A page of the store.
PAGE_EVENTS = 1000
# The end of a response to the AI SDK.
UI_DONE = b"data: [DONE]\n\n"


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
            return self._missing(gap)
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
        return Slice(self._encode(shown, cursor), cursor)

    def _missing(self, gap: Slice) -> Slice:
        """Return what a viewer receives for events that are not stored any more."""
        return gap

    def _encode(self, events: list[EventRow], cursor: int) -> bytes:
        """Return what a viewer receives for events of the turn; the cursor is at or behind the last one."""
        return encode_messages(events[0].sequence, [event.data for event in events]) if events else b""

    def _is_of_turn(self, event: EventRow) -> bool:
        data = decode_event(event.data).data
        return isinstance(data, TurnEventData) and data.turn_id == self._turn_id


class UiTurnView(TurnView):
    """One turn as chunks of the AI SDK, from its start or behind a sequence.

    It ends with the turn, or when the turn waits for people to answer a permission request: the AI SDK sends
    the answer when the response has ended. ``after`` is the last sequence that the client has, or 0.
    ``is_for_people`` returns whether a request waits for people.
    """

    def __init__(
        self,
        session: ViewedSession,
        store: SessionStore,
        turn_id: str,
        *,
        first: int | None,
        last: int | None,
        after: int = 0,
        is_for_people: Callable[[str], Awaitable[bool]],
    ) -> None:
        super().__init__(session, store, turn_id, first=first, last=last)
        self._chunks = UiMessageChunks(turn_id)
        self._after = after
        self._is_for_people = is_for_people
        self._started = False

    async def read(self, cursor: int, viewer: str, *, max_bytes: int) -> Slice:
        """Return chunks for events after the cursor, and the end of the response if people have to answer.

        Whatever ends the turn or its events, the last chunk says so: the AI SDK takes a response without an
        end for one that is still written.
        """
        try:
            return await self._read(cursor, viewer, max_bytes=max_bytes)
        except PersistError:
            logger.warning("a chat ends early: the store can't be read", exc_info=True)
            return self._fail(cursor, "The events of this turn cannot be read now. Resume the chat later.")

    async def _read(self, cursor: int, viewer: str, *, max_bytes: int) -> Slice:
        ends = self._session.finished or self.signal.closed
        part = await super().read(cursor, viewer, max_bytes=max_bytes)
        if self._ended or part.cursor < self._session.row.last_sequence:
            return part
        for request in self._chunks.waiting:
            if await self._is_for_people(request):
                self._ended = True
                chunks = [*self._start(), *self._chunks.pause(part.cursor)]
                return Slice(part.data + _encode_chunks(chunks) + UI_DONE, part.cursor)
        if ends and part.cursor == cursor:
            deleted = self._session.finished
            return self._fail(
                cursor, "The session was deleted." if deleted else "The server is shutting down."
            )
        return part

    def _encode(self, events: list[EventRow], cursor: int) -> bytes:
        chunks: list[Chunk] = []
        for event in events:
            if event.sequence > self._after:
                chunks += self._start()
                chunks += self._chunks.feed(decode_event(event.data))
            else:
                self._chunks.feed(decode_event(event.data))
            if self._chunks.ended:
                self._ended = True  # also by the end of the session
                break
        data = _encode_chunks(chunks)
        return data + UI_DONE if self._ended else data

    def _missing(self, gap: Slice) -> Slice:
        return self._fail(gap.cursor, "The first events of this turn are not stored any more.")

    def _fail(self, cursor: int, text: str) -> Slice:
        self._ended = True
        chunks = [*self._start(), {"type": "error", "errorText": text}]
        return Slice(_encode_chunks(chunks) + UI_DONE, cursor)

    def _start(self) -> list[Chunk]:
        if self._started:
            return []
        self._started = True
        return self._chunks.start()


def _encode_chunks(chunks: Sequence[Chunk]) -> bytes:
    return b"".join([b"data: %b\n\n" % dumps(chunk) for chunk in chunks])


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
