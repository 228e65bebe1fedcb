"""Creates a session: its agent, its row and its settings, all of them or none."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import anyio

from sandbox_agent.errors import AcpRpcError, SandboxAgentError
from sandbox_agent.persist.store import SessionRow
from sandbox_agent.server.sessions.agent_client import AgentClient, refused
from sandbox_agent.server.sessions.context import SessionContext
from sandbox_agent.server.sessions.driven_session import DrivenSession
from sandbox_agent.server.sessions.requests import session_params
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

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How long a failed creation waits for the store to erase the session.
ERASE_SECONDS = 10.0


async def create_session(
    context: SessionContext, session_id: str, request: CreateSessionRequest, directory: str
) -> tuple[DrivenSession, RecordedSession]:
    """Start the agent, create its session, store it and make the requested settings.

    Args:
        context: what the session works with.
        session_id: its name.
        request: the checked request.
        directory: where the agent works.

    Raises:
        ProblemError: the agent can't be started, refuses, or lacks a setting; then the agent is ended and
            there is no session.
        PersistError: the store failed; the same.
    """
    client = await AgentClient.start(context.bridge, request.agent, context.tasks)
    try:
        session = await context.recorder.create(_row(session_id, request, directory))
        try:
            await _set_up(context, client, session, request, directory)
        except BaseException:
            with anyio.CancelScope(shield=True), anyio.move_on_after(ERASE_SECONDS):
                await _erase(context, session)
            raise
    except BaseException as error:
        with anyio.CancelScope(shield=True):  # bounded: a timed ladder
            await client.stop()
        if isinstance(error, AcpRpcError):
            raise refused(request.agent, "session/new", error) from error
        raise
    return DrivenSession(context, session_id, client), session


def _row(session_id: str, request: CreateSessionRequest, directory: str) -> SessionRow:
    now = time.time_ns() // 1_000_000
    return SessionRow(
        key=0,  # set by the recorder
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
    context: SessionContext,
    client: AgentClient,
    session: RecordedSession,
    request: CreateSessionRequest,
    directory: str,
) -> None:
    client.bind(session)
    result = await client.new_session(session_params(request, directory))
    chosen = chosen_settings(session.row)
    settings = await set_chosen(client, session, context, result, chosen)
    await context.recorder.update(
        session,
        native_session_id=client.native_id,
        agent_mode=settings.current(MODE) or "",
        model=settings.current(MODEL),
        variant=settings.current(VARIANT),
        settings=stored_settings(
            request,
            mode=settings.mode_for(client.agent, chosen.permission_mode),
            config_ids=settings.config_ids,
        ),
    )


async def _erase(context: SessionContext, session: RecordedSession) -> None:
    try:
        await context.recorder.delete(session)
    except SandboxAgentError as error:
        logger.error(
            "session %s could not be erased after its creation failed: %s", session.row.session_id, error
        )
