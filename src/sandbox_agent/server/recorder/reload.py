"""Loads a session from the store: its newest snapshot, and the envelopes after it projected again."""

from __future__ import annotations

import copy
import logging

import msgspec

from sandbox_agent.engine.project import Projector
from sandbox_agent.errors import PersistError
from sandbox_agent.persist.store import SessionRow, SessionStore
from sandbox_agent.server.recorder.projection import Projection
from sandbox_agent.server.recorder.rows import turn_id_of
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

PAGE_ENVELOPES = 500
# How many of the newest turns are searched for one that still runs.
TURNS = 64


class Loaded(msgspec.Struct):
    """A session's projection, ready for more envelopes.

    Attributes:
        interrupted: something was open when the server ended, and must be closed first.
        lost_turns: turns that run according to their rows, and of which the projection knows nothing.
    """

    projection: Projection
    interrupted: bool
    lost_turns: list[str]


async def load(store: SessionStore, row: SessionRow) -> Loaded:
    """Return the session's projection as it was when its newest row was stored.

    Raises:
        PersistError: the store failed.
    """
    row = copy.copy(row)
    projector, time_ms = await _project_again(store, row)
    turns = await store.turns(row.key, limit=TURNS)
    projection = Projection(
        row,
        projector,
        time_ms=max(time_ms, row.updated_at),
        turn_number=turns[-1].number if turns else 0,
    )
    known = projector.open_turns
    for turn_id in known:
        turn = await store.turn(row.key, turn_id=turn_id)
        if turn is not None:
            projection.turns[turn_id] = turn
    for name in (*projector.pending_permissions, *projector.pending_questions):
        request = await store.permission(row.key, name)
        if request is not None:
            projection.requests[name] = request
    lost = [turn for turn in turns if turn.state == "running" and turn.turn_id not in known]
    for turn in lost:
        projection.turns[turn.turn_id] = turn
    state = projector.snapshot()
    interrupted = any(state[name] for name in ("turns", "permissions", "questions", "texts", "tools"))
    return Loaded(projection, interrupted or bool(lost), [turn.turn_id for turn in lost])


async def _project_again(store: SessionStore, row: SessionRow) -> tuple[Projector, int]:
    projector: Projector | None = None
    after = 0
    time_ms = 0
    snapshot = await store.snapshot(row.key)
    if snapshot is not None:
        try:
            projector = Projector.restore(loads(snapshot.data))
            after = snapshot.envelope
        except (msgspec.ValidationError, InvalidEnvelopeError) as error:
            logger.warning("the snapshot of session %s can't be read (%s)", row.session_id, error)
    if projector is None:
        projector = Projector(row.session_id, native_session_id=row.native_session_id)
    try:
        while after < row.last_envelope:
            envelopes = await store.envelopes(row.key, after=after, limit=PAGE_ENVELOPES)
            if not envelopes:
                break
            for envelope in envelopes:
                prompted = row.managed and envelope.sender == "client"
                subject_id = turn_id_of(envelope.data) if prompted else None
                projector.feed(envelope.sender, envelope.data, envelope.time, subject_id=subject_id)
                time_ms = envelope.time
            after = envelopes[-1].index
    except PersistError:
        raise
    except Exception:  # the boundary: the session continues without what was open
        logger.exception("session %s can't be projected again", row.session_id)
    if projector.sequence != row.last_sequence:
        logger.warning(
            "session %s continues without what was open: projected again it has %d events, stored are %d",
            row.session_id,
            projector.sequence,
            row.last_sequence,
        )
        projector = Projector(
            row.session_id,
            native_session_id=row.native_session_id,
            first_sequence=row.last_sequence + 1,
        )
    return projector, time_ms
