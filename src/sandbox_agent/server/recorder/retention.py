"""Erases events that are older, or more, than the server keeps."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import anyio

from sandbox_agent.errors import PersistError
from sandbox_agent.server.config import ServerConfig
from sandbox_agent.server.recorder.recorder import Recorder

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How often events are erased; at the start, too.
INTERVAL_SECONDS = 60.0
DAY_MS = 24 * 60 * 60 * 1000


class Retention:
    """Keeps a store within ``--retain-days`` and ``--retain-bytes``.

    Args:
        recorder: running; it owns the store.
        config: the server's settings.
    """

    def __init__(self, recorder: Recorder, config: ServerConfig) -> None:
        self._recorder = recorder
        self._days = config.retain_days
        self._bytes = config.retain_bytes

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[Retention]:
        """Erase what is due, every minute, while the context lasts."""
        if not self._days and not self._bytes:
            yield self
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._repeat)
            yield self
            tasks.cancel_scope.cancel()

    async def _repeat(self) -> None:
        while True:
            try:
                await self.erase(time.time_ns() // 1_000_000)
            except PersistError as error:
                logger.warning("old events could not be erased, the next attempt is in a minute (%s)", error)
            await anyio.sleep(INTERVAL_SECONDS)

    async def erase(self, now: int) -> None:
        """Erase what is too old or too much at ``now``, in milliseconds since the epoch.

        Raises:
            PersistError: the store failed.
        """
        before = now - round(self._days * DAY_MS) if self._days else None
        expired = await self._recorder.expire(before=before, max_bytes=self._bytes or None)
        if expired:
            logger.info("erased the oldest events of %d sessions", len(expired))
