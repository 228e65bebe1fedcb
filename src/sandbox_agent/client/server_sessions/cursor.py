"""A reader's place in a session's events: lets through what is new, refuses what is missing."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from sandbox_agent.client.feed import gap_params
from sandbox_agent.engine.sse import SseEvent
from sandbox_agent.errors import GoneError, SandboxAgentError
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError
from sandbox_agent.wire.universal import UniversalEvent, decode_event

__all__ = ["HoleError", "Position", "read_event"]

logger: logging.Logger = logging.getLogger("sandbox_agent.client")


class HoleError(Exception):
    """A stream jumped without a word: it is read again from before the hole."""


class Position:
    """Takes server-sent events and gives universal events, each once and in order.

    Args:
        session_id: whose.
        sequence: the event after which it begins; None begins with whichever comes first.
        allow_gaps: go on behind events that the server no longer has.

    Attributes:
        sequence: the newest event that was given; None before the first where none was named.
    """

    def __init__(self, session_id: str, sequence: int | None, *, allow_gaps: bool = False) -> None:
        self.sequence = sequence
        self._session_id = session_id
        self._allow_gaps = allow_gaps

    def take(self, received: Sequence[SseEvent]) -> list[UniversalEvent]:
        """Return the new events among those received.

        Raises:
            GoneError: the server no longer has events that come next; ``extensions`` has the range.
                or the session has fewer events than were read: it is another one.
            HoleError: an event is missing and the server did not say so.
        """
        before = self.sequence
        fresh: list[UniversalEvent] = []
        try:
            self._take(received, fresh)
        except Exception:
            # What came with it is not given: it is read again.
            self.sequence = before
            raise
        return fresh

    def _take(self, received: Sequence[SseEvent], fresh: list[UniversalEvent]) -> None:
        for event in received:
            if event.event == "message":
                self._message(event.data, fresh)
            elif event.event == "gap":
                self._gap(gap_params(event.data))
            elif event.event == "reset":
                raise GoneError(
                    f"session '{self._session_id}' has no event {self.sequence}: it was deleted and made "
                    "anew, or another server answers; read it from the beginning",
                    lastSequence=gap_params(event.data).get("lastSequence"),
                )
            else:
                logger.info("session %s: unknown stream event %r", self._session_id, event.event)

    def _message(self, data: bytes, fresh: list[UniversalEvent]) -> None:
        event = read_event(data)
        if self.sequence is not None:
            if event.sequence <= self.sequence:
                return
            if event.sequence > self.sequence + 1:
                raise HoleError(f"event {event.sequence} came after {self.sequence}")
        self.sequence = event.sequence
        fresh.append(event)

    def _gap(self, params: dict[str, object]) -> None:
        begin, end = params.get("from"), params.get("to")
        if not isinstance(begin, int) or not isinstance(end, int):
            raise SandboxAgentError(f"session '{self._session_id}': a gap that does not say what is missing")
        if self.sequence is not None:
            begin = self.sequence + 1
        if end < begin:
            return
        if not self._allow_gaps:
            raise GoneError(
                f"session '{self._session_id}': events {begin} to {end} are gone; "
                f"read on from offset {end}, or allow gaps",
                missingFrom=begin,
                missingTo=end,
                firstSequence=end + 1,
            )
        logger.warning("session %s: events %d to %d are gone", self._session_id, begin, end)
        self.sequence = end


def read_event(data: bytes) -> UniversalEvent:
    """Decode an event.

    Raises:
        SandboxAgentError: it is none.
    """
    try:
        return decode_event(data)
    except (InvalidEnvelopeError, msgspec.ValidationError) as error:
        raise SandboxAgentError(
            f"an event of the server can't be read ({error}): is that a sandbox-agent server?"
        ) from error
