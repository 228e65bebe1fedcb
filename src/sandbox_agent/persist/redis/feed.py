"""One followed session: what came last, and where its followers wait for more."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.redis.keys import SessionKeys

__all__ = ["Feed"]

# Kept for followers that are a little behind; those further behind read the store.
_KEPT_EVENTS: Final = 1_000
_KEPT_BYTES: Final = 4 * 1024 * 1024


class Feed:
    """The newest events of a session, as the server told them.

    Attributes:
        session_id: which session.
        keys: its keys.
        followers: how many there are.
        ready: whether the server is being listened to for it.
        position: the highest index that was told.
        end_id: the last deletion that was known.
        life: the history's life, None before it has begun.
        ended: whether the session was deleted, or the driver closed.
        error: why it can't go on.
        moved: set, and replaced, when anything of this changes.
    """

    def __init__(self, session_id: str, keys: SessionKeys) -> None:
        self.session_id: str = session_id
        self.keys: SessionKeys = keys
        self.followers: int = 0
        self.ready: bool = False
        self.position: int = 0
        self.end_id: bytes | str = b"0-0"
        self.life: bytes | None = None
        self.ended: bool = False
        self.error: PersistError | None = None
        self.moved: asyncio.Event = asyncio.Event()
        self._kept: deque[tuple[int, Sequence[bytes]]] = deque()
        self._bytes = 0
        # What is kept is everything behind this index.
        self._since = 0

    def begin(self, position: int, end_id: bytes | str, life: bytes | None) -> None:
        """Take where the session stands; what comes behind that is told."""
        self.position = self._since = position
        self.end_id, self.life, self.ready = end_id, life, True
        self.wake()

    def push(self, entries: Sequence[Sequence[bytes]]) -> None:
        """Take events as index, id, created_at, connection_id, sender, payload."""
        for entry in entries:
            index = int(entry[0])
            if index != self.position + 1:
                # What lies between was inserted or replaced, and is not in the stream: the store has it.
                self._kept.clear()
                self._bytes, self._since = 0, index
            else:
                self._kept.append((index, entry))
                self._bytes += len(entry[5])
            self.position = index
        while len(self._kept) > _KEPT_EVENTS or (self._bytes > _KEPT_BYTES and len(self._kept) > 1):
            self._since, oldest = self._kept.popleft()
            self._bytes -= len(oldest[5])
        self.wake()

    def since(self, last: int) -> list[Sequence[bytes]] | None:
        """Return the events behind an index; None where they have to be read from the store."""
        if not self.ready or last < self._since:
            return None
        newest_first: list[Sequence[bytes]] = []
        for index, entry in reversed(self._kept):
            if index <= last:
                break
            newest_first.append(entry)
        return newest_first[::-1]

    def end(self, error: PersistError | None = None) -> None:
        """Tell the followers that nothing comes any more, or why it can't."""
        self.ended = True
        self.error = error
        self.wake()

    def wake(self) -> None:
        """Let the followers look again."""
        moved, self.moved = self.moved, asyncio.Event()
        moved.set()
