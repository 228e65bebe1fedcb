"""The creations of sessions by their Idempotency-Key: which session each has made, and which are running."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from weakref import WeakValueDictionary

import anyio

from sandbox_agent.errors import ConflictError
from sandbox_agent.persist.store import SessionRow, SessionStore
from sandbox_agent.server.sessions.settings import creation_key

# How long a key is remembered, and a page of the sessions of that time.
KEY_MS = 24 * 60 * 60 * 1000
KEY_PAGE = 1000
# How many withdrawn keys are remembered: a creation may arrive after its withdrawal.
MAX_WITHDRAWN = 1024


class Creations:
    """The keys of the last day. Only this server creates sessions in its store, so it knows them all."""

    def __init__(self, store: SessionStore) -> None:
        self._store = store
        # The session's id and its creation time, by key, oldest first; None until the store was read.
        self._made: OrderedDict[str, tuple[str, int]] | None = None
        self._running: dict[str, anyio.CancelScope] = {}
        self._withdrawn: OrderedDict[str, None] = OrderedDict()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._reading = asyncio.Lock()

    def lock(self, key: str) -> asyncio.Lock:
        """Return the lock that is held while a session is created, or withdrawn, with that key."""
        return self._locks.setdefault(key, asyncio.Lock())

    async def find(self, key: str) -> SessionRow | None:
        """Return the session that was created with that key in the last day.

        Raises:
            PersistError: the store failed.
        """
        made = await self._read()
        self._forget_old(made)
        found = made.get(key)
        if found is None:
            return None
        row = await self._store.session(found[0])
        return row if row is not None and creation_key(row) == key else None

    async def add(self, key: str, session_id: str) -> None:
        """Remember the session that was created with a key, now."""
        made = await self._read()
        made[key] = session_id, _now_ms()

    @contextmanager
    def running(self, key: str) -> Generator[None]:
        """Create a session within the context.

        Raises:
            ConflictError: the creation was withdrawn, before or meanwhile.
        """
        with anyio.CancelScope() as scope:
            if key in self._withdrawn:
                scope.cancel()
            self._running[key] = scope
            try:
                yield
            finally:
                del self._running[key]
        if scope.cancelled_caught:
            raise ConflictError("conflict: the client has withdrawn this creation")

    def withdraw(self, key: str) -> None:
        """Cancel the creation with that key, now or when it arrives."""
        self._withdrawn[key] = None
        if len(self._withdrawn) > MAX_WITHDRAWN:
            self._withdrawn.popitem(last=False)
        if key in self._running:
            self._running[key].cancel()

    async def _read(self) -> OrderedDict[str, tuple[str, int]]:
        async with self._reading:
            if self._made is None:
                self._made = OrderedDict([(key, found) async for key, found in self._stored()][::-1])
            return self._made

    async def _stored(self) -> AsyncGenerator[tuple[str, tuple[str, int]]]:
        oldest, cursor = _now_ms() - KEY_MS, None
        while True:
            rows, cursor = await self._store.sessions(limit=KEY_PAGE, cursor=cursor)
            for row in rows:
                if row.created_at < oldest:
                    return
                if (key := creation_key(row)) is not None:
                    yield key, (row.session_id, row.created_at)
            if cursor is None:
                return

    def _forget_old(self, made: OrderedDict[str, tuple[str, int]]) -> None:
        oldest = _now_ms() - KEY_MS
        while made and next(iter(made.values()))[1] < oldest:
            made.popitem(last=False)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
