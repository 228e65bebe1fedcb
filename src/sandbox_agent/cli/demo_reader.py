"""A reader of a session's events that can be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from sandbox_agent.cli.progress import Progress
from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.session import Session
from sandbox_agent.wire.records import SessionEvent

__all__ = ["Reader"]

# Stored events reach a reader within milliseconds; this long without means they never will.
_PATIENCE: Final = 10.0


class Reader:
    """Reads a session to the end of its client, and goes on from there with the next client.

    Attributes:
        seen: every event that came, in its order.
    """

    def __init__(self, tell: Callable[[SessionEvent], None]) -> None:
        self.seen: list[SessionEvent] = []
        self._tell = tell
        self._progress = Progress()
        self._task: asyncio.Future[None] | None = None

    def follow(self, session: Session) -> None:
        """Begin to read after what was seen."""
        self._task = asyncio.ensure_future(self._read(session))

    async def _read(self, session: Session) -> None:
        async for event in session.events(after=self._progress.index):
            self.seen.append(event)
            self._tell(event)
            self._progress.reach(event.event_index)

    async def catch_up(self, sdk: SandboxAgent, session: Session) -> None:
        """Return when everything that is stored has been seen; give up when that takes too long."""
        async with asyncio.timeout(_PATIENCE):
            await self._progress.catch_up(sdk, session)

    async def end(self) -> None:
        """Return when it has read to its end; its client is disposed."""
        if self._task is not None:
            async with asyncio.timeout(_PATIENCE):
                await self._task
            self._task = None
