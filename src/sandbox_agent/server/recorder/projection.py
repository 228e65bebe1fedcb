"""One session's envelopes into rows. An event gets its sequence in ``engine.project.emit``."""

from __future__ import annotations

import copy
import logging
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from sandbox_agent.engine.project import Projector
from sandbox_agent.engine.route import Reply
from sandbox_agent.persist.store import (
    LARGE_BYTES,
    EnvelopeRow,
    EventRow,
    PermissionRow,
    SessionRow,
    SnapshotRow,
    TextRow,
    TurnRow,
)
from sandbox_agent.server.log_context import log_fields
from sandbox_agent.server.permissions.policies import expiry_of
from sandbox_agent.server.recorder.hints import with_hints
from sandbox_agent.server.recorder.rows import (
    Row,
    ended_turn,
    permission_row,
    read_prompt,
    request_id_of,
    searchable,
)
from sandbox_agent.server.recorder.session_metadata import SessionMetadata
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

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# A session that is opened projects at most so many envelopes again.
SNAPSHOT_ENVELOPES = 2000
# A clock that is set back by more was ahead: the session returns to the real time.
CLOCK_STEP_MS = 60_000

# The member of a snapshot that has the large envelopes.
REPEATS = "repeats"
# So many different ones are known.
MAX_REPEATS = 16

# Stands for the envelope of events that were made without one.
_NO_ENVELOPE = EnvelopeRow(key=0, index=0, time=0, sender="client", connection_id="", data=b"")


class Repeats:
    """The large envelopes of a session: agents send some of them again and again.

    Attributes:
        newest: the index of the newest envelope with a content, by the content's size and checksum.
    """

    def __init__(self, newest: Mapping[str, int] | None = None) -> None:
        self.newest: dict[str, int] = dict(newest or {})

    def add(self, line: bytes, index: int) -> int:
        """Add an envelope; return an earlier one that is most likely the same, or 0."""
        if len(line) < LARGE_BYTES:
            return 0
        name = f"{len(line)}-{zlib.crc32(line):08x}"
        same_as = self.newest.pop(name, 0)
        self.newest[name] = index
        if len(self.newest) > MAX_REPEATS:
            del self.newest[next(iter(self.newest))]
        return same_as


