"""Appends: those of one tick go to the server together, and a history that the server has lost is noticed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from sandbox_agent.persist.base import own_error
from sandbox_agent.persist.redis.client import Argument, BoundedClient
from sandbox_agent.persist.redis.rows import SessionKeys
from sandbox_agent.persist.redis.scripts import APPEND

# A script blocks the server, so one has at most so many events and bytes, or one append.
_MAX_EVENTS: Final = 2_048
_MAX_BYTES: Final = 4 * 1024 * 1024
# While the server runs one script, the client prepares the next. A cluster needs a script per session.
_MAX_SCRIPTS: Final = 2
_MAX_CLUSTER_SCRIPTS: Final = 32
# An append writes these first keys of a session. With a ttl it also touches the others.
_WRITTEN_KEYS: Final = 3
# Only the sessions written last are remembered.
_MAX_SESSIONS: Final = 10_000


class _Append(NamedTuple):
    session_id: str
    keys: SessionKeys
    words: Sequence[Argument]
    events: int
    size: int
    answer: asyncio.Future[Sequence[bytes]]


class Appender:
    """Collects appends and sends them, a few scripts at a time."""

    def __init__(self, client: BoundedClient, ttl_ms: int) -> None:
        self._client = client
        self._ttl_ms = ttl_ms
        self._max_scripts = _MAX_CLUSTER_SCRIPTS if client.is_cluster else _MAX_SCRIPTS
        self._queue: list[_Append] = []
        self._scheduled = False
        self._sending: set[asyncio.Task[None]] = set()

    async def append(
        self,
        session_id: str,
        keys: SessionKeys,
        words: Sequence[Argument],
        *,
        events: int,
        size: int,
    ) -> Sequence[bytes]:
        """Return the script's answer for one append.

        Args:
            session_id: the session.
            keys: its keys.
            words: the script's arguments.
            events: how many events it has.
            size: of their payloads, in bytes.
        """
        self._client.check_usable(session_id)
        loop = asyncio.get_running_loop()
        append = _Append(session_id, keys, words, events, size, loop.create_future())
        self._queue.append(append)
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._send_queue)
        return await append.answer

    async def close(self) -> None:
        """Wait until everything that was accepted has been sent and answered."""
        while self._queue or self._sending:
            if self._sending:
                await asyncio.wait(self._sending)
            else:
                await asyncio.sleep(0)

    def _send_queue(self) -> None:
        self._scheduled = False
        while self._queue and len(self._sending) < self._max_scripts:
            batch = self._next_batch()
            task = asyncio.get_running_loop().create_task(self._send(batch), name="append to Redis")
            self._sending.add(task)
            task.add_done_callback(self._on_sent)

    def _on_sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._send_queue()

    def _next_batch(self) -> list[_Append]:
        if self._client.is_cluster:
            return [self._queue.pop(0)]
        events = size = count = 0
        for append in self._queue:
            events += append.events
            size += append.size
            if count and (events > _MAX_EVENTS or size > _MAX_BYTES):
                break
            count += 1
        batch, self._queue = self._queue[:count], self._queue[count:]
        return batch

    async def _send(self, batch: list[_Append]) -> None:
        width = len(batch[0].keys.data) if self._ttl_ms else _WRITTEN_KEYS
        keys: list[Argument] = []
        words: list[Argument] = [self._ttl_ms, width]
        for append in batch:
            keys += append.keys.data[:width]
            words += append.words
        try:
            answers: list[Sequence[bytes]] = await self._client.run(APPEND, keys, words, write=True)
        except asyncio.CancelledError:
            # The event loop ends. The callers must not wait for an answer that will not come.
            for append in batch:
                append.answer.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - the callers raise it
            for append in batch:
                if not append.answer.done():
                    append.answer.set_exception(own_error(error, append.session_id))
        else:
            for append, answer in zip(batch, answers, strict=True):
                if not append.answer.done():
                    append.answer.set_result(answer)


class History(NamedTuple):
    """The life of a session's history (when it began, by the server's clock), and its last index."""

    life: bytes
    last: int


_UNKNOWN: Final = History(b"", 0)


class KnownHistories:
    """The histories that this process has written.

    If a history is shorter than before, or gone, the server has lost it: it was flushed, or failed over to a
    server without it. A history with another life was deleted and begun again, which is no loss.

    Args:
        ttl: after how many seconds without a write a session expires; 0: never.
    """

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._known: dict[str, tuple[History, float]] = {}

    def get(self, session_id: str) -> History:
        """Return what is known of a session."""
        known, touched = self._known.get(session_id, (_UNKNOWN, 0.0))
        if self._ttl and known.life and time.monotonic() - touched >= self._ttl:
            del self._known[session_id]
            return _UNKNOWN
        return known

    def note_write(self, session_id: str, life: bytes, last: int) -> None:
        """Remember an acknowledged write."""
        old = self._known.pop(session_id, None)
        if old is not None and old[0].life == life:
            last = max(last, old[0].last)
        elif len(self._known) >= _MAX_SESSIONS:
            del self._known[next(iter(self._known))]
        self._known[session_id] = (History(life, last), time.monotonic())

    def replace(self, session_id: str, life: bytes, last: int) -> None:
        """Accept the server's history: the session was claimed, or an event moved."""
        self._known.pop(session_id, None)
        self.note_write(session_id, life, last)

    def forget(self, session_id: str) -> None:
        """Remove what is known of a session."""
        self._known.pop(session_id, None)
