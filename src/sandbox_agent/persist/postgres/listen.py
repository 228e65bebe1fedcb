"""One connection that listens for notifications, made anew when it is lost."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.library import Connection
from sandbox_agent.persist.postgres.link import CONNECT_SECONDS, PostgresLink

__all__ = ["Listener"]

# A notification that the listener sends itself is there by then, or never comes: a transaction-pooling
# pgbouncer takes LISTEN and delivers nothing.
_ECHO_SECONDS: Final = 2.0
_POOLED_ECHO_SECONDS: Final = 0.3
# A silent connection is asked whether it is alive; one that never says so is given up.
_CHECK_EVERY: Final = 30.0
_CHECK_SECONDS: Final = 5.0
# Where nothing is heard, it is tried again after that time.
_TRY_AGAIN: Final = 600.0
# A handed-in pool that has fewer connections is left to the others.
_LEAST_POOL: Final = 2
_ECHO: Final = "?"


class Listener:
    """Listens on one channel.

    Args:
        link: the connections.
        channel: what to listen to.
        notified: called with each notification's text, and with None after a gap, when anything may have
            been missed.

    Attributes:
        hears: whether notifications arrive.
    """

    def __init__(self, link: PostgresLink, channel: str, notified: Callable[[str | None], None]) -> None:
        self.hears: bool = False
        self._link = link
        self._channel = channel
        self._notified = notified
        self._connection: Connection | None = None
        self._echo = ""
        self._heard = asyncio.Event()
        self._next_try = 0.0
        self._next_check = 0.0

    async def listen(self) -> None:
        """See that it listens, if that is possible at all; cheap where it does already.

        Raises:
            PersistError: the server can't be reached.
        """
        now = time.monotonic()
        if self._connection is not None:
            if now >= self._next_check:
                self._next_check = now + _CHECK_EVERY
                await self._check(self._connection)
            return
        if now < self._next_try:
            return
        self._next_try = now + _TRY_AGAIN
        await self._begin()

    async def close(self) -> None:
        """Stop listening and end the connection, or give it back to the pool that was handed in."""
        connection, self._connection = self._connection, None
        self.hears = False
        self._next_try = 0.0
        if connection is not None:
            await self._end(connection)

    async def _begin(self) -> None:
        pool = self._link.handed_in
        if pool is None:
            connection = await self._link.connect()
        else:
            if pool.get_max_size() < _LEAST_POOL:
                return
            connection = await self._link.borrow()
        try:
            connection.add_termination_listener(self._lost)
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.add_listener(self._channel, self._take)
            self._connection = connection
            self.hears = await self._can_hear()
        except BaseException as error:
            self._connection = None
            await self._end(connection)
            if isinstance(error, PersistError) or not isinstance(error, Exception):
                raise
            self._next_try = 0.0
            raise PersistError(f"the store at {self._link.target} can't be listened to: {error}") from error
        self._next_check = time.monotonic() + _CHECK_EVERY
        if self.hears:
            # Between the last reading and now nobody listened.
            self._notified(None)
        else:
            self._connection = None
            await self._end(connection)

    async def _can_hear(self) -> bool:
        self._echo = _ECHO + secrets.token_hex(8)
        self._heard.clear()

        async def send(connection: Connection) -> None:
            await connection.fetchval("SELECT pg_notify($1, $2)", self._channel, self._echo)

        await self._link.run(send)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_POOLED_ECHO_SECONDS if self._link.pooled else _ECHO_SECONDS):
                await self._heard.wait()
        return self._heard.is_set()

    async def _check(self, connection: Connection) -> None:
        try:
            await connection.execute("SELECT 1", timeout=_CHECK_SECONDS)
        except Exception:  # noqa: BLE001 - whatever it was, the connection is of no use
            self._lost(connection)
            await self._end(connection)

    async def _end(self, connection: Connection) -> None:
        connection.remove_termination_listener(self._lost)
        pool = self._link.handed_in
        if pool is None:
            connection.terminate()
            return
        try:
            if not connection.is_closed():
                async with asyncio.timeout(_CHECK_SECONDS):
                    await connection.remove_listener(self._channel, self._take)
        except Exception:  # noqa: BLE001 - the pool makes a new one
            connection.terminate()
        await pool.release(connection, timeout=CONNECT_SECONDS)

    def _take(self, connection: Any, pid: int, channel: str, text: str) -> None:
        if text.startswith(_ECHO):
            if text == self._echo:
                self._heard.set()
            return
        self._notified(text)

    def _lost(self, connection: Any) -> None:
        self.hears = False
        self._connection = None
        self._next_try = 0.0
        self._notified(None)
