"""Tracks which clients use a connection or a session, so that what is idle can be ended."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Generator, Iterable
from contextlib import contextmanager
from typing import TypeVar

import anyio

from sandbox_agent.engine.correlate import UNNAMED

T = TypeVar("T")

# So many clients are remembered; of the others, those that left first are forgotten.
MAX_CLIENTS = 64


class Usage:
    """The open streams and the POSTs in flight of one connection or session.

    Attributes:
        streams: the number of open streams of each client that has used it; UNNAMED stands for all clients
            without a name.
    """

    __slots__ = ("_since", "_uses", "streams")

    def __init__(self) -> None:
        self.streams: dict[str, int] = {}
        self._uses = 0
        self._since = time.monotonic()

    @property
    def idle_seconds(self) -> float | None:
        """How long no client has used it; None while one does."""
        return None if self._uses else time.monotonic() - self._since

    def has_others(self, client: str) -> bool:
        """Return whether another client has an open stream."""
        return any(count for name, count in self.streams.items() if name != client)

    def begin(self, client: str, *, streams: int = 0) -> Callable[[], None]:
        """Count a use by a client; return a function that ends it, which may be called twice."""
        ended = False

        def end() -> None:
            nonlocal ended
            if not ended:
                ended = True
                self._uses -= 1
                self._since = time.monotonic()
                if streams:
                    self.streams[client] -= streams

        self._uses += 1
        self.streams[client] = self.streams.pop(client, 0) + streams
        if len(self.streams) > MAX_CLIENTS:
            left = (name for name, count in self.streams.items() if not count and name != UNNAMED)
            if (longest := next(left, None)) is not None:
                del self.streams[longest]
        return end

    @contextmanager
    def used(self, client: str, *, streams: int = 0) -> Generator[Callable[[], None]]:
        """Count a use while the context lasts; its value ends the use early."""
        end = self.begin(client, streams=streams)
        try:
            yield end
        finally:
            end()


async def overdue(
    timeout: float, idle_times: Callable[[], Iterable[tuple[T, float | None]]]
) -> AsyncGenerator[T]:
    """Yield each thing once it has been idle for the timeout; the consumer ends it without delay.

    Args:
        timeout: in seconds; 0 yields nothing.
        idle_times: returns all things with their idle seconds, None for one that is in use.
    """
    while timeout:
        # What is in use now, or new later, is not overdue before the timeout has passed.
        wait = timeout
        for each, idle in list(idle_times()):
            if idle is not None and idle >= timeout:
                yield each
            elif idle is not None:
                wait = min(wait, timeout - idle)
        await anyio.sleep(wait)
