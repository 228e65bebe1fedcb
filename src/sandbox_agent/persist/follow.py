"""Following sessions: stored events are read once and delivered to all followers.

A hub per event loop reads for its followers. A backend gives it a hint when another program may have stored
something: the state of a file, a notification, a stream that delivers it, or nothing where no other program
writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from abc import abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol
from weakref import WeakKeyDictionary

from sandbox_agent.errors import PersistError
from sandbox_agent.event_loop import running_loop
from sandbox_agent.persist.base import SessionPersistDriver, encode_cursor
from sandbox_agent.wire.records import SessionEvent

logger: logging.Logger = logging.getLogger("sandbox_agent.persist")

# A follower with a longer backlog drops its backlog and reads from the store instead.
_MAX_BACKLOG: Final = 10_000
_MAX_BACKLOG_BYTES: Final = 16 * 1024 * 1024
# How long closing waits for a reader that is connecting.
_CLOSE_SECONDS: Final = 5.0
# Events of one session that are read in one go.
_CATCH_UP: Final = 1_000
# Between attempts to reach a store that can't be reached, in seconds; doubled each time.
_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 2.0
# How often a file's state is polled, in seconds, and how often while others store events for a follower.
# A poll costs microseconds, but the wakeup for it a hundred of them.
_INTERVAL: Final = 0.007
_BUSY_INTERVAL: Final = 0.002
# For so long after a change another one may leave the same state: file times are as coarse as 10 ms.
_SETTLING_TIME: Final = 0.03
# The store is checked so often whatever the state says.
_UNPROMPTED_INTERVAL: Final = 0.5
# A change that did not concern a followed session (the driver's own, mostly) delays the next check for so
# long, unless others stored events for a follower in the last seconds.
_UNCONCERNED_INTERVAL: Final = 0.02
_BUSY_TIME: Final = 2.0


class Mark(NamedTuple):
    """The state of a session.

    Attributes:
        last_index: the highest event index.
        deletions: what differs from an earlier one if the session was deleted since: a number, mostly.
    """

    last_index: int
    deletions: object = 0


class ChangeHint(Protocol):
    """How a hub learns that another program may have stored something."""

    @property
    def survives_outages(self) -> bool:
        """Whether followers wait while the store can't be reached; otherwise they end with the error."""
        return False

    def joined(self) -> None:
        """Note that another session is followed, or one again."""

    async def wait(self, followed: Callable[[], Mapping[str, Mark]], /) -> None:
        """Wait until the store has to be checked, or the hub's event is set; clear the event.

        Args:
            followed: returns up to where each session was delivered.

        Raises:
            PersistError: the store can't be reached.
        """
        ...

    def changed(self, session_ids: Collection[str], /) -> Collection[str]:
        """Return which of the followed sessions have to be checked."""
        return ()

    def checked(self, found: bool, /) -> None:
        """Note whether the last check found something."""

    def has_ended(self, session_id: str, before: Mark, now: Mark, /) -> bool:
        """Return whether the session was deleted.

        Raises:
            PersistError: the store has lost it.
        """
        return before.deletions != now.deletions

    async def close(self) -> None:
        """Release what the hint holds."""


MakeHint = Callable[[asyncio.Event], ChangeHint]


class _NoHint(ChangeHint):
    """For a store that no other program writes."""

    def __init__(self, wakeup: asyncio.Event) -> None:
        self._wakeup = wakeup

    async def wait(self, followed: Callable[[], Mapping[str, Mark]], /) -> None:
        await self._wakeup.wait()
        self._wakeup.clear()