class Projection:
    """What the recorder remembers of an open session. It returns rows and keeps none of them.

    Attributes:
        row: the session's, as of the newest envelope; ahead of the stored one.
        projector: makes the universal events.
        time_ms: of the newest row.
        turns: those that run, by id, and those of a message that is about to be sent.
        requests: permissions and questions without an answer, by id.
        repeats: the large envelopes.
        turn_number: of the newest turn.
    """

    def __init__(
        self, row: SessionRow, projector: Projector, *, time_ms: int = 0, turn_number: int = 0
    ) -> None:
        self.row = row
        self.projector: Projector = projector
        self.time_ms: int = time_ms
        self.turns: dict[str, TurnRow] = {}
        self.requests: dict[str, PermissionRow] = {}
        self.turn_number: int = turn_number
        self.repeats: Repeats = Repeats()
        self._metadata = SessionMetadata(row)
        self._since_snapshot = 0
        self._snapshot_due = False

    def next_time(self, time_ms: int) -> int:
        """Return the time of the next row. It goes back only if the clock was ahead and was set right."""
        if time_ms < self.time_ms <= time_ms + CLOCK_STEP_MS:
            return self.time_ms
        self.time_ms = time_ms
        return time_ms

    def add_envelope(
        self,
        sender: Sender,
        line: bytes,
        time_ms: int,
        connection_id: str,
        *,
        subject_id: str | None = None,
        client: str | None = None,
    ) -> list[Row]:
        """Return the rows of an envelope: its own, and those of the events that it makes."""
        row = self.row
        time_ms = self.next_time(time_ms)
        row.last_envelope = index = row.last_envelope + 1
        same_as = self.repeats.add(line, index)
        envelope = EnvelopeRow(row.key, index, time_ms, sender, connection_id, line, same_as)
        rows: list[Row] = [envelope]
        self._since_snapshot += 1
        try:
            events = self.projector.feed(sender, line, time_ms, subject_id=subject_id, by=client)
        except Exception:  # the boundary: a bug in one session's projection must not end the others
            with log_fields(session_id=row.session_id, connection_id=connection_id):
                logger.exception("envelope %d of session %s can't be projected", index, row.session_id)
            events = self._recover(time_ms, index)
        if events:
            self._add(rows, with_hints(events, row.agent), time_ms, envelope, client)
        return rows

    def add_events(self, events: Sequence[UniversalEvent], time_ms: int) -> list[Row]:
        """Return the rows of events that the projector made without an envelope, if any."""
        # Projecting the envelopes again would not make them.
        self._snapshot_due = True
        rows: list[Row] = []
        if events:
            self._add(rows, events, time_ms, _NO_ENVELOPE, None)
        return rows

    def add_reply(self, reply: Reply, line: bytes) -> None:
        """Update the session's row by the response to a request that created, opened or changed it."""
        self._metadata.add_reply(reply, line)

    def state_rows(self) -> list[Row]:
        """Return the session's own row as it is now, and its snapshot if one is due.

        They complete the rows that were returned since the last call, and belong into their transaction.
        """
        row = self.row
        rows: list[Row] = [copy.copy(row)]
        if self._snapshot_due or self._since_snapshot > SNAPSHOT_ENVELOPES:
            self._snapshot_due = False
            self._since_snapshot = 0
            try:
                data = dumps({**self.projector.snapshot(), REPEATS: self.repeats.newest})
            except Exception:  # the boundary: the older snapshot still works, with more to project again
                logger.exception("no snapshot of session %s can be made", row.session_id)
            else:
                rows.append(SnapshotRow(row.key, row.last_envelope, row.last_sequence, data))
        return rows

    def _add(
        self,
        rows: list[Row],
        events: Sequence[UniversalEvent],
        time_ms: int,
        envelope: EnvelopeRow,
        client: str | None,
    ) -> None:
        key, index = self.row.key, envelope.index
        for event in events:
            kind = event.type
            rows.append(EventRow(key, event.sequence, time_ms, kind, index, encode_event(event)))
            if kind != "item.delta":
                detail = self._detail_row(event, time_ms, envelope, client)
                if detail is not None:
                    rows.append(detail)
        self.row.last_sequence = events[-1].sequence
        self.row.updated_at = time_ms

    def _detail_row(
        self, event: UniversalEvent, time_ms: int, envelope: EnvelopeRow, client: str | None
    ) -> Row | None:
        """Return the row of the text, turn or request that an event is about; update the session's own."""
        data = event.data
        if isinstance(data, ItemEventData):
            if event.type == "item.completed":
                if data.item.kind == "status":
                    self._metadata.add_status(data.item, self.turns)
                elif text := searchable(data.item):
                    return TextRow(self.row.key, event.sequence, time_ms, text)
        elif isinstance(data, TurnEventData):
            if data.turn_id is not None:
                if event.type == "turn.started":
                    return self._start_turn(data.turn_id, event.sequence, time_ms, envelope.data)
                return self._end_turn(data.turn_id, data, event.sequence, time_ms)
        elif isinstance(data, PermissionEventData | QuestionEventData):
            return self._update_request(data, event.sequence, time_ms, envelope.connection_id, client)
        elif event.type == "session.ended":
            self.row.ended = True
        return None

    def _start_turn(self, turn_id: str, sequence: int, time_ms: int, line: bytes) -> TurnRow:
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
        self._metadata.start_turn(turn_id)
        return turn

    def _end_turn(self, turn_id: str, data: TurnEventData, sequence: int, time_ms: int) -> TurnRow | None:
        self._snapshot_due = True
        turn = self.turns.pop(turn_id, None)
        if turn is None:
            return None
        return self._metadata.end_turn(ended_turn(turn, data, sequence, time_ms), data)

    def _update_request(
        self,
        data: PermissionEventData | QuestionEventData,
        sequence: int,
        time_ms: int,
        connection_id: str,
        client: str | None,
    ) -> PermissionRow | None:
        name = request_id_of(data)
        if data.status != "requested":
            request = self.requests.pop(name, None)
            return request and msgspec.structs.replace(
                request, answered=data.status, answered_at=time_ms, answered_by=client
            )
        is_permission = isinstance(data, PermissionEventData)
        projector = self.projector
        pending = projector.pending_permissions if is_permission else projector.pending_questions
        rpc_id = pending.get(name, "null").encode()
        request = permission_row(self.row.key, data, rpc_id, connection_id, sequence, time_ms)
        request.expires_at = expiry_of(self.row, time_ms)
        self.requests[name] = request
        return request

    def _recover(self, time_ms: int, index: int) -> list[UniversalEvent]:
        """Continue after an envelope that the projector failed on, without a hole in the sequence."""
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
