"""One connection that listens for notifications and is opened again when it is lost."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Any, Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.postgres.library import Connection
from sandbox_agent.persist.postgres.link import CONNECT_SECONDS, PostgresLink
from sandbox_agent.persist.postgres.schema import mark

# A notification that the listener sends to itself has arrived by then, or never does: a transaction-pooling
# pgbouncer accepts LISTEN and delivers nothing.
_ECHO_SECONDS: Final = 2.0
_POOLED_ECHO_SECONDS: Final = 0.3
# A silent connection is checked; one that does not answer is dropped.
_CHECK_EVERY: Final = 30.0
_CHECK_SECONDS: Final = 5.0
# If nothing is heard, the next attempt is after that time.
_TRY_AGAIN: Final = 600.0
# A pool of the user's that has fewer connections is left to the other calls.
_LEAST_POOL: Final = 2
_ECHO: Final = "?"
# How often the store is checked, in seconds, for programs that do not notify; and if nothing is heard.
_CHECK_INTERVAL: Final = 1.0
_POLL_INTERVAL: Final = 0.1


class Listener:
    """Listens on one channel.

    Args:
        link: the connections.
        channel: what to listen to.
        notified: called with each notification's text, and with None after a gap, in which notifications
            may have been missed.

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
        """Listen, if that is possible at all; cheap if it listens already.

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
        """Stop listening and end the connection, or return it to the user's pool."""
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
                await connection.add_listener(self._channel, self._receive)
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
            # Notifications since the last check were missed.
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
        with suppress(TimeoutError):
            async with asyncio.timeout(_POOLED_ECHO_SECONDS if self._link.pooled else _ECHO_SECONDS):
                await self._heard.wait()
        return self._heard.is_set()

    async def _check(self, connection: Connection) -> None:
        try:
            await connection.execute("SELECT 1", timeout=_CHECK_SECONDS)
        except Exception:  # noqa: BLE001 - after any failure, the connection is of no use
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
                    await connection.remove_listener(self._channel, self._receive)
        except Exception:  # noqa: BLE001 - the pool makes a new one
            connection.terminate()
        await pool.release(connection, timeout=CONNECT_SECONDS)

    def _receive(self, connection: Any, pid: int, channel: str, text: str) -> None:
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


class NotificationHint:
    """Implements ``follow.ChangeHint``: each writer notifies a channel of the sessions that it changes.

    Args:
        link: the connections.
        channel: what writers notify.
        wakeup: the hub's event.
    """

    survives_outages: bool = True

    def __init__(self, link: PostgresLink, channel: str, wakeup: asyncio.Event) -> None:
        self._listener = Listener(link, channel, self._notified)
        self._wakeup = wakeup
        self._marks: set[str] = set()
        self._all = False
        self._unchecked = False

    async def wait(self) -> None:
        """Wait for a notification; a program that notifies no one is noticed by a check every second."""
        await self._listener.listen()
        if self._unchecked:
            # The last check failed.
            self._all = True
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_CHECK_INTERVAL if self._listener.hears else _POLL_INTERVAL):
                await self._wakeup.wait()
                self._wakeup.clear()
                return
        self._all = True

    def changed(self, session_ids: Collection[str], /) -> Collection[str]:
        """Return the sessions that were named since the last time."""
        marks, self._marks = self._marks, set()
        every, self._all = self._all, False
        found = [one for one in session_ids if every or mark(one) in marks]
        self._unchecked = bool(found)
        return found

    def checked(self, found: bool, /) -> None:
        """Note that the check has not failed."""
        self._unchecked = False

    async def close(self) -> None:
        """Stop listening."""
        await self._listener.close()

    def _notified(self, text: str | None) -> None:
        if text:
            self._marks.update(text.split())
        else:
            self._all = True
        self._wakeup.set()
