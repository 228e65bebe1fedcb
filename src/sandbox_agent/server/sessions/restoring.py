"""A session whose agent is gone goes on in a new process: by the agent's own means, else by a replay."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sandbox_agent.engine.restore import build_replay
from sandbox_agent.errors import AcpRpcError, ProblemError
from sandbox_agent.persist.store import EnvelopeRow, SessionRow, SessionStore
from sandbox_agent.server.sessions.link import AgentLink, refused
from sandbox_agent.server.sessions.requests import settings_of
from sandbox_agent.server.sessions.settings import MODE, MODEL, VARIANT, AgentSettings
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError
from sandbox_agent.wire.records import SessionEvent

if TYPE_CHECKING:
    from sandbox_agent.server.recorder.live import LiveSession
    from sandbox_agent.server.recorder.recorder import Recorder

__all__ = ["REPLAY_CHARS", "REPLAY_ENVELOPES", "history", "restore"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# How much of the newest history goes in front of a prompt: what a model reads at once, and the envelopes
# that are looked through for it (agents send a text in many).
REPLAY_CHARS = 12_000
REPLAY_ENVELOPES = 2_000
# ACP's "resource not found": an agent that does not know the session need not be asked twice.
_NOT_FOUND = -32002


async def restore(link: AgentLink, live: LiveSession, recorder: Recorder, store: SessionStore) -> str | None:
    """Open the session in a fresh agent, and return the text to put in front of its next prompt, if any.

    Raises:
        ProblemError: the agent refuses even a new session, or is gone.
        PersistError: the history can't be read.
    """
    await recorder.settle(live)
    row = live.row
    wanted = {MODE: row.agent_mode, MODEL: row.model, VARIANT: row.variant}
    given = settings_of(row)
    cwd = row.directory or os.getcwd()  # noqa: PTH109 - a string goes out
    mcp_servers = given.mcp_servers or []
    if row.native_session_id:
        opened = await _reopen(link, row.native_session_id, cwd, mcp_servers)
        if opened is not None:
            method, result = opened
            settings = AgentSettings(link, result)
            failed = await _set_again(settings, wanted) if settings.known else {}
            if failed:  # else the projector has told all by itself
                await recorder.apply(live, lambda p, t: p.restored(t, method=method, failed=failed))
            return None
    rows = await store.newest_envelopes(row.key, limit=REPLAY_ENVELOPES)
    replay = build_replay(
        history(row, rows), row.last_envelope, max_events=REPLAY_ENVELOPES, max_chars=REPLAY_CHARS
    )
    try:
        result = await link.new_session(cwd, mcp_servers)
    except AcpRpcError as error:
        raise refused(link.agent, "session/new", error) from error
    failed = await _set_again(AgentSettings(link, result), wanted)
    await recorder.apply(
        live,
        lambda p, t: p.restored(
            t, method="replay", replayed=replay.replayed, left_out=replay.left_out, failed=failed or None
        ),
    )
    return replay.text


async def _reopen(
    link: AgentLink, native_id: str, cwd: str, mcp_servers: list[dict[str, Any]]
) -> tuple[str, dict[str, Any]] | None:
    params = {"sessionId": native_id, "cwd": cwd, "mcpServers": mcp_servers}
    for method in link.restoring_methods():
        try:
            result = await link.call(method, params)
        except AcpRpcError as error:
            logger.info("agent %s: %s of %s failed: %s", link.agent, method, native_id, error)
            if error.code == _NOT_FOUND:
                return None
        else:
            link.native_id = native_id
            return method, result
    return None


async def _set_again(settings: AgentSettings, wanted: dict[str, str | None]) -> dict[str, str]:
    failed: dict[str, str] = {}
    for category, value in wanted.items():
        if not value:
            continue
        try:
            await settings.set(category, value)
        except ProblemError as error:
            if (error.status or 500) >= 500:
                raise
            failed[category] = str(error)
    return failed


def history(row: SessionRow, rows: Sequence[EnvelopeRow]) -> list[SessionEvent]:
    """Return envelopes as a replay reads them, without what agents told again when they loaded a session."""
    events: list[SessionEvent] = []
    loading: object = None
    for each in rows:
        event = SessionEvent(
            "", each.index, row.session_id, each.time, each.connection_id, each.sender, each.data
        )
        try:
            payload = event.payload
        except InvalidEnvelopeError:
            continue  # nothing that was said
        method = payload.get("method")
        if each.sender == "client":
            if method == "session/load":
                loading = payload.get("id")
            elif method == "session/prompt":
                loading = None
        elif loading is not None:
            if method is None and payload.get("id") == loading:
                loading = None
            elif method == "session/update":
                continue
        events.append(event)
    return events
