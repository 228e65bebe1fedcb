"""Turns that end without an answer of their agent: what the recorder can't know is told to it here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from sandbox_agent.errors import PersistError, ProblemError, SandboxAgentError
from sandbox_agent.persist.store import TurnRow
from sandbox_agent.server.sessions.context import Parts

if TYPE_CHECKING:
    from sandbox_agent.server.recorder.published_session import LiveSession

__all__ = ["drop_turn", "settle"]

# How soon a store that refuses is tried again.
RETRY_SECONDS = 0.5


async def settle(parts: Parts, live: LiveSession) -> None:
    """Return when all that was said so far is stored, however long the store refuses."""
    while True:
        try:
            await parts.recorder.settle(live)
        except PersistError:
            await anyio.sleep(RETRY_SECONDS)
        else:
            return


async def drop_turn(parts: Parts, live: LiveSession, turn: TurnRow, error: Exception | None) -> None:
    """End a turn that was not sent, unless it is over; returns when that is stored.

    Args:
        parts: the recorder and the store.
        live: its session.
        turn: the turn.
        error: why it failed; None: it was cancelled.

    Raises:
        ServerSessionNotFoundError: the session was deleted.
    """
    message = code = None
    if error is not None:
        known = isinstance(error, SandboxAgentError)
        message = str(error) if known else "an unexpected error; the server's log has the details"
        code = error.name if isinstance(error, ProblemError) else None
    while True:
        # An earlier try may have been stored after it failed.
        await settle(parts, live)
        try:
            stored = await parts.store.turn(turn.key, turn_id=turn.turn_id)
            if stored is None or stored.state not in ("accepted", "running"):
                return
            if stored.state == "running":
                await parts.recorder.apply(live, lambda p, t: p.turn_interrupted(t, reason="agent_exited"))
            else:
                await parts.recorder.apply(
                    live, lambda p, t: p.turn_dropped(t, turn_id=turn.turn_id, message=message, code=code)
                )
            return
        except PersistError:
            await anyio.sleep(RETRY_SECONDS)
