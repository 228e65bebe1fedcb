"""One session's envelopes into rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from sandbox_agent.engine.project import Projector
from sandbox_agent.persist.store import (
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SnapshotRow,
    TextRow,
    TurnRow,
)
from sandbox_agent.server.permissions.policies import expiry_of
from sandbox_agent.server.recorder.rows import (
    ask_id,
    ended_turn,
    permission_row,
    read_prompt,
    resolved_permission,
    searchable,
)
from sandbox_agent.server.recorder.session_metadata import Learner
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.records import Sender
from sandbox_agent.wire.universal import (
    ItemEventData,
    PermissionEventData,
    QuestionEventData,
    TurnEventData,
    UniversalEvent,
    encode_event,
)

if TYPE_CHECKING:
    from sandbox_agent.server.recorder.batch import Batch

__all__ = ["SNAPSHOT_ENVELOPES", "Fold"]

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# A session that is opened folds at most so many envelopes again.
SNAPSHOT_ENVELOPES = 2000


class Fold:
    """What the recorder remembers of a session that is open.

    Attributes:
        row: as of the newest envelope, before it is stored.
        projector: the session's.
        time_ms: of the newest row; time never goes back within a session.
        turns: those that run, by their id, and those of a message that is about to be sent.
        asks: what waits for an answer, by its id.
        turn_number: of the newest turn.
    """

    def __init__(
        self, row: SessionRow, projector: Projector, *, time_ms: int = 0, turn_number: int = 0
    ) -> None:
        self.row = row
        self.projector: Projector = projector
        self.time_ms: int = time_ms
        self.turns: dict[str, TurnRow] = {}
        self.asks: dict[str, PermissionRow] = {}
        self.turn_number: int = turn_number
        self.learner: Learner = Learner(row)
        self._since_snapshot = 0
        self._snapshot_due = False

    def tick(self, time_ms: int) -> int:
        """Return the time of the next row."""
        if time_ms < self.time_ms:
            return self.time_ms
        self.time_ms = time_ms
        return time_ms

    def take(
        self,
        batch: Batch,
        events_json: list[bytes],
        sender: Sender,
        line: bytes,
        time_ms: int,
        connection_id: str,
        *,
        subject_id: str | None = None,
        by: str | None = None,
    ) -> None:
        """Add an envelope's rows to the batch."""
        row = self.row
        time_ms = self.tick(time_ms)
        row.last_envelope = index = row.last_envelope + 1
        batch.changes.envelopes.append(EnvelopeRow(row.key, index, time_ms, sender, connection_id, line))
        batch.size += len(line)
        self._since_snapshot += 1
        try:
            events = self.projector.feed(sender, line, time_ms, subject_id=subject_id, by=by)
        except Exception:  # the boundary: a bug in one session's fold must not end the others
            logger.exception("envelope %d of session %s can't be projected", index, row.session_id)
            events = self._mend(time_ms, index)
        if events:
            self._put(batch, events_json, events, time_ms, index, connection_id, line, by)

    def put(
        self, batch: Batch, events_json: list[bytes], events: Sequence[UniversalEvent], time_ms: int
    ) -> None:
        """Add the rows of the events, if any, that something made that is no envelope."""
        # What is folded again from the envelopes alone would lack it.
        self._snapshot_due = True
        if events:
            self._put(batch, events_json, events, time_ms, 0, "", b"", None)

    def snapshot(self) -> SnapshotRow | None:
        """Return the row to be stored now, if one is due."""
        if not self._snapshot_due and self._since_snapshot <= SNAPSHOT_ENVELOPES:
            return None
        row = self.row
        self._snapshot_due = False
        self._since_snapshot = 0
        try:
            data = dumps(self.projector.snapshot())
        except Exception:  # the boundary: the older snapshot does, with more to fold again
            logger.exception("no snapshot of session %s can be taken", row.session_id)
            return None
        return SnapshotRow(row.key, row.last_envelope, row.last_sequence, data)

    def _put(
        self,
        batch: Batch,
        events_json: list[bytes],
        events: Sequence[UniversalEvent],
        time_ms: int,
        index: int,
        connection_id: str,
        line: bytes,
        by: str | None,
    ) -> None:
        row = self.row
        key = row.key
        rows = batch.changes.events
        for event in events:
            if event.raw is not msgspec.UNSET:
                event = msgspec.structs.replace(event, raw=msgspec.UNSET)
            data = encode_event(event)
            kind = event.type
            rows.append(EventRow(key, event.sequence, time_ms, kind, index, data))
            events_json.append(data)
            batch.size += len(data)
            if kind != "item.delta":
                self._note(batch, event, time_ms, connection_id, line, by)
        row.last_sequence = events[-1].sequence
        row.updated_at = time_ms

    def _note(
        self,
        batch: Batch,
        event: UniversalEvent,
        time_ms: int,
        connection_id: str,
        line: bytes,
        by: str | None,
    ) -> None:
        data = event.data
        changes = batch.changes
        if isinstance(data, ItemEventData):
            if event.type == "item.completed":
                if data.item.kind == "status":
                    self.learner.status(data.item, self.turns)
                elif text := searchable(data.item):
                    changes.texts.append(TextRow(self.row.key, event.sequence, time_ms, text))
        elif isinstance(data, TurnEventData) and data.turn_id is not None:
            if event.type == "turn.started":
                changes.turns.append(self._started(data.turn_id, event.sequence, time_ms, line))
            else:
                self._snapshot_due = True
                turn = self.turns.pop(data.turn_id, None)
                if turn is not None:
                    turn = ended_turn(turn, data, event.sequence, time_ms)
                    changes.turns.append(self.learner.turn_ended(turn, data))
        elif isinstance(data, PermissionEventData | QuestionEventData):
            name = ask_id(data)
            if data.status == "requested":
                request_id = self._request_id(data)
                ask = permission_row(self.row.key, data, request_id, connection_id, event.sequence, time_ms)
                ask.expires_at = expiry_of(self.row, time_ms)
                self.asks[name] = ask
                changes.permissions.append(ask)
            elif (asked := self.asks.pop(name, None)) is not None:
                changes.permissions.append(resolved_permission(asked, data, time_ms, by))
        elif event.type == "session.ended":
            self.row.ended = True

    def _started(self, turn_id: str, sequence: int, time_ms: int, line: bytes) -> TurnRow:
        turn = self.turns.get(turn_id)
        if turn is None:
            self.turn_number += 1
            turn = TurnRow(
                key=self.row.key,
                number=self.turn_number,
                turn_id=turn_id,
                state="running",
                created_at=time_ms,
                prompt=read_prompt(line),
            )
        turn = msgspec.structs.replace(turn, state="running", started_at=time_ms, first_sequence=sequence)
        self.turn_number = max(self.turn_number, turn.number)
        self.turns[turn_id] = turn
        self.learner.turn_started(turn_id)
        return turn

    def _request_id(self, data: PermissionEventData | QuestionEventData) -> bytes:
        pending = (
            self.projector.pending_permissions
            if isinstance(data, PermissionEventData)
            else self.projector.pending_questions
        )
        return pending.get(ask_id(data), "null").encode()

    def _mend(self, time_ms: int, index: int) -> list[UniversalEvent]:
        """Go on behind an envelope that the projector failed on, without a hole in the sequence."""
        row = self.row
        try:
            snapshot: dict[str, Any] = self.projector.snapshot()
            snapshot["sequence"] = row.last_sequence
            self.projector = Projector.restore(snapshot)
        except Exception:  # the boundary: what it remembers is broken, too
            logger.exception("session %s is projected from here on without what was open", row.session_id)
            self.projector = Projector(
                row.session_id,
                native_session_id=row.native_session_id,
                first_sequence=row.last_sequence + 1,
            )
        self._snapshot_due = True
        return self.projector.error(
            time_ms,
            message="an envelope of the agent could not be understood: it is kept, and the session goes on",
            code="projection_failed",
            details={"envelope": index},
        )