class FileHint(ChangeHint):
    """A hint that polls something which differs after every change.

    Args:
        glance: returns, within microseconds, a value that differs from the one before if anything was stored.
        wakeup: the hub's event.
    """

    def __init__(self, glance: Callable[[], object], wakeup: asyncio.Event) -> None:
        self._glance = glance
        self._wakeup = wakeup
        self._state: object = None
        self._prompted = False
        # Moments of the loop's clock.
        self._changed = self._checked = self._in_vain = self._busy_until = -math.inf

    async def wait(self, followed: Callable[[], Mapping[str, Mark]], /) -> None:
        """Poll until the store has to be checked."""
        loop = running_loop()
        interval = _BUSY_INTERVAL if loop.time() < self._busy_until else _INTERVAL

        def poll() -> None:
            nonlocal timer
            if self._is_due(loop.time()):
                self._wakeup.set()
            else:
                timer = loop.call_later(interval, poll)

        timer = loop.call_later(interval, poll)
        try:
            await self._wakeup.wait()
        finally:
            timer.cancel()
        self._wakeup.clear()

    def changed(self, session_ids: Collection[str], /) -> Collection[str]:
        """Return all: a file's state does not say which session has changed."""
        self._prompted = self._changed > self._checked
        self._checked = running_loop().time()
        return session_ids

    def checked(self, found: bool, /) -> None:
        """Poll more often while others store events for a follower."""
        if found:
            self._busy_until = running_loop().time() + _BUSY_TIME
        elif self._prompted:
            self._in_vain = self._checked

    def _is_due(self, now: float) -> bool:
        state = self._glance()
        if state != self._state:
            self._state, self._changed = state, now
        if now - self._checked >= _UNPROMPTED_INTERVAL:
            return True
        settled = now - self._changed >= _SETTLING_TIME
        return not settled and (now < self._busy_until or now - self._in_vain >= _UNCONCERNED_INTERVAL)


class _Follower:
    def __init__(self) -> None:
        self.wakeup = asyncio.Event()
        self.lagging = True
        self._backlog: deque[SessionEvent] = deque()
        self._bytes = 0

    def push(self, events: Sequence[SessionEvent]) -> None:
        if self.lagging:
            # It reads from the store in any case, but only after what it reads now.
            self.wakeup.set()
            return
        self._backlog.extend(events)
        self._bytes += sum(len(event.payload_json) for event in events)
        if len(self._backlog) > _MAX_BACKLOG or self._bytes > _MAX_BACKLOG_BYTES:
            self._backlog.clear()
            self._bytes = 0
            self.lagging = True
        self.wakeup.set()

    def pop(self) -> SessionEvent | None:
        if not self._backlog:
            return None
        event = self._backlog.popleft()
        self._bytes -= len(event.payload_json)
        return event


class _Channel:
    """The followers of one session, and the last event that was delivered to them."""

    def __init__(self, mark: Mark) -> None:
        self.mark = mark
        self.followers: set[_Follower] = set()
        self.stale = False
        self.ended = False
        self.error: Exception | None = None

    def deliver(self, events: Iterable[SessionEvent]) -> None:
        fresh = [event for event in events if event.event_index > self.mark.last_index]
        if fresh:
            self.mark = self.mark._replace(last_index=fresh[-1].event_index)
            for follower in self.followers:
                follower.push(fresh)

    def end(self, error: Exception | None = None) -> None:
        self.ended = True
        self.error = error
        for follower in self.followers:
            follower.wakeup.set()


