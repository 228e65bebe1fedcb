"""The demo's count: what was sent, what is stored, what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sandbox_agent.wire.records import SessionEvent

__all__ = ["Count"]


class Count(NamedTuple):
    """The agent's envelopes of one session, three times.

    Attributes:
        sent: as the servers put them on their streams.
        stored: as the store has them.
        seen: as a reader saw them.
        numbered: whether the store's indexes are contiguous from 1.
    """

    sent: Sequence[bytes]
    stored: Sequence[bytes]
    seen: Sequence[bytes]
    numbered: bool

    @classmethod
    def of(cls, sent: Sequence[bytes], stored: Sequence[SessionEvent], seen: Sequence[SessionEvent]) -> Count:
        """Count; the client's own events are in the store and were seen, and are left aside."""
        return cls(
            sent,
            [event.payload_json for event in stored if event.sender == "agent"],
            [event.payload_json for event in seen if event.sender == "agent"],
            [event.event_index for event in stored] == list(range(1, len(stored) + 1)),
        )

    @property
    def agrees(self) -> bool:
        """Whether the three are the same bytes in the same order."""
        return self.numbered and list(self.sent) == list(self.stored) == list(self.seen)
