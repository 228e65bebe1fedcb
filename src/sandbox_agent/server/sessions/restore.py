"""A session whose agent is gone goes on in a new process: by the agent's own means, else by a replay."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sandbox_agent.engine.restore import Call, Ladder, Plan, Refusal, Retelling, Told, native_methods
from sandbox_agent.errors import AcpRpcError, ProblemError, RequestTimeoutError
from sandbox_agent.persist.store import EnvelopeRow, SessionRow, SessionStore
from sandbox_agent.server.sessions.agent_client import AgentLink, native_id_of, refused
from sandbox_agent.server.sessions.requests import settings_of
from sandbox_agent.server.sessions.settings import MODE, MODEL, VARIANT
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError
from sandbox_agent.wire.members import members
from sandbox_agent.wire.records import SessionEvent

if TYPE_CHECKING:
    from sandbox_agent.server.recorder.published_session import LiveSession
    from sandbox_agent.server.recorder.recorder import Recorder

__all__ = ["REPLAY_CHARS", "REPLAY_ENVELOPES", "NativeRestoreLostError", "history", "restore"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How much of the newest history goes in front of a prompt: what a model reads at once, and the envelopes
# that are looked through for it (agents send a text in many).
REPLAY_CHARS = 12_000
REPLAY_ENVELOPES = 2_000


class NativeRestoreLostError(Exception):
    """The agent ended while it opened its own session: it is to be started again, and not asked for that."""


async def restore(
    link: AgentLink, live: LiveSession, recorder: Recorder, store: SessionStore, *, native: bool = True
) -> str | None:
    """Open the session in a fresh agent, and return the text to put in front of its next prompt, if any.

    Args:
        link: the agent.
        live: the session.
        recorder: is told what came of it.
        store: has the history.
        native: whether the agent may be asked for its own session.

    Raises:
        NativeRestoreLostError: the agent ended when it was asked for its own session.
        ProblemError: the agent refuses even a new session, or is gone.
        PersistError: the history can't be read.
    """
    await recorder.settle(live)
    row = live.row
    rows = await store.newest_envelopes(row.key, limit=REPLAY_ENVELOPES)
    ladder = Ladder(
        Plan(
            agent=link.agent,
            native_id=(row.native_session_id or "") if native else "",
            methods=native_methods(link.initialized),
            init={
                "cwd": row.directory or os.getcwd(),  # noqa: PTH109 - a string goes out
                "mcpServers": settings_of(row).mcp_servers or [],
            },
            wanted={MODE: row.agent_mode, MODEL: row.model, VARIANT: row.variant},
            events=history(row, rows),
            total=row.last_envelope,
            max_events=REPLAY_ENVELOPES,
            max_chars=REPLAY_CHARS,
        )
    )
    await recorder.apply(live, lambda p, t: p.restoring(t))
    for step in ladder:
        # of an agent that says nothing of its options nothing is known here
        if isinstance(step, Call):
            await _call(step, link, live, recorder, store)
    method, text, replayed, left_out, verified, failed = ladder.outcome
    await recorder.apply(
        live,
        lambda p, t: p.restored(
            t, method=method, replayed=replayed, left_out=left_out, verified=verified, failed=failed
        ),
    )
    return text


async def _call(
    step: Call, link: AgentLink, live: LiveSession, recorder: Recorder, store: SessionStore
) -> None:
    before = live.row.last_envelope
    try:
        step.result = await link.call(step.method, step.params)
    except AcpRpcError as error:
        if not step.may_fail:
            raise refused(link.agent, step.method, error) from error
        logger.info("agent %s: %s failed: %s", link.agent, step.method, error)
        step.refusal = Refusal(str(error), error.code)
    except RequestTimeoutError as error:
        if not step.may_fail:
            raise
        logger.warning("agent %s: %s: %s", link.agent, step.method, error)
        step.refusal = Refusal(str(error))
    except ProblemError as error:
        if step.opens is None or link.alive:
            raise
        raise NativeRestoreLostError(f"{link.agent} ended in {step.method}: {error}") from error
    else:
        if step.opens is not None:
            link.native_id = step.opens
            await recorder.settle(live)
            rows = await store.newest_envelopes(live.row.key, limit=REPLAY_ENVELOPES)
            step.told = _told([row for row in rows if row.index > before and row.sender == "agent"], live.row)
        elif step.method == "session/new":
            link.native_id = native_id_of(link.agent, step.result)


def _told(rows: Sequence[EnvelopeRow], row: SessionRow) -> Told:
    told, retelling = Told(), Retelling()
    retelling.begin()
    for event in history(row, rows):
        if "method" not in event.payload:
            break  # the answer
        params = members(event.payload.get("params"))
        update = members(params.get("update"))
        kind: Any = update.get("sessionUpdate")
        if isinstance(kind, str) and retelling.is_past(kind):
            told.take(update)
    return told


def history(row: SessionRow, rows: Sequence[EnvelopeRow]) -> list[SessionEvent]:
    """Return envelopes as a restore reads them, without those that can't be read."""
    events: list[SessionEvent] = []
    for each in rows:
        event = SessionEvent(
            "", each.index, row.session_id, each.time, each.connection_id, each.sender, each.data
        )
        try:
            _ = event.payload
        except InvalidEnvelopeError:
            continue  # nothing that was said
        events.append(event)
    return events
