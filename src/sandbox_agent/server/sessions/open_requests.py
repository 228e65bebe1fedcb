"""What an agent has asked in a turn that is cancelled: ACP demands that its client answers "cancelled"."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.server.client_names import CANCELLATION
from sandbox_agent.server.sessions.agent_client import AgentLink

if TYPE_CHECKING:
    from sandbox_agent.engine.project import Projector
    from sandbox_agent.server.recorder.recorder import Recorder
    from sandbox_agent.server.recorder.registry import RecordedSession
    from sandbox_agent.wire.universal import UniversalEvent

__all__ = ["cancel_asks", "cancel_late_asks"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# A permission's outcome, and an elicitation's action: each reads its own.
_CANCELLED = {"outcome": {"outcome": "cancelled"}, "action": "cancel"}


async def cancel_asks(recorder: Recorder, live: RecordedSession, link: AgentLink) -> None:
    """Answer all that waits for an answer now.

    Raises:
        PersistError: the store refuses, so that nobody knows what waits.
        ServerSessionNotFoundError: the session was deleted.
    """
    asked: dict[str, str] = {}

    def look(projector: Projector, _now: int) -> list[UniversalEvent]:
        asked.update(projector.pending_permissions)
        asked.update(projector.pending_questions)
        return []

    await recorder.add_events(live, look)
    for request_id in asked.values():
        await link.answer(CANCELLATION, request_id.encode(), _CANCELLED)


async def cancel_late_asks(
    recorder: Recorder, live: RecordedSession, link: AgentLink, busy: Callable[[], bool]
) -> None:
    """Answer what the agent asks before it has heard of the cancellation, until the turn is over."""
    try:
        while busy() and link.alive and not live.finished:
            sequence = live.row.last_sequence
            await cancel_asks(recorder, live, link)
            if busy():
                await live.wait_beyond(sequence)
    except SandboxAgentError as error:
        logger.info("session %s: %s", live.row.session_id, error)
