"""Open requests of an agent in a turn that is cancelled: ACP demands that its client answers "cancelled"."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sandbox_agent.errors import SandboxAgentError
from sandbox_agent.server.client_names import CANCELLATION
from sandbox_agent.server.recorder import RecordedSession, Recorder
from sandbox_agent.server.sessions.agent_client import AgentClient

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# A permission's outcome, and an elicitation's action: each reads its own.
_CANCELLED = {"outcome": {"outcome": "cancelled"}, "action": "cancel"}


async def cancel_requests(recorder: Recorder, session: RecordedSession, client: AgentClient) -> None:
    """Answer all open requests of the agent.

    Raises:
        PersistError: the store failed, so that the open requests are unknown.
        ServerSessionNotFoundError: the session was deleted.
    """
    for request_id in await recorder.open_requests(session):
        await client.answer(CANCELLATION, request_id.encode(), _CANCELLED)


async def cancel_late_requests(
    recorder: Recorder, session: RecordedSession, client: AgentClient, busy: Callable[[], bool]
) -> None:
    """Answer what the agent requests before it has read the cancellation, until the turn has ended."""
    try:
        while busy() and client.alive and not session.finished:
            sequence = session.row.last_sequence
            await cancel_requests(recorder, session, client)
            if busy():
                await session.wait_beyond(sequence)
    except SandboxAgentError as error:
        logger.info("session %s: %s", session.row.session_id, error)
