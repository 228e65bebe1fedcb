"""Appends on their way: those of one tick, of whatever sessions, go to the server together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, TypeAlias

from sandbox_agent.errors import PersistError, SandboxAgentError
from sandbox_agent.persist.redis.client import RedisLink, Word
from sandbox_agent.persist.redis.keys import SessionKeys
from sandbox_agent.persist.redis.scripts import APPEND

__all__ = ["Answer", "Appends"]

Answer: TypeAlias = "Sequence[bytes]"

# The server does nothing else while a script runs: one takes up to this much, or one append.
_MAX_EVENTS: Final = 2_048
_MAX_BYTES: Final = 4 * 1024 * 1024
# While one script runs in the server, the next is made; a cluster runs one a session.
_AT_ONCE: Final = 2
_AT_ONCE_IN_CLUSTER: Final = 32
# Without a TTL the append touches these first keys of a session, with one all that expire.
_TOUCHED: Final = 3


class _Append:
    __slots__ = ("bytes", "count", "future", "keys", "session_id", "words")

    def __init__(
        self, session_id: str, keys: SessionKeys, words: Sequence[Word], count: int, size: int
    ) -> None:
        self.session_id = session_id
        self.keys = keys
        self.words = words
        self.count = count
        self.bytes = size
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()


class Appends:
    """Collects what is appended and sends it, a few scripts at a time."""

    def __init__(self, link: RedisLink, ttl_ms: int) -> None:
        self._link = link
        self._ttl_ms = ttl_ms
        self._at_once = _AT_ONCE_IN_CLUSTER if link.is_cluster else _AT_ONCE
        self._waiting: list[_Append] = []
        self._scheduled = False
        self._sending: set[asyncio.Task[None]] = set()

    async def append(
        self, session_id: str, keys: SessionKeys, words: Sequence[Word], *, count: int, size: int
    ) -> Answer:
        """Return the script's answer for one append.

        Raises:
            PersistError: the server could not be reached or refused.
        """
        self._link.refuse_unusable(session_id)
        mine = _Append(session_id, keys, words, count, size)
        self._waiting.append(mine)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._send_waiting)
        return await mine.future

    async def close(self) -> None:
        """Return when everything that was accepted has been sent and answered."""
        while self._waiting or self._sending:
            if self._sending:
                await asyncio.wait(self._sending)
            else:
                await asyncio.sleep(0)

    def _send_waiting(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._sending) < self._at_once:
            task = asyncio.get_running_loop().create_task(self._send(self._take()), name="append to Redis")
            self._sending.add(task)
            task.add_done_callback(self._sent)

    def _sent(self, task: asyncio.Task[None]) -> None:
        self._sending.discard(task)
        self._send_waiting()

    def _take(self) -> list[_Append]:
        if self._link.is_cluster:
            return [self._waiting.pop(0)]
        events = size = taken = 0
        for one in self._waiting:
            events += one.count
            size += one.bytes
            if taken and (events > _MAX_EVENTS or size > _MAX_BYTES):
                break
            taken += 1
        batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
        return batch

    async def _send(self, batch: list[_Append]) -> None:
        width = len(batch[0].keys.data) if self._ttl_ms else _TOUCHED
        keys: list[Word] = []
        words: list[Word] = [self._ttl_ms, width]
        for one in batch:
            keys += one.keys.data[:width]
            words += one.words
        try:
            answers: list[Answer] = await self._link.run(APPEND, keys, words, write=True)
        except asyncio.CancelledError:
            # The loop ends: nobody is told what became of it, and whoever asks is not left waiting.
            for one in batch:
                one.future.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - the callers raise it
            for one in batch:
                if not one.future.done():
                    one.future.set_exception(_of_session(error, one.session_id))
        else:
            for one, answer in zip(batch, answers, strict=True):
                if not one.future.done():
                    one.future.set_result(answer)


def _of_session(error: Exception, session_id: str) -> Exception:
    # One object for several callers would gather all of their tracebacks.
    if not isinstance(error, SandboxAgentError):
        return error
    own = PersistError(str(error), session_id=session_id)
    own.__cause__ = error.__cause__
    return own
