"""Follow sessions: one connection per driver, in a cluster one per session, waits for events (XREAD BLOCK).

The server delivers the events themselves, so followers that keep up read nothing from the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, cast

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.redis.client import Argument, BoundedClient
from sandbox_agent.persist.redis.rows import Keys, SessionKeys, read_event
from sandbox_agent.wire.records import SessionEvent

# How long the server holds a call when nothing comes, in ms. The sessions are checked between the calls,
# because a stream that vanishes sends no notification.
_BLOCK_MS: Final = 1_000
_CHECK_SECONDS: Final = 1.0
# Events of one session per answer.
_ANSWER_EVENTS: Final = 256
# Kept for followers that are a little behind. Those further behind read the store, in pages.
_KEPT_EVENTS: Final = 1_000
_KEPT_BYTES: Final = 4 * 1024 * 1024
_READ_EVENTS: Final = 500
# Between attempts to reach a server during an outage, in seconds.
_PAUSES: Final = (0.05, 0.1, 0.25, 0.5, 1.0)


class _FollowedSession:
    """The newest events of a session, as the server delivered them.

    Attributes:
        is_ready: whether the listener waits for its events.
        position: the highest index that was delivered.
        end_id: the id of the last known deletion.
        changed: set and replaced after every change.
    """

    def __init__(self, listener: _Listener, session_id: str, keys: SessionKeys) -> None:
        self.listener = listener
        self.session_id = session_id
        self.keys = keys
        self.followers = 0
        self.is_ready = False
        self.position = 0
        self.end_id: bytes | str = b"0-0"
        self.life: bytes | None = None
        self.ended = False
        self.error: PersistError | None = None
        self.changed = asyncio.Event()
        self._kept: deque[tuple[int, Sequence[bytes]]] = deque()
        self._bytes = 0
        # Everything after this index is kept.
        self._kept_after = 0

    def begin(self, position: int, end_id: bytes | str, life: bytes | None) -> None:
        """Begin where the session is now; the listener delivers what comes after it."""
        self.position = self._kept_after = position
        self.end_id, self.life, self.is_ready = end_id, life, True
        self._notify()

    def add(self, events: Sequence[Sequence[bytes]]) -> None:
        """Keep events as ``read_event`` expects them."""
        for event in events:
            index = int(event[0])
            if index != self.position + 1:
                # Events between them were inserted or replaced. They are in the store, not in the stream.
                self._kept.clear()
                self._bytes, self._kept_after = 0, index
            else:
                self._kept.append((index, event))
                self._bytes += len(event[5])
            self.position = index
        while len(self._kept) > _KEPT_EVENTS or (self._bytes > _KEPT_BYTES and len(self._kept) > 1):
            self._kept_after, oldest = self._kept.popleft()
            self._bytes -= len(oldest[5])
        self._notify()

    def events_after(self, last: int) -> list[SessionEvent] | None:
        """Return the events after an index; None if they must be read from the store."""
        if not self.is_ready or last < self._kept_after:
            return None
        newest_first: list[SessionEvent] = []
        for index, event in reversed(self._kept):
            if index <= last:
                break
            newest_first.append(read_event(self.session_id, event))
        return newest_first[::-1]

    def end(self, error: PersistError | None = None) -> None:
        """End the followers, with an error if there is one."""
        self.ended = True
        self.error = error
        self._notify()

    def _notify(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class _Listener:
    """A task with a connection, and the sessions whose events it waits for."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sessions: dict[str, _FollowedSession] = {}
        self.task: asyncio.Task[None] | None = None
        self.joined = asyncio.Event()

    def stop(self) -> None:
        """Stop the task. A cancellation alone may be swallowed (asyncio.wait_for of Python 3.11)."""
        self.sessions.clear()
        self.joined.set()
        if self.task is not None:
            self.task.cancel()


