"""Restore a session in a new agent process, after a restart of the server or the loss of the agent.

The session continues in the agent's own session, else in a new one with a replay.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from sandbox_agent.agents.catalogue import agent_modes
from sandbox_agent.engine.restore.ladder import Ladder, OpenSession, Plan, ReadNewest, native_methods
from sandbox_agent.engine.restore.load_phase import Retelling
from sandbox_agent.engine.restore.replay_check import ReportedHistory
from sandbox_agent.engine.settings import Call
from sandbox_agent.errors import AcpRpcError, ProblemError, SettingNotConfirmedError
from sandbox_agent.persist.store import EnvelopeRow, SessionRow
from sandbox_agent.server.permissions.policies import stored_request
from sandbox_agent.server.recorder import RecordedSession
from sandbox_agent.server.sessions.agent_client import AgentClient, SessionContext, native_id_of, refused
from sandbox_agent.server.sessions.requests import session_params
from sandbox_agent.server.sessions.settings import MODE, MODEL, VARIANT, chosen_settings, perform
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, members
from sandbox_agent.wire.records import SessionEvent

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How much of the newest history goes in front of a prompt: what a model reads at once, and the envelopes
# that are looked through for it (agents send a text in many).
REPLAY_CHARS = 12_000
REPLAY_ENVELOPES = 2_000


class NativeRestoreLostError(Exception):
    """The agent exited while it opened its own session: restore in a new process, without that session."""


async def restore(
    client: AgentClient, session: RecordedSession, context: SessionContext, *, native: bool = True
) -> str | None:
    """Open the session in a new agent process, and set what was chosen for it.

    Unless ``native``, the agent is not asked for its own session.

    Returns:
        The text that goes before the next prompt, if any.

    Raises:
        NativeRestoreLostError: the agent exited when it was asked for its own session.
        SettingNotConfirmedError: a chosen setting could not be confirmed; nothing may be prompted.
        ProblemError: the agent refuses even a new session, or has ended.
        PersistError: the history can't be read.
    """
    recorder = context.recorder
    await recorder.flush()
    row, chosen = session.row, chosen_settings(session.row)
    rows = await context.store.newest_envelopes(row.key, limit=REPLAY_ENVELOPES)
    ladder = Ladder(
        Plan(
            agent=client.agent,
            native_id=(row.native_session_id or "") if native else "",
            methods=native_methods(client.initialized),
            init=session_params(stored_request(row), row.directory or os.getcwd()),  # noqa: PTH109 - a string is sent
            wanted=chosen.wanted(),
            config_ids=chosen.config_ids,
            permission_mode=chosen.permission_mode,
            modes=agent_modes(client.agent),
            events=history(row, rows),
            total=row.last_envelope,
            max_events=REPLAY_ENVELOPES,
            max_chars=REPLAY_CHARS,
        )
    )
    await recorder.add_events(session, lambda p, t: p.restoring(t))
    for step in ladder:
        if isinstance(step, Call):
            await _call(step, client, session, context)
        elif not isinstance(step, ReadNewest):
            await perform(step, client, session, context)
    outcome = ladder.outcome
    await recorder.add_events(
        session,
        lambda p, t: p.restored(
            t,
            method=outcome.method,
            replayed=outcome.replayed,
            left_out=outcome.left_out,
            verified=outcome.verified,
            applied=outcome.applied,
            failed=outcome.failed,
        ),
    )
    if outcome.failed:
        raise SettingNotConfirmedError(row.session_id, outcome.failed)
    if outcome.applied:
        await recorder.update(session, **_columns(outcome.applied))
    return outcome.text


def _columns(applied: Mapping[str, Any]) -> dict[str, Any]:
    names = {MODE: "agent_mode", MODEL: "model", VARIANT: "variant"}
    return {names[name]: value for name, value in applied.items() if name in names}


async def _call(step: Call, client: AgentClient, session: RecordedSession, context: SessionContext) -> None:
    before = session.row.last_envelope
    try:
        await perform(step, client, session, context)
    except ProblemError as error:
        if not isinstance(step, OpenSession) or client.alive:
            raise
        raise NativeRestoreLostError(f"{client.agent} exited in {step.method}: {error}") from error
    if step.refusal is not None:
        error = step.refusal.error
        if not step.may_fail and error is not None:
            raise refused(client.agent, step.method, error) if isinstance(error, AcpRpcError) else error
    elif isinstance(step, OpenSession):
        client.native_id = step.opens
        await context.recorder.flush()
        rows = await context.store.newest_envelopes(session.row.key, limit=REPLAY_ENVELOPES)
        step.reported = _read_reported(
            [row for row in rows if row.index > before and row.sender == "agent"], session.row
        )
    elif step.method == "session/new":
        client.native_id = native_id_of(client.agent, step.result)


def _read_reported(rows: Sequence[EnvelopeRow], row: SessionRow) -> ReportedHistory:
    reported, retelling = ReportedHistory(), Retelling()
    retelling.begin()
    undecided: list[dict[str, Any]] = []
    for event in history(row, rows):
        if "method" not in event.payload:
            break  # the response
        update = members(members(event.payload.get("params")).get("update"))
        kind: object = update.get("sessionUpdate")
        verdict = retelling.classify(kind) if isinstance(kind, str) else "news"
        if verdict == "undecided":
            undecided.append(update)
        elif verdict == "past":
            for each in (*undecided, update):
                reported.add(each)
            undecided = []
    return reported


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
