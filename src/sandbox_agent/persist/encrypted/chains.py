"""The chains of the sessions of a store: extended with every append, and checked where events are read."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final, NamedTuple, TypeVar

import anyio
import anyio.to_thread
import msgspec

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.base import NotLastError, SessionPersistDriver, all_pages
from sandbox_agent.persist.encrypted.chain import (
    HEAD_PREFIX,
    Break,
    Head,
    Place,
    Stored,
    extend,
    find_cut,
    open_head,
    walk,
)
from sandbox_agent.persist.encrypted.cipher import SessionCipher
from sandbox_agent.persist.encrypted.forms import open_event, read_sealed_event, seal_event
from sandbox_agent.persist.encrypted.keys import SessionKeys
from sandbox_agent.wire.records import SessionEvent

T = TypeVar("T")

# More bytes than this are encrypted or decrypted in a thread, so that the event loop does not wait.
_IN_LOOP: Final = 512 * 1024
# How often something is read before its chain counts as broken: a write may come between two reads.
READS: Final = 3
# Attempts of an append while other processes append to the session, and the longest pause in seconds.
_TRIES: Final = 200
_PAUSE: Final = 0.05
# How many sessions are remembered.
_REMEMBERED: Final = 4_096


class Findings(NamedTuple):
    """What was found out about a session.

    Attributes:
        problems: what is wrong.
        notes: what can't be known.
        key_id: of its key; empty if it has none.
    """

    problems: list[str]
    notes: list[str]
    key_id: str


class _Session:
    """Where a session is continued, and a lock for the task that writes it.

    An append takes a few microseconds, and anyio's lock, which finds out which task has it, one of them.

    Attributes:
        key_id: the key of the chain.
        head: the chain's newest head.
        after: the last index of the session; None if it has to be read.
        locked: whether a task writes it.
    """

    __slots__ = ("_waiting", "after", "head", "key_id", "locked")

    def __init__(self) -> None:
        self.key_id = ""
        self.head = Head()
        self.after: int | None = None
        self.locked = False
        self._waiting: deque[anyio.Event] = deque()

    async def wait_turn(self) -> None:
        """Wait until the tasks that waited before have released the lock, and this one has it."""
        turn = anyio.Event()
        self._waiting.append(turn)
        try:
            await turn.wait()
        except BaseException:
            if turn.is_set():
                self.release()
            else:
                self._waiting.remove(turn)
            raise

    def release(self) -> None:
        """Give the lock to the task that waits longest."""
        if self._waiting:
            self._waiting.popleft().set()
        else:
            self.locked = False


class SessionChains:
    """The chains of a store.

    Args:
        inner: the store.
        keys: its keys.
        check: whether a broken chain is an error.
    """

    def __init__(self, inner: SessionPersistDriver, keys: SessionKeys, *, check: bool) -> None:
        self._inner = inner
        self._keys = keys
        self.checks: bool = check
        self._sessions: OrderedDict[str, _Session] = OrderedDict()

    async def append(self, session_id: str, events: Sequence[SessionEvent], generation: int) -> SessionCipher:
        """Append the events and set their indexes; return the cipher that they were encrypted with.

        Raises:
            SessionFencedError: the session was claimed after that generation; nothing is stored.
            PersistError: the chain is broken, or the store failed.
        """
        wanted = events
        if len(events) > 1 and len({event.id for event in events}) < len(events):
            first: dict[str, SessionEvent] = {}
            for event in events:
                first.setdefault(event.id, event)
            wanted = list(first.values())
        known: dict[str, int] = {}
        session = self._session(session_id)
        if session.locked:
            await session.wait_turn()
        session.locked = True
        try:
            for attempt in range(_TRIES):
                cipher = self._keys.current(session_id) or await self._keys.obtain(session_id)
                if session.key_id == cipher.key_id and session.after is not None:
                    head, after = session.head, session.after
                else:
                    tip = await self._find_tip(session, session_id, cipher)
                    if tip is None:
                        continue
                    head, after = tip
                if _is_small(wanted):
                    sealed, longer, stored_head = extend(cipher, head, after, wanted)
                else:
                    seal = partial(extend, cipher, head, after, wanted)
                    sealed, longer, stored_head = await anyio.to_thread.run_sync(seal)
                # What is stored is not known until the store has answered.
                session.key_id, session.head, session.after = cipher.key_id, head, None
                try:
                    await self._inner.append_sealed(
                        session_id, sealed, stored_head, after=after, generation=generation
                    )
                except NotLastError as error:
                    known.update(error.known)
                    wanted = [one for one in wanted if one.id not in error.known]
                    if not wanted:
                        break
                    # Another process appended, or the session was erased and has another key.
                    self._keys.forget(session_id)
                    if attempt:
                        await anyio.sleep(random.uniform(0, min(_PAUSE, 0.001 * attempt)))  # noqa: S311
                    continue
                session.head, session.after = longer, longer.last
                for index, event in enumerate(wanted, after + 1):
                    event.event_index = index
                if wanted is events:
                    return cipher
                known.update((event.id, event.event_index) for event in wanted)
                break
            else:
                raise NotLastError(session_id)
        finally:
            session.release()
        for event in events:
            event.event_index = known[event.id]
        return cipher

    async def insert(self, session_id: str, event: SessionEvent) -> SessionCipher:
        """Insert an event with its index, or replace the one of its id; return the cipher.

        A replaced event stays where it is in the chain. A new one is in no chain.
        """
        session = self._session(session_id)
        if session.locked:
            await session.wait_turn()
        session.locked = True
        try:
            cipher = await self._keys.obtain(session_id)
            head = await self.read_head(session_id, cipher)
            like = None
            if head is not None:
                found = await self._find(session_id, event.event_index, event.id)
                if found is not None and found[1].key_id == cipher.key_id and found[1].previous is not None:
                    old, sealed = found
                    if old.event_index == event.event_index:
                        like = sealed
                    else:
                        moved = {**head.moved, old.event_index: found[1].previous}
                        await self._store_head(
                            session_id, cipher, msgspec.structs.replace(head, moved=moved), event.created_at
                        )
            (sealed_event,) = await in_thread_if_large(
                [event], lambda events: [seal_event(cipher, one, like=like) for one in events]
            )
            self.forget(session_id)
            await self._inner.insert_event(session_id, sealed_event)
        finally:
            session.release()
        return cipher

    async def read_head(self, session_id: str, cipher: SessionCipher) -> Head | None:
        """Return the stored head; raise PersistError if it was changed."""
        head = await self._inner.find_head(session_id, HEAD_PREFIX + session_id)
        return None if head is None else open_head(cipher, session_id, head)

    async def check(
        self,
        session_id: str,
        cipher: SessionCipher,
        rows: Sequence[Stored],
        start: Place | None,
        *,
        ends: bool,
        earlier: Head | None = None,
    ) -> tuple[Place | None, list[Break], Head | None]:
        """Return up to where the chain was read, what is wrong with it, and the head if it was read.

        Args:
            session_id: the session.
            cipher: its cipher.
            rows: neighboring events that are encrypted with it.
            start: up to where the chain was read before; None: unknown.
            ends: whether the last event is among those, or was before them.
            earlier: the head, read before the rows were. Without it, something wrong at the end may have been
                stored since the rows were read.
        """
        place, breaks = walk(rows, start)
        old = any(sealed.form == "v1" for _, sealed in rows)
        if not (breaks or old or ends):
            return place, breaks, None
        head = await self.read_head(session_id, cipher)
        if head is not None and (breaks or old):
            place, breaks = walk(rows, start, head)
        if ends:
            found = any(sealed.previous is not None for _, sealed in rows)
            cut = find_cut(place, head and (earlier or head), found=found)
            breaks += [] if cut is None else [cut]
        if breaks and self._inner.drops_oldest:
            breaks = await self._without_dropped(session_id, breaks, head)
        return place, breaks, head

    async def verify(self, session_id: str) -> Findings:
        """Return what is wrong with a session's events, and what can't be known of them.

        Raises:
            PersistError: the key or the head was changed, or the store failed.
        """
        found = Findings([], [], "")
        for _ in range(READS):
            key = await self._keys.find(session_id)
            cipher = None if key is None else key.cipher
            # Read before the events: what is stored meanwhile is after it.
            head = None if cipher is None else await self.read_head(session_id, cipher)
            if key is not None and cipher is not None:
                found = await self._verify(session_id, cipher, key.gone, head)
                if not found.problems:
                    break
            else:
                rest = (await self._inner.list_events(session_id, limit=1)).items
                lost = ["its key is missing"] if rest and key is None else []
                erased = ["it was erased: its key was destroyed, its events can't be read"] if rest else []
                found = Findings(lost, [] if lost else erased, "")
                if not lost:
                    break
                # A driver without transactions deletes the key before the events.
                continue
            again = await self._keys.find(session_id)
            if again == key and await self.read_head(session_id, cipher) == head:
                break
            # It was erased meanwhile, or an event got another index.
        return found

    async def _verify(
        self, session_id: str, cipher: SessionCipher, gone: Collection[str], head: Head | None
    ) -> Findings:
        place: Place | None = Place(0)
        breaks: list[Break] = []
        changed: list[str] = []
        first = last = apart = 0
        async with aclosing(self._read_all(session_id)) as pages:
            async for stored in pages:
                rows = [row for row in stored if row[1].key_id == cipher.key_id]
                changed += [
                    f"event {event.event_index} ('{event.id}') can't be read: its key is not in the store"
                    for event, sealed in stored
                    if sealed.key_id != cipher.key_id and sealed.key_id not in gone
                ]
                changed += await anyio.to_thread.run_sync(_find_changed, cipher, rows)
                place, found = walk(rows, place, head or Head())
                breaks += found
                chained = [event.event_index for event, sealed in rows if sealed.previous is not None]
                apart += len(rows) - len(chained)
                first, last = first or min(chained, default=0), max(chained, default=last)
        cut = find_cut(place, head, found=last > 0)
        breaks += [] if cut is None else [cut]
        if head is not None and self._inner.appends_head and 0 < head.last < last:
            # It may have been stored since.
            newer = await self.read_head(session_id, cipher)
            if newer is None or newer.last < last:
                breaks.append(Break(f"the head of its chain is older than event {last}: it was put back"))
        if breaks and self._inner.drops_oldest:
            breaks = await self._without_dropped(session_id, breaks, head)
        notes: list[str] = []
        if apart and not first:
            notes.append(f"no chain: {apart} events are bound to the session only, or were inserted")
        elif apart:
            notes.append(f"no chain before event {first}, or events were inserted: {apart} are in no chain")
        return Findings([*changed, *(one.what for one in breaks)], notes, cipher.key_id)

    def is_known(self, session_id: str) -> bool:
        """Whether this object has written the session, lately."""
        return session_id in self._sessions

    def forget(self, session_id: str) -> None:
        """Read from the store where the session is continued. Its newest event is remembered."""
        if session_id in self._sessions:
            self._sessions[session_id].after = None

    def erased(self, session_id: str) -> None:
        """Forget the session."""
        if session_id in self._sessions:
            self._sessions[session_id].key_id = ""

    async def _find_tip(
        self, session: _Session, session_id: str, cipher: SessionCipher
    ) -> tuple[Head, int] | None:
        """Return the head and the last index of the session; None if it was erased and has another key.

        Raises:
            PersistError: events that the head, or this object, knows are missing.
        """
        known = session.head if session.key_id == cipher.key_id else Head()
        if session.key_id == cipher.key_id and session.after is not None:
            return known, session.after
        breaks: list[Break] = []
        for _ in range(READS):
            head, after, breaks = await self._read_tip(session_id, cipher, known)
            if not breaks or not self.checks:
                return head, after
            self._keys.forget(session_id)
            found = await self._keys.find(session_id)
            if found is None or found.cipher is None or found.cipher.key_id != cipher.key_id:
                return None
        raise broken_error(session_id, breaks)

    async def _read_tip(
        self, session_id: str, cipher: SessionCipher, known: Head
    ) -> tuple[Head, int, list[Break]]:
        stored = await self.read_head(session_id, cipher)
        # Read after the head and before the events: the store refuses what is sealed for an older end.
        after = await self._inner.last_event_index(session_id)
        if stored is None and not self._inner.appends_head:
            # From here on, events without a head show that it was removed.
            await self._store_head(session_id, cipher, Head(), 0)
        head = stored or Head()
        end = head.end()
        if end.at and not after and self._inner.drops_oldest:
            # The session was dropped.
            return Head(), after, []
        breaks: list[Break] = []
        place = Place(end.at) if stored is not None else None
        seen: set[int] = set()
        async with aclosing(self.read_rows(session_id, cipher, max(0, end.at - 1))) as pages:
            async for rows in pages:
                start = place if seen or place is None else Place(max(0, end.at - 1))
                # Nothing is linked to an event that was made without the key.
                breaks += map(Break, _find_changed(cipher, rows))
                if not seen and place is not None and end.at:
                    # The newest event is there, and none is missing before the ones after it.
                    rows = [row for row in rows if row[0].event_index >= end.at]
                    chained = [row for row in rows if row[1].previous is not None]
                    if not chained or chained[0][0].event_index != end.at:
                        breaks.append(Break(f"event {end.at} is missing", end.at))
                    elif end.tag and chained[0][1].tag != end.tag:
                        breaks.append(Break(f"event {end.at} is an older copy"))
                    start = None
                place, found = walk(rows, start, head)
                breaks += found
                seen |= {event.event_index for event, sealed in rows if sealed.previous is not None}
        if seen and stored is None:
            breaks.append(Break("the head of its chain is missing"))
        if end.at and not seen:
            breaks.append(Break(f"event {end.at} is missing", end.at))
        if self._inner.drops_oldest:
            breaks = await self._without_dropped(session_id, breaks, stored)
        newest = max(head.last, *seen, 0)
        if newest < known.last and not self._inner.drops_oldest:
            breaks.append(Break(f"it was set back from event {known.last} to event {newest}"))
        if place is not None and newest > head.last:
            moved = {index: before for index, before in head.moved.items() if index not in seen}
            head = Head(head.first or min(seen), place.at, place.tag, moved)
        return head, after, breaks

    async def read_rows(
        self, session_id: str, cipher: SessionCipher, after: int = 0
    ) -> AsyncGenerator[list[Stored]]:
        """Iterate over the pages of the events after an index that are encrypted with a cipher."""
        async with aclosing(self._read_all(session_id, after)) as pages:
            async for rows in pages:
                yield [row for row in rows if row[1].key_id == cipher.key_id]

    async def _read_all(self, session_id: str, after: int = 0) -> AsyncGenerator[list[Stored]]:
        read = partial(self._inner.list_events, session_id)
        cursor = self._inner.cursor_after(after) if after else None
        async with aclosing(all_pages(read, cursor)) as pages:
            async for events in pages:
                yield [(one, read_sealed_event(one)) for one in events if one.event_index > after]

    async def _find(self, session_id: str, index: int, event_id: str) -> Stored | None:
        """Return the stored event of that id, which is probably at that index."""
        read = partial(self._inner.list_events, session_id)
        page = await read(limit=1, cursor=self._inner.cursor_after(index - 1))
        if page.items and page.items[0].event_index == index:
            # An event with another id makes the store refuse the new one.
            one = page.items[0]
            return (one, read_sealed_event(one)) if one.id == event_id else None
        async with aclosing(all_pages(read)) as pages:
            async for events in pages:
                for one in events:
                    if one.id == event_id:
                        return one, read_sealed_event(one)
        return None

    async def _store_head(self, session_id: str, cipher: SessionCipher, head: Head, created_at: int) -> None:
        await self._inner.replace_head(session_id, head.seal(cipher, session_id, created_at))

    async def _without_dropped(self, session_id: str, breaks: list[Break], head: Head | None) -> list[Break]:
        """Leave out what is missing because the store drops the oldest events, or sessions."""
        oldest = (await self._inner.list_events(session_id, limit=1)).items
        first = oldest[0].event_index if oldest else None
        return [
            one
            for one in breaks
            if head is not None and first is not None and (not one.missing or first <= one.missing)
        ]

    def _session(self, session_id: str) -> _Session:
        session = self._sessions.get(session_id)
        if session is None:
            session = self._sessions[session_id] = _Session()
            if len(self._sessions) > _REMEMBERED:
                oldest = next(iter(self._sessions))
                if not self._sessions[oldest].locked:
                    del self._sessions[oldest]
        self._sessions.move_to_end(session_id)
        return session


def _find_changed(cipher: SessionCipher, rows: Sequence[Stored]) -> list[str]:
    changed: list[str] = []
    for event, sealed in rows:
        try:
            open_event(cipher, event, sealed)
        except PersistError:
            changed.append(
                f"event {event.event_index} ('{event.id}') was changed, or moved from another place"
            )
    return changed


def _is_small(events: Sequence[SessionEvent]) -> bool:
    return sum([len(event.payload_json) for event in events]) <= _IN_LOOP


async def in_thread_if_large(
    events: Sequence[SessionEvent], work: Callable[[Sequence[SessionEvent]], T]
) -> T:
    """Return the result of ``work``, which large payloads are given to in a thread."""
    if _is_small(events):
        return work(events)
    return await anyio.to_thread.run_sync(work, events)


def broken_error(session_id: str, breaks: Sequence[Break]) -> PersistError:
    """Return the error of a broken chain."""
    what = "; ".join(one.what for one in breaks[:3])
    return PersistError(
        f"session '{session_id}' was changed in the store: {what}; restore it from a copy of the store, or "
        "read what is left with check_chain=False ('sandbox-agent sessions verify' lists all that is wrong)",
        session_id=session_id,
    )
