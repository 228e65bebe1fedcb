"""Event loops: a connection belongs to the loop that made it; a busy loop gives way to its threads."""

from __future__ import annotations

import asyncio
import select
import sys
import time
from typing import Any, Final
from weakref import WeakKeyDictionary

from sandbox_agent.errors import PersistError
from sandbox_agent.event_loop import running_loop

# How often a loop that waits for a thread steps aside, and for how long, in seconds. The nap only has to
# outlast the waking of a thread; together they cost a busy loop a few percent while it waits.
_INTERVAL: Final = 0.002
_NAP: Final = 0.000_05


class OneLoop:
    """The event loop of the first call, in which all the others have to be made."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def enter(self, target: str) -> None:
        """Remember the running loop, if no call was made yet.

        Args:
            target: where the store is, for the message.

        Raises:
            PersistError: another one was.
        """
        if self._loop is None:
            self._loop = running_loop()
        elif self.is_another:
            raise PersistError(
                f"the connections to the store at {target} belong to another event loop, nothing was done: "
                "make a driver in each loop (in each asyncio.run), or use sandbox_agent.sync"
            )

    @property
    def is_another(self) -> bool:
        """Whether the first call was made in another loop than the running one."""
        return self._loop is not None and self._loop is not running_loop()


# Each loop's futures that are waited for; a loop is in it while it steps aside.
_waiting: WeakKeyDictionary[asyncio.AbstractEventLoop, set[asyncio.Future[Any]]] = WeakKeyDictionary()


def give_way_until_done(future: asyncio.Future[Any]) -> None:
    """Let other threads run for a moment every 2 ms until ``future`` is done.

    A loop that always has something to do releases the interpreter's lock only inside select(), and acquires
    it again before a waiting thread wakes up. The thread would get its turn when the loop falls idle:
    measured, an append of 2 ms took 3 s. Call it from the future's own loop.

    The benchmark row "append one event at a time, 64 sessions" needs it.
    """
    loop = future.get_loop()
    futures = _waiting.get(loop)
    if futures is None:
        futures = _waiting[loop] = set()
        loop.call_later(_INTERVAL, _give_way, loop)
    futures.add(future)
    future.add_done_callback(futures.discard)


def _give_way(loop: asyncio.AbstractEventLoop) -> None:
    if _waiting[loop]:
        _nap()
        loop.call_later(_INTERVAL, _give_way, loop)
    else:
        del _waiting[loop]


def _nap() -> None:
    # On purpose, and far below what a loop notices. Tools that look for accidental blocking report
    # time.sleep(), so it is used only where select() can't wait for nothing.
    if sys.platform == "win32":
        time.sleep(_NAP)
    else:
        select.select((), (), (), _NAP)
