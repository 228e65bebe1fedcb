"""Following sessions: what is stored is read once and handed to everyone who waits for it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from sandbox_agent.errors import PersistError
from sandbox_agent.wire.records import ListPage, SessionEvent

__all__ = ["FollowedStore", "Following", "Mark"]

# A follower that is further behind gives its backlog up and reads from the store instead.
_MAX_BACKLOG: Final = 10_000
_MAX_BACKLOG_BYTES: Final = 16 * 1024 * 1024
# How often a hub glances at the store, in seconds, and how often while others store something for a follower.
# A glance costs microseconds, but the waking for it a hundred of them.
_INTERVAL: Final = 0.007
_LIVELY_INTERVAL: Final = 0.002
# For so long after a change another one may leave the same sign: file times are as coarse as 10 ms.
_SETTLING_TIME: Final = 0.03
# A store is asked so often whatever the glances say.
_UNPROMPTED_INTERVAL: Final = 0.5
# A change that was none of a followed session (the driver's own, mostly) puts off the next question for so
# long, unless others stored something for a follower in the last seconds.
_BUSY_INTERVAL: Final = 0.02
_LIVELY_TIME: Final = 2.0


class Mark(NamedTuple):
    """How far a session is.

    Attributes:
        last_index: the highest event index.
        deletions: another number than before says that the session was deleted meanwhile.
    """

    last_index: int
    deletions: int = 0


class FollowedStore(Protocol):
    """What following needs of a store."""

    async def list_events(
        self, session_id: str, /, *, limit: int | None = None, cursor: str | None = None
    ) -> ListPage[SessionEvent]:
        """Return a page of a session's events by (event_index, id), oldest first."""
        ...

    def cursor_after(self, event_index: int, /) -> str | None:
        """Return the cursor of ``list_events`` behind that index."""
        ...

    async def marks(self, session_ids: Collection[str], /) -> Mapping[str, Mark]:
        """Return how far each of the sessions is."""
        ...


class _Follower:
    def __init__(self) -> None:
        self.wakeup = asyncio.Event()
        self.behind = True
        self._backlog: deque[SessionEvent] = deque()
        self._bytes = 0

    def push(self, events: Sequence[SessionEvent]) -> None:
        if self.behind:
            # It reads from the store in any case, but not before it is done with what it reads now.
            self.wakeup.set()
            return
        self._backlog.extend(events)
        self._bytes += sum(len(event.payload_json) for event in events)
        if len(self._backlog) > _MAX_BACKLOG or self._bytes > _MAX_BACKLOG_BYTES:
            self._backlog.clear()
            self._bytes = 0
            self.behind = True
        self.wakeup.set()

    def pop(self) -> SessionEvent | None:
        if not self._backlog:
            return None
        event = self._backlog.popleft()
        self._bytes -= len(event.payload_json)
        return event


class _Room:
    """The followers of one session, and how far they were told."""

    def __init__(self, mark: Mark) -> None:
        self.position = mark.last_index
        self.deletions = mark.deletions
        self.followers: set[_Follower] = set()
        self.stale = False
        self.ended = False
        self.error: Exception | None = None

    def hand(self, events: Iterable[SessionEvent]) -> None:
        fresh = [event for event in events if event.event_index > self.position]
        if fresh:
            self.position = fresh[-1].event_index
            for follower in self.followers:
                follower.push(fresh)

    def end(self, error: Exception | None = None) -> None:
        self.ended = True
        self.error = error
        for follower in self.followers:
            follower.wakeup.set()


