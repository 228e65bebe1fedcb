"""Retention: erases what is too old or too much, but not because a clock has jumped ahead."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store import SessionStore
from sandbox_agent.server.recorder.recorder import Recorder

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How often old events are erased; at the start, too.
RETAIN_SECONDS = 60.0
SESSIONS_PAGE = 1000
_DAY_MS = 24 * 60 * 60 * 1000
# A jump is believed once the clock has kept to it for so long, by the monotonic clock.
CONFIRM_SECONDS = 3600.0
# Meanwhile clocks may drift apart by so much.
DRIFT_MS = 60_000


class TrustedClock:
    """A clock that may jump ahead by less than a tolerance; larger jumps have to be confirmed.

    Args:
        newest_ms: the time of the newest event, in Unix milliseconds; None if there is none.
        tolerance_ms: the largest jump that is believed at once.
        wall_ms: the wall clock, in Unix milliseconds.
        monotonic: the monotonic clock, in seconds.
    """

    def __init__(
        self,
        newest_ms: int | None,
        tolerance_ms: int,
        *,
        wall_ms: Callable[[], int],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall_ms = wall_ms
        self._monotonic = monotonic
        self._tolerance_ms = tolerance_ms
        # Where the wall clock was, by the monotonic clock, when it was believed last.
        self._offset_ms = (wall_ms() if newest_ms is None else newest_ms) - self._elapsed_ms()
        self._jumped: tuple[int, float] | None = None

    def _elapsed_ms(self) -> int:
        return round(self._monotonic() * 1000)

    def read_ms(self) -> int | None:
        """Return the wall clock's time; None while it is ahead of what is believed."""
        offset_ms = self._wall_ms() - self._elapsed_ms()
        if offset_ms - self._offset_ms > self._tolerance_ms and not self._is_confirmed(offset_ms):
            return None
        self._offset_ms, self._jumped = offset_ms, None
        return self._wall_ms()

    def _is_confirmed(self, offset_ms: int) -> bool:
        if self._jumped is None or abs(offset_ms - self._jumped[0]) > DRIFT_MS:
            self._jumped = offset_ms, self._monotonic()
        return self._monotonic() - self._jumped[1] >= CONFIRM_SECONDS


@asynccontextmanager
async def retain(
    recorder: Recorder, store: SessionStore, *, days: float, max_bytes: int
) -> AsyncGenerator[None]:
    """Erase what is older or more than that while the context lasts; 0 stands for no limit.

    A clock that is ahead of the newest event by more than ``days`` may be wrong. Then nothing is erased by
    age until it has stayed so for CONFIRM_SECONDS.
    """
    async with anyio.create_task_group() as tasks:
        if days or max_bytes:
            tasks.start_soon(_erase_old, recorder, store, days, max_bytes)
        yield
        tasks.cancel_scope.cancel()


async def _erase_old(recorder: Recorder, store: SessionStore, days: float, max_bytes: int) -> None:
    clock: TrustedClock | None = None
    was_believed = True
    while True:
        try:
            if clock is None:
                clock = TrustedClock(await _newest_ms(store), round(days * _DAY_MS), wall_ms=_now_ms)
            now_ms = clock.read_ms() if days else None
            if days and now_ms is None and was_believed:
                logger.warning(
                    "the clock is ahead of the newest event by more than the %g days of retention: nothing "
                    "is erased by age until it has stayed so for %g minutes",
                    days,
                    CONFIRM_SECONDS / 60,
                )
            was_believed = now_ms is not None or not days
            before = None if now_ms is None else now_ms - round(days * _DAY_MS)
            expired = await recorder.expire(before=before, max_bytes=max_bytes or None)
        except PersistError as error:
            logger.warning("old events could not be erased, the next attempt is in a minute (%s)", error)
        else:
            if expired:
                logger.info("erased the oldest events of %d sessions", len(expired))
        await anyio.sleep(RETAIN_SECONDS)


async def _newest_ms(store: SessionStore) -> int | None:
    """Return when something was stored last; None for an empty store."""
    newest: int | None = None
    cursor: str | None = None
    while True:
        rows, cursor = await store.sessions(limit=SESSIONS_PAGE, cursor=cursor)
        for row in rows:
            newest = max(newest or 0, row.updated_at)
        if cursor is None:
            return newest


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
