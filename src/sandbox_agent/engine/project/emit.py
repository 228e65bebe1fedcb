"""Creates the events of a session: assigns each its sequence, ids and time."""

from __future__ import annotations

from typing import Any

import msgspec

from sandbox_agent.engine.project.state import State
from sandbox_agent.wire.universal import (
    ContentPart,
    EventData,
    EventSource,
    EventType,
    ItemDeltaData,
    ItemEventData,
    ItemKind,
    ItemRole,
    ItemStatus,
    UniversalEvent,
    UniversalItem,
    event_time,
)


class Emitter:
    """Collects the events of one input. Ids are built from the session id and the sequence only."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._prefix = f"evt_{state.session_id}_"
        self._time = ""
        self._time_ms: int | None = None
        self._second: int | None = None
        self._to_second = ""
        self.events: list[UniversalEvent] = []

    def begin(self, time_ms: int) -> list[UniversalEvent]:
        """Start the list of events of the next input and return it."""
        if time_ms != self._time_ms:
            self._time_ms = time_ms
            second = time_ms // 1000
            if second != self._second:
                # Formatting a date costs more than the rest of a chunk: do it once per second.
                self._second = second
                self._to_second = event_time(time_ms)[:-4]
            self._time = f"{self._to_second}{time_ms % 1000:03d}Z"
        events: list[UniversalEvent] = []
        self.events = events
        return events

    def next_id(self, prefix: str) -> str:
        """Return an id for the subject of the next event, unique in the session."""
        return f"{prefix}_{self._state.sequence + 1}"

    def event(
        self, kind: EventType, data: EventData, source: EventSource = "agent", *, raw: Any = msgspec.UNSET
    ) -> None:
        """Append an event. The sequence is allocated here. Events of the server are synthetic."""
        state = self._state
        state.sequence = sequence = state.sequence + 1
        self.events.append(
            UniversalEvent(
                f"{self._prefix}{sequence}",
                sequence,
                self._time,
                state.session_id,
                source,
                source == "daemon",
                kind,
                data,
                state.native_session_id,
                raw,
            )
        )

    def delta(
        self, item_id: str, text: str, native_id: str | None = None, source: EventSource = "agent"
    ) -> None:
        """Append a text delta of an item."""
        self.event("item.delta", ItemDeltaData(item_id, text, native_id), source)

    def start(
        self,
        item_id: str,
        kind: ItemKind,
        role: ItemRole | None,
        content: list[ContentPart],
        *,
        native_id: str | None = None,
        parent_id: str | None = None,
        source: EventSource = "daemon",
    ) -> None:
        """Append the start of an item."""
        item = UniversalItem(item_id, kind, content, "in_progress", role, native_id, parent_id)
        self.event("item.started", ItemEventData(item), source)

    def complete(
        self,
        item_id: str,
        kind: ItemKind,
        role: ItemRole | None,
        content: list[ContentPart],
        *,
        status: ItemStatus = "completed",
        native_id: str | None = None,
        parent_id: str | None = None,
        source: EventSource = "daemon",
    ) -> None:
        """Append the completion of an item, with its whole content."""
        item = UniversalItem(item_id, kind, content, status, role, native_id, parent_id)
        self.event("item.completed", ItemEventData(item), source)