class _Hub:
    """The rooms of one event loop, and the task that reads for them while there are any."""

    def __init__(self, store: FollowedStore, glance: Callable[[], object] | None) -> None:
        self._store = store
        self._glance = glance
        self._rooms: dict[str, _Room] = {}
        self._wakeup = asyncio.Event()
        self._sign: object = None
        # Moments of the loop's clock.
        self._changed = self._asked = self._in_vain = self._lively_until = -math.inf
        self.reader: asyncio.Task[None] | None = None

    async def enter(self, session_id: str, follower: _Follower) -> _Room:
        if session_id not in self._rooms:
            mark = (await self._store.marks([session_id]))[session_id]
            if session_id not in self._rooms:
                self._rooms[session_id] = _Room(mark)
        room = self._rooms[session_id]
        room.followers.add(follower)
        if self.reader is None:
            self.reader = asyncio.create_task(self._read(), name="follow sessions")
        return room

    def has_room(self, session_id: str) -> bool:
        return session_id in self._rooms

    def leave(self, session_id: str, room: _Room, follower: _Follower) -> None:
        room.followers.discard(follower)
        if not room.followers and self._rooms.get(session_id) is room:
            del self._rooms[session_id]
        if not self._rooms and self.reader is not None:
            self.reader.cancel()
            self.reader = None

    def push(self, session_id: str, events: Sequence[SessionEvent]) -> None:
        room = self._rooms.get(session_id)
        if room is None or not events:
            return
        if events[0].event_index <= room.position + 1:
            room.hand(events)
        else:
            # Something is between them that came from elsewhere.
            room.stale = True
            self._wakeup.set()

    def end(self, session_id: str) -> None:
        room = self._rooms.pop(session_id, None)
        if room is not None:
            room.end()

    def end_all(self, error: Exception | None = None) -> None:
        rooms, self._rooms = self._rooms, {}
        for room in rooms.values():
            room.end(error)

    async def _read(self) -> None:
        while True:
            await self._wait()
            try:
                await self._look()
                for session_id, room in list(self._rooms.items()):
                    if room.stale:
                        room.stale = False
                        await self._catch_up(session_id, room)
            except Exception as error:  # noqa: BLE001 - it reaches the followers
                self.end_all(error)

    async def _wait(self) -> None:
        """Wait until the store is to be asked, or a room is to be read for."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None
        interval = _LIVELY_INTERVAL if loop.time() < self._lively_until else _INTERVAL

        def tick() -> None:
            nonlocal timer
            if self._is_due(loop.time()):
                self._wakeup.set()
            else:
                timer = loop.call_later(interval, tick)

        if self._glance is not None:
            timer = loop.call_later(interval, tick)
        try:
            await self._wakeup.wait()
        finally:
            if timer is not None:
                timer.cancel()
        self._wakeup.clear()

    def _is_due(self, now: float) -> bool:
        sign = self._glance() if self._glance is not None else None
        if sign != self._sign:
            self._sign, self._changed = sign, now
        if now - self._asked >= _UNPROMPTED_INTERVAL:
            return True
        settled = now - self._changed >= _SETTLING_TIME
        return not settled and (now < self._lively_until or now - self._in_vain >= _BUSY_INTERVAL)

    async def _look(self) -> None:
        """Find out what other programs did."""
        if self._glance is None or not self._rooms:
            return
        clock = asyncio.get_running_loop().time
        prompted = self._changed > self._asked
        self._asked = clock()
        marks = await self._store.marks(list(self._rooms))
        found = False
        for session_id, room in list(self._rooms.items()):
            mark = marks.get(session_id)
            if mark is None:
                continue  # its first follower came meanwhile
            if mark.deletions != room.deletions:
                self.end(session_id)
            elif mark.last_index > room.position:
                found = room.stale = True
        if found:
            self._lively_until = clock() + _LIVELY_TIME
        elif prompted:
            self._in_vain = self._asked

    async def _catch_up(self, session_id: str, room: _Room) -> None:
        cursor = self._store.cursor_after(room.position)
        while not room.ended:
            page = await self._store.list_events(session_id, limit=1_000, cursor=cursor)
            room.hand(page.items)
            cursor = page.next_cursor
            if cursor is None:
                return


class Following:
    """The followers of a driver's sessions.

    However many follow a session, each event is read at most once for those that have caught up; an event
    that this object's driver stored is handed on without reading. One task per event loop finds out what
    others did, and only while there are followers.

    Args:
        store: where events are.
        glance: returns, within microseconds, something that differs from what it returned before when
            anybody has stored something; None where nobody else writes to the store.
    """

    def __init__(self, store: FollowedStore, *, glance: Callable[[], object] | None = None) -> None:
        self._store = store
        self._glance = glance
        self._closings = 0
        self._hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, _Hub] = WeakKeyDictionary()

    async def follow(self, session_id: str, after: int) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events behind an index, the stored ones first; see ``follow_events``."""
        hub = self._hubs.setdefault(asyncio.get_running_loop(), _Hub(self._store, self._glance))
        follower = _Follower()
        closings = self._closings
        try:
            room = await hub.enter(session_id, follower)
        except PersistError:
            if closings != self._closings:
                return
            raise
        if closings != self._closings:
            # Nobody ended it: it was not in the room yet.
            hub.leave(session_id, room, follower)
            return
        last = after
        try:
            while True:
                # Asked before what is left is read: what was stored until the end is still told.
                ended = room.ended
                follower.wakeup.clear()
                if follower.behind:
                    follower.behind = False
                    cursor = self._store.cursor_after(last)
                    while not room.ended:
                        try:
                            page = await self._store.list_events(session_id, cursor=cursor)
                        except PersistError:
                            if room.ended:
                                break
                            raise
                        for event in page.items:
                            if event.event_index > last:
                                last = event.event_index
                                yield event
                        cursor = page.next_cursor
                        if cursor is None:
                            break
                while (event := follower.pop()) is not None:
                    if event.event_index > last:
                        last = event.event_index
                        yield event
                if ended:
                    if room.error is not None:
                        raise room.error
                    return
                await follower.wakeup.wait()
        finally:
            hub.leave(session_id, room, follower)

    def stored(self, session_id: str, events: Sequence[SessionEvent]) -> None:
        """Tell the followers of what the driver stored; they get copies, the events stay the caller's."""
        if events and any(hub.has_room(session_id) for hub in list(self._hubs.values())):
            copies = [event.copy() for event in events]
            self._tell(lambda hub: hub.push(session_id, copies))

    def deleted(self, session_id: str) -> None:
        """End the followers of a session."""
        self._tell(lambda hub: hub.end(session_id))

    async def close(self) -> None:
        """End all followers, and the task that reads for them."""
        self._closings += 1
        self._tell(lambda hub: hub.end_all())
        hub = self._hubs.get(asyncio.get_running_loop())
        if hub is not None and hub.reader is not None:
            reader, hub.reader = hub.reader, None
            reader.cancel()
            await asyncio.wait({reader})

    def _tell(self, what: Callable[[_Hub], None]) -> None:
        here = asyncio.get_running_loop()
        for loop, hub in list(self._hubs.items()):
            if loop is here:
                what(hub)
            else:
                # A loop that is closed has no followers.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(what, hub)
