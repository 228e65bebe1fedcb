"""What ``run`` does: a server, a session, one turn, and a way out of it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandbox_agent.cli.approval import Approval
from sandbox_agent.cli.exit_codes import exit_code
from sandbox_agent.cli.logs import configure_logging
from sandbox_agent.cli.narrate import Narrator
from sandbox_agent.cli.progress import Progress
from sandbox_agent.cli.signals import Interrupts, interrupts
from sandbox_agent.cli.stores import opened
from sandbox_agent.cli.terminal import Screen
from sandbox_agent.client.agent import SandboxAgent
from sandbox_agent.client.session import Session
from sandbox_agent.persist.base import SessionPersistDriver
from sandbox_agent.persist.memory import InMemorySessionPersistDriver
from sandbox_agent.persist.open import parse_store_url
from sandbox_agent.providers.local import local

__all__ = ["OneTurn"]

# Without a store the events are kept for this turn only: enough for a reader that is behind.
_KEPT_EVENTS: Final = 65_536


@dataclass(frozen=True, kw_only=True)
class OneTurn:
    """The options of ``run``."""

    prompt: str
    agent: str
    cwd: str | None
    model: str | None
    mode: str | None
    thought_level: str | None
    yes: bool
    as_json: bool
    store: str | None

    async def run(self) -> int:
        """Run the turn and return the exit code.

        Raises:
            SandboxAgentError: the server, the agent or the store failed.
        """
        configure_logging("warning", "text")
        screen = Screen(sys.stdout, sys.stderr)
        with interrupts() as signals:
            work = asyncio.ensure_future(self._turn(screen, signals))
            signals.order = work.cancel
            try:
                return await work
            except asyncio.CancelledError:
                if signals.exit_code is None:
                    raise
                screen.note("ended at once", "red")
                return signals.exit_code
            finally:
                await signals.settle()

    async def _turn(self, screen: Screen, signals: Interrupts) -> int:
        approval, progress = Approval(screen, yes=self.yes), Progress()
        async with self._sandbox() as sdk:
            session = await sdk.create_session(
                agent=self.agent,
                cwd=self.cwd,
                model=self.model,
                mode=self.mode,
                thought_level=self.thought_level,
                permission_policy=approval,
            )

            async def cancel() -> None:
                screen.note("cancelling; Ctrl-C again ends it at once", "yellow")
                await session.cancel()

            signals.wish = cancel
            approval.ready = lambda: progress.catch_up(sdk, session)
            stop_reason = await self._stream(session, screen, progress)
            if self.store is not None:
                screen.note(f"session {session.id} is in {parse_store_url(self.store).shown}", "dim")
        if stop_reason != "end_turn":
            screen.note(f"stopped: {stop_reason or 'without a reason'}", "yellow")
        return exit_code(stop_reason)

    async def _stream(self, session: Session, screen: Screen, progress: Progress) -> str:
        narrator = Narrator(screen)
        turn = session.stream(self.prompt)
        try:
            async for event in turn:
                if self.as_json:
                    sys.stdout.buffer.write(event.payload_json + b"\n")
                    sys.stdout.buffer.flush()
                else:
                    narrator.tell(event)
                progress.reach(event.event_index)
        finally:
            screen.end_line()
        return turn.response.stop_reason if turn.response is not None else ""

    @contextlib.asynccontextmanager
    async def _sandbox(self) -> AsyncGenerator[SandboxAgent]:
        with tempfile.TemporaryDirectory(prefix="sandbox-agent-") as folder:
            async with _driver(self.store) as driver:
                provider = local(log=Path(folder) / "server.log")
                sdk = await SandboxAgent.start(sandbox=provider, persist=driver)
                try:
                    yield sdk
                except asyncio.CancelledError:
                    # The server first: no one waits for an agent's manners now.
                    await provider.kill((sdk.sandbox_id or "").partition("/")[2])
                    raise
                finally:
                    await sdk.destroy_sandbox()


@contextlib.asynccontextmanager
async def _driver(store: str | None) -> AsyncGenerator[SessionPersistDriver]:
    if store is not None:
        async with opened(store, to_write=True) as driver:
            # A store that can't be used says so before anything is started.
            await driver.list_sessions(limit=1)
            yield driver
    else:
        yield InMemorySessionPersistDriver(max_events_per_session=_KEPT_EVENTS)
