"""A new session: its agent, its row and its settings, all of them or none."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import anyio

from sandbox_agent.errors import AcpRpcError, SandboxAgentError
from sandbox_agent.persist.store import SessionRow
from sandbox_agent.server.sessions.agent_client import AgentLink, refused
from sandbox_agent.server.sessions.context import Parts
from sandbox_agent.server.sessions.driven_session import ManagedSession
from sandbox_agent.server.sessions.settings import (
    MODE,
    MODEL,
    VARIANT,
    chosen_settings,
    set_chosen,
    stored_settings,
)
from sandbox_agent.wire.sessions import CreateSessionRequest

if TYPE_CHECKING:
    from sandbox_agent.server.recorder.registry import RecordedSession

__all__ = ["make_session"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# A store that hangs does not keep who waits for a session that failed.
ERASE_SECONDS = 10.0


async def make_session(
    parts: Parts, session_id: str, request: CreateSessionRequest, directory: str
) -> tuple[ManagedSession, RecordedSession]:
    """Start the agent, make its session, store it and set what was asked for.

    Args:
        parts: what the session works with.
        session_id: its name.
        request: as it was checked.
        directory: where the agent works.

    Raises:
        ProblemError: the agent can't be started, refuses, or lacks what was asked for; then the agent is
            ended and no session is there.
        PersistError: the store refuses; the same.
    """
    link = await AgentLink.start(parts.bridge, request.agent, parts.tasks)
    try:
        live = await parts.recorder.create(_row(session_id, request, directory))
        try:
            await _set_up(parts, link, live, request, directory)
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(ERASE_SECONDS):
                await _erase(parts, live)
            raise
    except BaseException as error:
        with anyio.CancelScope(shield=True):  # bounded: a timed ladder
            await link.stop()
        if isinstance(error, AcpRpcError):
            raise refused(request.agent, "session/new", error) from error
        raise
    return ManagedSession(parts, session_id, link), live


def _row(session_id: str, request: CreateSessionRequest, directory: str) -> SessionRow:
    now = time.time_ns() // 1_000_000
    return SessionRow(
        key=0,  # the recorder's to give
        session_id=session_id,
        agent=request.agent,
        created_at=now,
        updated_at=now,
        managed=True,
        directory=directory,
        title=request.title,
        permission_mode=request.permission_mode or "ask",
        settings=stored_settings(request),
    )


async def _set_up(
    parts: Parts, link: AgentLink, live: RecordedSession, request: CreateSessionRequest, directory: str
) -> None:
    link.bind(live)
    result = await link.new_session(directory, request.mcp_servers or [])
    settings = await set_chosen(link, live, parts, result, chosen_settings(live.row))
    await parts.recorder.update(
        live,
        native_session_id=link.native_id,
        agent_mode=settings.current(MODE) or "",
        model=settings.current(MODEL),
        variant=settings.current(VARIANT),
        settings=stored_settings(request, settings.config_ids),
    )


async def _erase(parts: Parts, live: RecordedSession) -> None:
    try:
        await parts.recorder.delete(live)
    except SandboxAgentError as error:
        logger.error("session %s stays behind: %s", live.row.session_id, error)