class _Hub:
    """The channels of one event loop, and the task that reads for them while there are any."""

    def __init__(self, store: FollowedDriver, make_hint: MakeHint) -> None:
        self._store = store
        self._make_hint = make_hint
        self._channels: dict[str, _Channel] = {}
        # Sessions whose state is being read, and whether something was stored meanwhile.
        self._joining: dict[str, bool] = {}
        self._wakeup = asyncio.Event()
        self._hint: ChangeHint | None = None
        self._reader: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def join(self, session_id: str, follower: _Follower) -> _Channel:
        if session_id not in self._channels:
            self._joining[session_id] = False
            mark = (await self._store.marks([session_id]))[session_id]
            if session_id not in self._channels:
                channel = self._channels[session_id] = _Channel(mark)
                channel.stale = self._joining.pop(session_id, False)
                if channel.stale:
                    self._wakeup.set()
        channel = self._channels[session_id]
        channel.followers.add(follower)
        if self._hint is None:
            self._hint = self._make_hint(self._wakeup)
            self._reader = asyncio.create_task(self._read(self._hint), name="follow sessions")
        elif len(channel.followers) == 1:
            self._hint.joined()
        return channel

    def has_channel(self, session_id: str) -> bool:
        return session_id in self._channels

    def leave(self, session_id: str, channel: _Channel, follower: _Follower) -> None:
        channel.followers.discard(follower)
        if not channel.followers and self._channels.get(session_id) is channel:
            del self._channels[session_id]
        if not self._channels:
            self._stop()

    def push(self, session_id: str, events: Sequence[SessionEvent]) -> None:
        channel = self._channels.get(session_id)
        if channel is None or not events:
            return
        if events[0].event_index <= channel.mark.last_index + 1:
            channel.deliver(events)
        else:
            # Events of another program are between them.
            channel.stale = True
            self._wakeup.set()

    def end(self, session_id: str, error: Exception | None = None) -> None:
        channel = self._channels.pop(session_id, None)
        if channel is not None:
            channel.end(error)

    def end_all(self, error: Exception | None = None) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.end(error)

    async def close(self) -> None:
        self._stop()
        if self._ending:
            _, late = await asyncio.wait(set(self._ending), timeout=_CLOSE_SECONDS)
            for reader in late:
                reader.cancel()

    def _stop(self) -> None:
        """Let the reader end by itself: a client library may not survive a cancellation while it connects."""
        reader, self._reader, self._hint = self._reader, None, None
        if reader is not None:
            # The next reader has an event of its own.
            self._wakeup.set()
            self._wakeup = asyncio.Event()
            self._ending.add(reader)
            reader.add_done_callback(self._ending.discard)

    async def _read(self, hint: ChangeHint) -> None:
        pause = _FIRST_PAUSE
        try:
            while self._reader is asyncio.current_task():
                try:
                    await hint.wait(self._marks)
                    if self._reader is not asyncio.current_task():
                        return
                    await self._check(hint)
                    await self._catch_up()
                    pause = _FIRST_PAUSE
                except Exception as error:  # noqa: BLE001 - it reaches the followers
                    if not hint.survives_outages or not isinstance(error, PersistError):
                        self.end_all(error)
                        continue
                    if pause == _FIRST_PAUSE:
                        logger.warning("following waits for the store: %s", error)
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, _LONGEST_PAUSE)
                    self._wakeup.set()
        finally:
            await hint.close()

    async def _check(self, hint: ChangeHint) -> None:
        """Find out what other programs did."""
        session_ids = hint.changed({**self._channels, **self._joining})
        if not session_ids:
            return
        found = False
        known = {channel: channel.mark for channel in self._channels.values()}
        for session_id, mark in (await self._store.marks(session_ids)).items():
            channel = self._channels.get(session_id)
            if channel is None:
                if session_id in self._joining:
                    self._joining[session_id] = True
                continue
            # Of one that has joined meanwhile the answer may be older than its mark.
            before = known.get(channel, Mark(0, channel.mark.deletions))
            try:
                ended = hint.has_ended(session_id, before, mark)
            except PersistError as error:
                self.end(session_id, error)
                continue
            if ended:
                self.end(session_id)
                continue
            channel.mark = channel.mark._replace(deletions=mark.deletions)
            if mark.last_index > channel.mark.last_index:
                found = channel.stale = True
        hint.checked(found)

    def _marks(self) -> dict[str, Mark]:
        """Return up to where each session was delivered."""
        return {session_id: channel.mark for session_id, channel in self._channels.items()}

    async def _catch_up(self) -> None:
        for session_id, channel in list(self._channels.items()):
            if not channel.stale:
                continue
            channel.stale = False
            cursor = self._store.cursor_after(channel.mark.last_index)
            try:
                while not channel.ended:
                    page = await self._store.list_events(session_id, limit=_CATCH_UP, cursor=cursor)
                    channel.deliver(page.items)
                    cursor = page.next_cursor
                    if cursor is None:
                        break
            except Exception:
                channel.stale = True
                raise


