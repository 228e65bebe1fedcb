"""Following sessions: one connection a driver, on which the server tells what is stored, by whomever."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final, Protocol, cast

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.redis.client import RedisLink, Word
from sandbox_agent.persist.redis.feed import Feed
from sandbox_agent.persist.redis.keys import Keys
from sandbox_agent.persist.redis.rows import to_event
from sandbox_agent.wire.records import SessionEvent

__all__ = ["Followers"]

# How long the server holds a call when nothing comes, in ms; after each it is looked whether the sessions
# are still there, which a stream that has vanished doesn't tell.
_BLOCK_MS: Final = 1_000
_CHECK_SECONDS: Final = 1.0
# Events of one session in one answer.
_COUNT: Final = 256
_READ_EVENTS: Final = 500
# Between attempts to reach a server that is away, in seconds.
_PAUSES: Final = (0.05, 0.1, 0.25, 0.5, 1.0)


class _Reader(Protocol):
    async def __call__(self, session_id: str, start: int, count: int, /) -> list[SessionEvent]: ...


class _Line:
    """A connection, and the sessions that are listened to on it: all, or in a cluster one."""

    def __init__(self) -> None:
        self.feeds: dict[str, Feed] = {}
        self.task: asyncio.Task[None] | None = None
        self.joined = asyncio.Event()

    def stop(self) -> None:
        """End the listening. A cancellation alone may be swallowed (asyncio.wait_for of Python 3.11)."""
        self.feeds.clear()
        self.joined.set()
        if self.task is not None:
            self.task.cancel()


class Followers:
    """The followers of a driver.

    Args:
        link: the server.
        keys: the driver's keys.
        read: reads events from the store.
        expiring: whether a session that has gone has only expired.
    """

    def __init__(self, link: RedisLink, keys: Keys, read: _Reader, *, expiring: bool) -> None:
        self._link = link
        self._keys = keys
        self._read = read
        self._expiring = expiring
        self._lines: dict[str, _Line] = {}

    async def follow(self, session_id: str, after: int) -> AsyncGenerator[SessionEvent]:
        """Iterate over the events behind an index, then those that come."""
        self._link.refuse_unusable(session_id)
        feed = self._join(session_id)
        last = after
        try:
            while True:
                moved = feed.moved
                if not (feed.ready or feed.ended):
                    # What is deleted before the server is listened to would be read and never be ended.
                    await moved.wait()
                    continue
                told = feed.since(last)
                if told is not None:
                    events = [to_event(session_id, entry) for entry in told]
                elif feed.ended:
                    events = []
                else:
                    events = await self._read(session_id, max(last + 1, 1), _READ_EVENTS)
                for event in events:
                    last = event.event_index
                    yield event
                if events:
                    continue
                if feed.error is not None:
                    raise PersistError(str(feed.error), session_id=session_id) from feed.error
                if feed.ended:
                    return
                await moved.wait()
        finally:
            self._leave(feed)

    async def close(self) -> None:
        """End all followers."""
        lines, self._lines = self._lines, {}
        tasks = [line.task for line in lines.values() if line.task is not None]
        for line in lines.values():
            for feed in line.feeds.values():
                feed.end()
            line.stop()
        if tasks:
            await asyncio.wait(tasks)

    def _join(self, session_id: str) -> Feed:
        name = session_id if self._link.is_cluster else ""
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = _Line()
        feed = line.feeds.get(session_id)
        if feed is None or feed.ended:
            feed = line.feeds[session_id] = Feed(session_id, self._keys.of(session_id))
            line.joined.set()
        feed.followers += 1
        if line.task is None:
            line.task = asyncio.get_running_loop().create_task(self._listen(name, line), name="follow Redis")
        return feed

    def _leave(self, feed: Feed) -> None:
        feed.followers -= 1
        if feed.followers:
            return
        for name, line in list(self._lines.items()):
            if line.feeds.get(feed.session_id) is feed:
                del line.feeds[feed.session_id]
                if not line.feeds:
                    self._drop(name, line)

    def _drop(self, name: str, line: _Line) -> None:
        self._lines.pop(name, None)
        line.stop()

    async def _listen(self, name: str, line: _Line) -> None:
        """Listen until nobody follows; an outage is borne for as long as a call may take."""
        away_since: float | None = None
        attempt = 0
        while line.feeds:
            try:
                async with contextlib.aclosing(self._tell(line)) as told:
                    async for _ in told:
                        away_since, attempt = None, 0
            except (PersistError, *self._link.failures) as error:
                now = time.monotonic()
                away_since = away_since or now
                if now - away_since > self._link.timeout:
                    cause = error if isinstance(error, PersistError) else self._link.error(error, None)
                    for feed in line.feeds.values():
                        feed.end(cause)
                    break
                await asyncio.sleep(_PAUSES[min(attempt, len(_PAUSES) - 1)])
                attempt += 1
        if self._lines.get(name) is line:
            del self._lines[name]

    async def _tell(self, line: _Line) -> AsyncGenerator[None]:
        """Listen on one connection; yields after each answer."""
        connection: Any = None
        checked = 0.0
        try:
            while line.feeds:
                line.joined.clear()
                if time.monotonic() - checked >= _CHECK_SECONDS or any(
                    not feed.ready for feed in line.feeds.values()
                ):
                    await self._check(line)
                    checked = time.monotonic()
                feeds = [feed for feed in line.feeds.values() if feed.ready and not feed.ended]
                if not feeds:
                    await line.joined.wait()
                    continue
                if connection is None:
                    connection = await self._link.connection(feeds[0].keys.events)
                streams = {feed.keys.events: feed for feed in feeds}
                ends = {feed.keys.end: feed for feed in feeds}
                await connection.send_command(
                    *("XREAD", "COUNT", _COUNT, "BLOCK", _BLOCK_MS, "STREAMS", *streams, *ends),
                    *(f"{feed.position}-0" for feed in feeds),
                    *(feed.end_id for feed in feeds),
                )
                answer = await self._answer(connection, line)
                if answer is None:
                    # Somebody joined; the server still holds the call, so this connection is spent.
                    spent, connection = connection, None
                    await spent.disconnect(nowait=True)
                    continue
                for key, _ in answer:
                    if key in ends:
                        ends[key].end()
                for key, entries in answer:
                    feed = streams.get(key)
                    if feed is not None and not feed.ended:
                        feed.push([_parts(entry) for entry in entries])
                yield
        finally:
            if connection is not None:
                await connection.disconnect(nowait=True)

    async def _answer(self, connection: Any, line: _Line) -> list[tuple[bytes, Any]] | None:
        """Return what came, for each stream; None when a session joined meanwhile."""
        limit = _BLOCK_MS / 1000 + self._link.timeout
        reading = asyncio.ensure_future(connection.read_response(disable_decoding=True, timeout=limit))
        joined = asyncio.ensure_future(line.joined.wait())
        try:
            await asyncio.wait({reading, joined}, return_when=asyncio.FIRST_COMPLETED)
            if not reading.done():
                return None
            answer = reading.result()
        finally:
            for one in (reading, joined):
                one.cancel()
            await asyncio.wait({reading, joined})
        if not answer:
            return []
        if isinstance(answer, Mapping):
            return list(cast("Mapping[bytes, Any]", answer).items())
        return [(key, entries) for key, entries in answer]

    async def _check(self, line: _Line) -> None:
        """See where the sessions stand: new ones, those that are gone, those that were lost."""
        feeds = [feed for feed in line.feeds.values() if not feed.ended]
        commands: list[Sequence[Word]] = []
        for feed in feeds:
            commands.append(("HMGET", feed.keys.meta, "life", "last"))
            commands.append(("XREVRANGE", feed.keys.end, "+", "-", "COUNT", 1))
        answers = await self._link.many(commands)
        for feed, (life, last), ends in zip(feeds, answers[::2], answers[1::2], strict=True):
            if not feed.ready:
                feed.begin(int(last or 0), ends[0][0] if ends else b"0-0", life)
            elif feed.life is None:
                feed.life = life
            elif life is None and (self._expiring or ends):
                feed.end()
            elif life is None or (life == feed.life and int(last or 0) < feed.position):
                feed.end(self._link.lost(feed.session_id))
            elif life != feed.life:
                feed.end()


def _parts(entry: Any) -> Sequence[bytes]:
    entry_id, fields = entry
    index = entry_id.partition(b"-")[0]
    return (index, *fields[1::2])
