"""What the proxy has refused: sent to its subscribers, and written to the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Generator
from contextlib import contextmanager

import msgspec

logger: logging.Logger = logging.getLogger("sandbox_agent.egress")

# Where a client of the proxy reads the refusals, one JSON object per line.
PATH = "/refusals"
MAX_SUBSCRIBERS = 16
# A subscriber that does not read misses the newest.
MAX_WAITING = 1_000
# A program in the sandbox can ask for hosts without end: each is logged once, and so many of them.
MAX_LOGGED = 200


class Refusal(msgspec.Struct, frozen=True):
    """A connection that the proxy has refused.

    Attributes:
        user: The user in the client's URL of the proxy, or an empty string.
        host: The host that was asked for.
        port: Its port.
        message: Why it is refused, and what to change.
    """

    user: str
    host: str
    port: int
    message: str


class Refusals:
    """Passes refusals on to all subscribers."""

    def __init__(self) -> None:
        self._subscribers: set[asyncio.Queue[Refusal]] = set()
        self._logged: set[tuple[str, int]] = set()
        self._changed = asyncio.Event()

    def report(self, refusal: Refusal) -> None:
        """Pass on a refusal."""
        for queue in self._subscribers:
            if queue.qsize() < MAX_WAITING:
                queue.put_nowait(refusal)
        target = (refusal.host, refusal.port)
        if target not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add(target)
            logger.info("%s", refusal.message)
            if len(self._logged) == MAX_LOGGED:
                logger.warning("%d hosts were refused: others are not logged", MAX_LOGGED)

    @property
    def is_full(self) -> bool:
        """Whether there are as many subscribers as possible."""
        return len(self._subscribers) >= MAX_SUBSCRIBERS

    async def wait_alone(self, seconds: float) -> None:
        """Wait until there has been no subscriber for so many seconds."""
        while True:
            self._changed.clear()
            try:
                async with asyncio.timeout(None if self._subscribers else seconds):
                    await self._changed.wait()
            except TimeoutError:
                return

    @contextmanager
    def subscribe(self) -> Generator[asyncio.Queue[Refusal]]:
        """Yield a queue that gets the refusals while the context lasts."""
        queue: asyncio.Queue[Refusal] = asyncio.Queue()
        self._subscribers.add(queue)
        self._changed.set()
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)
            self._changed.set()
