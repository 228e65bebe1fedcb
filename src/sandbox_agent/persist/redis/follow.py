"""Follow sessions: a connection per driver, in a cluster one per session, waits for events (XREAD BLOCK)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple, cast

from sandbox_agent.persist.follow import ChangeHint, Following, Mark
from sandbox_agent.persist.redis.client import BoundedClient
from sandbox_agent.persist.redis.rows import Keys, read_event
from sandbox_agent.wire.records import SessionEvent

# How long the server holds a call when nothing comes, in ms. The sessions are checked between the calls,
# because a stream that vanishes sends no notification.
_BLOCK_MS: Final = 1_000
_CHECK_SECONDS: Final = 1.0
# Events of one session per answer.
_ANSWER_EVENTS: Final = 256


class Life(NamedTuple):
    """A session's life, None before it begins; and the id of its last known deletion."""

    life: bytes | None
    end_id: bytes


class _Call(NamedTuple):
    """A call that the server holds: the sessions that it waits for, by the keys of their streams."""

    sent: Mapping[str, Mark]
    events: Mapping[bytes, str]
    ends: Mapping[bytes, str]
    answer: asyncio.Task[Any]


class StreamHint(ChangeHint):
    """Implements ``follow.ChangeHint``: the server delivers the events themselves, and deletions.

    Args:
        client: the server.
        keys: the driver's keys.
        following: delivers events.
        wakeup: the hub's event.
        expiring: whether sessions expire, so that one may vanish without a loss.
    """

    def __init__(
        self,
        client: BoundedClient,
        keys: Keys,
        following: Following,
        wakeup: asyncio.Event,
        *,
        expiring: bool,
    ) -> None:
        self._client = client
        self._keys = keys
        self._following = following
        self._expiring = expiring
        self._wakeup = wakeup
        # By session in a cluster, else one.
        self._connections: dict[str, Any] = {}
        self._calls: dict[str, _Call] = {}
        self._reached = self._checked = time.monotonic()

    @property
    def survives_outages(self) -> bool:
        """An outage may last as long as a call may."""
        return time.monotonic() - self._reached <= _BLOCK_MS / 1000 + self._client.timeout

    def joined(self) -> None:
        self._wakeup.set()

    async def wait(self, followed: Callable[[], Mapping[str, Mark]], /) -> None:
        marks = followed()
        groups = {one: {one: mark} for one, mark in marks.items()} if self._client.is_cluster else {"": marks}
        woken = asyncio.ensure_future(self._wakeup.wait())
        try:
            await self._begin_calls(groups)
            answers = [call.answer for call in self._calls.values()]
            await asyncio.wait({woken, *answers}, return_when=asyncio.FIRST_COMPLETED)
            self._wakeup.clear()
            for name, call in list(self._calls.items()):
                if call.answer.done():
                    del self._calls[name]
                    self._deliver(call, followed())
        except self._client.failures as error:
            await self.close()
            raise self._client.error(error, None) from error
        finally:
            woken.cancel()

    def changed(self, session_ids: Collection[str], /) -> Collection[str]:
        if time.monotonic() - self._checked < _CHECK_SECONDS:
            return ()
        return session_ids

    def checked(self, found: bool, /) -> None:
        self._checked = time.monotonic()

    def has_ended(self, session_id: str, before: Mark, now: Mark, /) -> bool:
        old, new = cast("Life", before.deletions), cast("Life", now.deletions)
        if new.end_id != old.end_id:
            return True
        if old.life is None:
            return False
        if new.life is None and self._expiring:
            return True
        if new.life is None or (new.life == old.life and now.last_index < before.last_index):
            raise self._client.loss(session_id)
        return new.life != old.life

    async def close(self) -> None:
        for name in list(self._connections):
            await self._disconnect(name)

    async def _begin_calls(self, groups: Mapping[str, Mapping[str, Mark]]) -> None:
        for name in self._connections.keys() - groups.keys():
            await self._disconnect(name)
        for name, marks in groups.items():
            call = self._calls.get(name)
            if call is not None:
                if all(
                    one in call.sent and mark.last_index >= call.sent[one].last_index
                    for one, mark in marks.items()
                ):
                    continue
                # The server still holds the call, so the connection can't be used for another.
                await self._disconnect(name)
            if marks:
                self._calls[name] = await self._begin_call(name, marks)

    async def _begin_call(self, name: str, marks: Mapping[str, Mark]) -> _Call:
        keys = {one: self._keys.of_session(one) for one in marks}
        connection = self._connections.get(name)
        if connection is None:
            connection = await self._client.connect(next(iter(keys.values())).events)
            self._connections[name] = connection
        events = {of.events: one for one, of in keys.items()}
        ends = {of.end: one for one, of in keys.items()}
        await connection.send_command(
            *("XREAD", "COUNT", _ANSWER_EVENTS, "BLOCK", _BLOCK_MS, "STREAMS", *events, *ends),
            *(f"{max(mark.last_index, 0)}-0" for mark in marks.values()),
            *(cast("Life", mark.deletions).end_id for mark in marks.values()),
        )
        limit = _BLOCK_MS / 1000 + self._client.timeout
        reading = connection.read_response(disable_decoding=True, timeout=limit)
        return _Call(marks, events, ends, asyncio.ensure_future(reading))

    def _deliver(self, call: _Call, followed: Mapping[str, Mark]) -> None:
        answer: Any = call.answer.result() or {}
        self._reached = time.monotonic()
        streams = cast("dict[bytes, Any]", dict(answer))
        for key, session_id in call.ends.items():
            mark = followed.get(session_id)
            # A deletion that the mark knows was that of an earlier session of the same id.
            if key in streams and mark and streams[key][-1][0] != cast("Life", mark.deletions).end_id:
                self._following.deleted(session_id)
        for key, session_id in call.events.items():
            events = [_event(session_id, *entry) for entry in streams.get(key, ())]
            if events and events[-1].event_index - events[0].event_index >= len(events):
                # Events between them may be in the store and not in the stream: each is pushed by itself.
                for event in events:
                    self._following.stored(session_id, [event])
            else:
                self._following.stored(session_id, events)

    async def _disconnect(self, name: str) -> None:
        connection, call = self._connections.pop(name), self._calls.pop(name, None)
        if call is not None:
            call.answer.cancel()
            await asyncio.wait({call.answer})
            # One that failed is marked as retrieved.
            _ = call.answer.cancelled() or call.answer.exception()
        await connection.disconnect(nowait=True)


def _event(session_id: str, entry_id: bytes, fields: Sequence[bytes]) -> SessionEvent:
    return read_event(session_id, (entry_id.partition(b"-")[0], *fields[1::2]))
