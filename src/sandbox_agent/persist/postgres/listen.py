"""One connection that listens for notifications and is opened again when it is lost."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from sandbox_agent.errors import PersistError
from sandbox_agent.persist.follow import ChangeHint, Mark
from sandbox_agent.persist.postgres.link import CONNECT_SECONDS, Connection, PostgresLink
from sandbox_agent.persist.postgres.schema import mark

# A notification that the listener sends to itself has arrived by then, or never does: a transaction-pooling
# pgbouncer accepts LISTEN and delivers nothing.
_ECHO_SECONDS: Final = 2.0
_POOLED_ECHO_SECONDS: Final = 0.3
_ECHO: Final = "?"
# A silent connection is checked; one that does not answer is dropped.
_CHECK_EVERY: Final = 30.0
_CHECK_SECONDS: Final = 5.0
# If nothing is heard, the next attempt is after that time.
_TRY_AGAIN: Final = 600.0
# How often the store is checked, in seconds, for programs that do not notify; and if nothing is heard.
_CHECK_INTERVAL: Final = 1.0
_POLL_INTERVAL: Final = 0.1


class NotificationHint(ChangeHint):
    """Implements ``follow.ChangeHint``: each writer notifies a channel of the sessions that it changes.

    Args:
        link: the connections.
        channel: what writers notify.
        wakeup: the hub's event.
    """

    def __init__(self, link: PostgresLink, channel: str, wakeup: asyncio.Event) -> None:
        self._link = link
        self._channel = channel
        self._wakeup = wakeup
        self._marks: set[str] = set()
        self._all = False
        self._unchecked = False
        self._connection: Connection | None = None
        # Whether notifications arrive.
        self._hears = False
        self._echo = ""
        self._heard = asyncio.Event()
        self._next_try = 0.0
        self._next_check = 0.0

    @property
    def survives_outages(self) -> bool:
        """Followers wait, however long it takes."""
        return True

    async def wait(self, followed: Callable[[], Mapping[str, Mark]], /) -> None:
        await self._listen()
        if self._unchecked:
            # The last check failed.
            self._all = True
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_CHECK_INTERVAL if self._hears else _POLL_INTERVAL):
                await self._wakeup.wait()
                self._wakeup.clear()
                return
        # A program that notifies no one is noticed by a check every second.
        self._all = True

    def changed(self, session_ids: Collection[str], /) -> Collection[str]:
        marks, self._marks = self._marks, set()
        every, self._all = self._all, False
        found = [one for one in session_ids if every or mark(one) in marks]
        self._unchecked = bool(found)
        return found

    def checked(self, found: bool, /) -> None:
        self._unchecked = False

    async def close(self) -> None:
        self._end()

    async def _listen(self) -> None:
        """Listen, if that is possible at all; cheap if it listens already."""
        now = time.monotonic()
        if self._connection is not None:
            if now >= self._next_check:
                self._next_check = now + _CHECK_EVERY
                try:
                    await self._connection.execute("SELECT 1", timeout=_CHECK_SECONDS)
                except Exception:  # noqa: BLE001 - after any failure, the connection is of no use
                    self._end()
                    self._lost(None)
        elif now >= self._next_try and self._link.can_connect:
            await self._begin()

    async def _begin(self) -> None:
        self._connection = connection = await self._link.connect()
        try:
            connection.add_termination_listener(self._lost)
            async with asyncio.timeout(CONNECT_SECONDS):
                await connection.add_listener(self._channel, self._receive)
            self._hears = await self._can_hear()
        except BaseException as error:
            self._end()
            if isinstance(error, PersistError) or not isinstance(error, Exception):
                raise
            raise PersistError(f"the store at {self._link.target} can't be listened to: {error}") from error
        now = time.monotonic()
        self._next_check = now + _CHECK_EVERY
        if self._hears:
            # Notifications since the last check were missed.
            self._notify(None)
        elif not connection.is_closed():
            self._next_try = now + _TRY_AGAIN
            self._end()

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

    def _end(self) -> None:
        connection, self._connection = self._connection, None
        self._hears = False
        if connection is not None:
            connection.remove_termination_listener(self._lost)
            connection.terminate()

    def _receive(self, connection: Any, pid: int, channel: str, text: str) -> None:
        if not text.startswith(_ECHO):
            self._notify(text)
        elif text == self._echo:
            self._heard.set()

    def _notify(self, text: str | None) -> None:
        """Note a notification, or a gap in which some may have been missed."""
        if text:
            self._marks.update(text.split())
        else:
            self._all = True
        self._wakeup.set()

    def _lost(self, connection: Any) -> None:
        self._hears = False
        self._connection = None
        self._notify(None)
