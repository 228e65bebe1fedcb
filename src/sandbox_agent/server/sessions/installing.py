"""A session whose agent is installed first: its events show how far that is, and why it failed."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from sandbox_agent.engine.project import Projector
from sandbox_agent.errors import InstallFailedError, SandboxAgentError
from sandbox_agent.server.errors import without_path
from sandbox_agent.server.recorder import RecordedSession
from sandbox_agent.server.sessions.agent_client import SessionContext
from sandbox_agent.wire.universal import UniversalEvent

if TYPE_CHECKING:
    from sandbox_agent.agents.install.installer import Progress

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

LABEL = "agent.install"
# An event for each such step, and for each phase.
STEP_PERCENT = 10
# So many of the newest lines of npm's or pip's output are in the error.
OUTPUT_LINES = 20
OUTPUT_LINE_CHARS = 500
_MAX_WAITING = 64


async def install_in_session(context: SessionContext, session: RecordedSession) -> None:
    """Install the agent of a session that is being created.

    If the installation fails, the session has ended with the reason when this raises.

    Raises:
        InstallFailedError: the installation failed.
        ProblemError: as of Bridge.prepare.
    """
    agent = session.row.agent
    output: deque[str] = deque(maxlen=OUTPUT_LINES)
    progress, shown = anyio.create_memory_object_stream["Progress"](_MAX_WAITING)

    def listen(event: Progress | str) -> None:
        if isinstance(event, str):
            output.append(without_path(event)[:OUTPUT_LINE_CHARS])
            return
        try:
            progress.send_nowait(event)
        except anyio.WouldBlock:
            logger.debug("the store is slower than the installation of %s", agent)

    failure: SandboxAgentError | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_show, context, session, shown)
        with progress:
            try:
                await context.bridge.prepare(agent, listen)
            except SandboxAgentError as error:  # not out of the group, which would wrap it
                failure = error
    if isinstance(failure, InstallFailedError):
        await context.recorder.add_events(session, partial(_fail, failure, list(output)))
    if failure is not None:
        raise failure


async def _show(
    context: SessionContext, session: RecordedSession, shown: MemoryObjectReceiveStream[Progress]
) -> None:
    last: tuple[str, int] = ("", 0)
    with shown:
        async for progress in shown:
            percent = progress.done * 100 // progress.total if progress.total else None
            step = (progress.phase, (percent or 0) // STEP_PERCENT)
            if step == last:
                continue
            last = step
            try:
                await context.recorder.add_events(session, partial(_progress, progress, percent))
            except SandboxAgentError as error:
                logger.info("session %s does not show its installation: %s", session.session_id, error)


def _progress(
    progress: Progress, percent: int | None, projector: Projector, now: int
) -> Sequence[UniversalEvent]:
    value: dict[str, Any] = {"agent": progress.agent, "phase": progress.phase}
    detail = f"{progress.phase} {progress.agent}"
    if percent is not None:
        value |= {"done": progress.done, "total": progress.total, "percent": percent}
        detail += f": {percent}%"
    return projector.status(now, label=LABEL, detail=detail, value=value)


def _fail(
    error: InstallFailedError, output: list[str], projector: Projector, now: int
) -> Sequence[UniversalEvent]:
    message = without_path(str(error))
    return [
        *projector.error(now, message=message, code=error.name, details={"output": output}),
        *projector.session_ended(now, reason="error", terminated_by="daemon", message=message),
    ]
