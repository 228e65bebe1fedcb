"""How far a reader has come in a session's events, for those who speak after it."""

from __future__ import annotations

import asyncio

from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.session import Session

__all__ = ["Progress"]


class Progress:
    """The index of the newest event that was read.

    Permission requests reach their policy beside the reader, which may be behind: without waiting for it
    a question would be shown in the middle of the text that explains it.
    """

    def __init__(self) -> None:
        self.index: int = 0
        self._moved = asyncio.Event()

    def reach(self, index: int) -> None:
        """Note that the event of that index was read."""
        self.index = max(self.index, index)
        self._moved.set()

    async def catch_up(self, sdk: SandboxAgent, session: Session) -> None:
        """Return when everything has been read that is stored now."""
        await session.refresh()
        stored = await sdk.persist.last_event_index(session.id)
        while self.index < stored:
            self._moved.clear()
            await self._moved.wait()