class Followers:
    """The followers of a driver.

    Args:
        client: the server.
        keys: the driver's keys.
        read_events: reads a page of a session's events from an index on.
        expiring: whether sessions expire, so that one may vanish without a loss.
    """

    def __init__(
        self,
        client: BoundedClient,
        keys: Keys,
        read_events: Callable[[str, int, int], Awaitable[tuple[list[SessionEvent], bool]]],
        *,
        expiring: bool,
    ) -> None:
        self._client = client
        self._keys = keys
        self._read_events = read_events
        self._expiring = expiring
        self._listeners: dict[str, _Listener] = {}

    async def follow(self, session_id: str, after: int) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events after an index, then over those that come."""
        self._client.check_usable(session_id)
        session = self._join(session_id)
        last = after
        try:
            while True:
                changed = session.changed
                if not (session.is_ready or session.ended):
                    # A deletion between a read and the start of the listener would go unnoticed.
                    await changed.wait()
                    continue
                events = session.events_after(last)
                if events is None:
                    events = []
                    if not session.ended:
                        events, _ = await self._read_events(session_id, max(last + 1, 1), _READ_EVENTS)
                for event in events:
                    last = event.event_index
                    yield event
                if events:
                    continue
                if session.error is not None:
                    raise PersistError(str(session.error), session_id=session_id) from session.error
                if session.ended:
                    return
                await changed.wait()
        finally:
            self._leave(session)

    async def close(self) -> None:
        """End all followers."""
        listeners, self._listeners = self._listeners, {}
        tasks = [listener.task for listener in listeners.values() if listener.task is not None]
        for listener in listeners.values():
            for session in listener.sessions.values():
                session.end()
            listener.stop()
        if tasks:
            await asyncio.wait(tasks)

    def _join(self, session_id: str) -> _FollowedSession:
        name = session_id if self._client.is_cluster else ""
        listener = self._listeners.setdefault(name, _Listener(name))
        session = listener.sessions.get(session_id)
        if session is None or session.ended:
            session = _FollowedSession(listener, session_id, self._keys.of_session(session_id))
            listener.sessions[session_id] = session
            listener.joined.set()
        session.followers += 1
        if listener.task is None:
            loop = asyncio.get_running_loop()
            listener.task = loop.create_task(self._run(listener), name="follow Redis")
        return session

    def _leave(self, session: _FollowedSession) -> None:
        session.followers -= 1
        if session.followers:
            return
        listener = session.listener
        if listener.sessions.get(session.session_id) is session:
            del listener.sessions[session.session_id]
            if not listener.sessions:
                self._forget(listener)
                listener.stop()

    async def _run(self, listener: _Listener) -> None:
        """Listen while there are sessions. An outage may last as long as a call may."""
        failing_since: float | None = None
        attempt = 0
        while listener.sessions:
            try:
                async with contextlib.aclosing(self._listen(listener)) as answers:
                    async for _ in answers:
                        failing_since, attempt = None, 0
            except (PersistError, *self._client.failures) as error:
                now = time.monotonic()
                failing_since = failing_since or now
                if now - failing_since > self._client.timeout:
                    cause = error if isinstance(error, PersistError) else self._client.error(error, None)
                    for session in listener.sessions.values():
                        session.end(cause)
                    break
                await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1
        self._forget(listener)

    def _forget(self, listener: _Listener) -> None:
        if self._listeners.get(listener.name) is listener:
            del self._listeners[listener.name]

    async def _listen(self, listener: _Listener) -> AsyncGenerator[None]:
        """Deliver events from one connection; yields after each answer."""
        connection: Any = None
        checked = 0.0
        try:
            while listener.sessions:
                listener.joined.clear()
                all_ready = all(session.is_ready for session in listener.sessions.values())
                if time.monotonic() - checked >= _CHECK_SECONDS or not all_ready:
                    await self._check_sessions(listener)
                    checked = time.monotonic()
                sessions = [one for one in listener.sessions.values() if one.is_ready and not one.ended]
                if not sessions:
                    await listener.joined.wait()
                    continue
                if connection is None:
                    connection = await self._client.connect(sessions[0].keys.events)
                streams = {session.keys.events: session for session in sessions}
                ends = {session.keys.end: session for session in sessions}
                await connection.send_command(
                    *("XREAD", "COUNT", _ANSWER_EVENTS, "BLOCK", _BLOCK_MS, "STREAMS", *streams, *ends),
                    *(f"{session.position}-0" for session in sessions),
                    *(session.end_id for session in sessions),
                )
                answer = await self._read_answer(connection, listener)
                if answer is None:
                    # A session joined, but the server still holds the call, so the connection can't be used.
                    blocked, connection = connection, None
                    await blocked.disconnect(nowait=True)
                    continue
                for key, _ in answer:
                    if key in ends:
                        ends[key].end()
                for key, entries in answer:
                    session = streams.get(key)
                    if session is not None and not session.ended:
                        session.add([_parts_of_entry(entry) for entry in entries])
                yield
        finally:
            if connection is not None:
                await connection.disconnect(nowait=True)

    async def _read_answer(self, connection: Any, listener: _Listener) -> list[tuple[bytes, Any]] | None:
        """Return the entries of each stream; None if a session joined meanwhile."""
        limit = _BLOCK_MS / 1000 + self._client.timeout
        reading = asyncio.ensure_future(connection.read_response(disable_decoding=True, timeout=limit))
        joined = asyncio.ensure_future(listener.joined.wait())
        try:
            await asyncio.wait({reading, joined}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return None
            answer = reading.result()
        finally:
            for task in (reading, joined):
                task.cancel()
            await asyncio.wait({reading, joined})
        if isinstance(answer, Mapping):
            return list(cast("Mapping[bytes, Any]", answer).items())
        return [(key, entries) for key, entries in answer or ()]

    async def _check_sessions(self, listener: _Listener) -> None:
        """Find out where new sessions are, and which sessions are gone or lost."""
        sessions = [session for session in listener.sessions.values() if not session.ended]
        commands: list[Sequence[Argument]] = []
        for session in sessions:
            commands.append(("HMGET", session.keys.meta, "life", "last"))
            commands.append(("XREVRANGE", session.keys.end, "+", "-", "COUNT", 1))
        answers = await self._client.call_all(commands)
        for session, (life, last), ends in zip(sessions, answers[::2], answers[1::2], strict=True):
            if not session.is_ready:
                session.begin(int(last or 0), ends[0][0] if ends else b"0-0", life)
            elif session.life is None:
                session.life = life
            elif life is None and (self._expiring or ends):
                session.end()
            elif life is None or (life == session.life and int(last or 0) < session.position):
                session.end(self._client.loss(session.session_id))
            elif life != session.life:
                session.end()


def _parts_of_entry(entry: Any) -> Sequence[bytes]:
    entry_id, fields = entry
    return (entry_id.partition(b"-")[0], *fields[1::2])
