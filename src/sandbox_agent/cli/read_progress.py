"""How far a reader of a session's events has come."""

from __future__ import annotations

import asyncio

from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.session import Session


class ReadProgress:
    """The index of the newest event that was read.

    Permission policies are called independent of the reader, which may be behind: without waiting for it,
    a question would appear in the middle of the text that explains it.
    """

    def __init__(self) -> None:
        self.index: int = 0
        self._moved = asyncio.Event()

    def advance(self, index: int) -> None:
        """Note that the event with this index was read."""
        self.index = max(self.index, index)
        self._moved.set()

    async def catch_up(self, sdk: SandboxAgent, session: Session) -> None:
        """Wait until everything that is stored now was read."""
        await session.refresh()
        stored = await sdk.persist.last_event_index(session.id)
        while self.index < stored:
            self._moved.clear()
            await self._moved.wait()