class FollowedDriver(SessionPersistDriver):
    """A driver with followers, whose cursors are those of ``encode_cursor``.

    Args:
        make_hint: makes a hint that sets the event; None where no other program writes the store.
    """

    def __init__(self, *, make_hint: MakeHint | None = None) -> None:
        self._following = Following(self, make_hint=make_hint)

    def cursor_after(self, event_index: int, /) -> str:
        return encode_cursor(event_index + 1, "")

    def follow_events(self, session_id: str, /, *, after: int = 0) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events after an index and those that are stored later, once each, in order.

        It ends when the driver is closed or the session is deleted, by any program.

        Raises:
            PersistError: the store can't be reached, or has lost the session.
        """
        return self._following.follow(session_id, after)

    @abstractmethod
    async def marks(self, session_ids: Collection[str], /) -> Mapping[str, Mark]:
        """Return the state of each session, for the followers."""

    async def close(self) -> None:
        """End the followers. Safe to call twice."""
        await self._following.close()


class Following:
    """The followers of a driver's sessions.

    However many follow a session, each event is read at most once for those that are up to date; an event
    that this object's driver stored is delivered without reading. One task per event loop finds out what
    others did, and only while there are followers.

    Args:
        store: where events are.
        make_hint: makes a hint that sets the event; None where no other program writes the store.
    """

    def __init__(self, store: FollowedDriver, *, make_hint: MakeHint | None = None) -> None:
        self._store = store
        self._make_hint = make_hint or _NoHint
        self._closings = 0
        self._hubs: WeakKeyDictionary[asyncio.AbstractEventLoop, _Hub] = WeakKeyDictionary()
        # Every append looks whether there is a hub.
        self._has_hubs = False

    async def follow(self, session_id: str, after: int) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events after an index, the stored ones first; see ``follow_events``."""
        loop = running_loop()
        hub = self._hubs.get(loop)
        if hub is None:
            hub = self._hubs[loop] = _Hub(self._store, self._make_hint)
            self._has_hubs = True
        follower = _Follower()
        closings = self._closings
        try:
            channel = await hub.join(session_id, follower)
        except PersistError:
            if closings != self._closings:
                return
            raise
        if closings != self._closings:
            # Closing did not end it: it had not joined yet.
            hub.leave(session_id, channel, follower)
            return
        last = after
        try:
            while True:
                # Read before the rest is: what was stored until the end is still delivered.
                ended = channel.ended
                follower.wakeup.clear()
                if follower.lagging:
                    follower.lagging = False
                    cursor = self._store.cursor_after(last)
                    while not channel.ended:
                        try:
                            page = await self._store.list_events(session_id, cursor=cursor)
                        except PersistError:
                            if channel.ended:
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
                    if channel.error is not None:
                        raise channel.error
                    return
                await follower.wakeup.wait()
        finally:
            hub.leave(session_id, channel, follower)

    def stored(self, session_id: str, events: Sequence[SessionEvent]) -> None:
        """Deliver what the driver stored; followers get copies, the events stay the caller's."""
        if (
            self._has_hubs
            and events
            and any(hub.has_channel(session_id) for hub in list(self._hubs.values()))
        ):
            copies = [event.copy() for event in events]
            self._notify(lambda hub: hub.push(session_id, copies))

    def deleted(self, session_id: str) -> None:
        """End the followers of a session."""
        self._notify(lambda hub: hub.end(session_id))

    async def close(self) -> None:
        """End all followers, and the task that reads for them."""
        self._closings += 1
        self._notify(lambda hub: hub.end_all())
        hub = self._hubs.get(running_loop())
        if hub is not None:
            await hub.close()

    def _notify(self, action: Callable[[_Hub], None]) -> None:
        here = running_loop()
        for loop, hub in list(self._hubs.items()):
            if loop is here:
                action(hub)
            else:
                # A loop that is closed has no followers.
                with contextlib.suppress(RuntimeError):
                    loop.call_soon_threadsafe(action, hub)
