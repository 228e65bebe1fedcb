"""Reads a session's events, each once and in order, and detects missing ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

import httpx2
import msgspec

from sandbox_agent.client.feed import parse_event_data
from sandbox_agent.client.server_sessions.calls import decode
from sandbox_agent.engine.sse import SseEvent
from sandbox_agent.errors import GoneError, SandboxAgentError
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, loads, replace_surrogates
from sandbox_agent.wire.serial import Serializable
from sandbox_agent.wire.sessions import EventsResponse
from sandbox_agent.wire.universal import AgentEvent, decode_event

logger: logging.Logger = logging.getLogger("sandbox_agent.client")


class SequenceGapError(Exception):
    """A stream skipped events without a gap event: it is read again from before them."""


class EventCursor:
    """Receives server-sent events and returns universal events, each once and in order.

    Args:
        session_id: the session.
        sequence: the event after which to begin; None begins with the first event received.
        allow_gaps: skip events that the server no longer has.

    Attributes:
        sequence: the last event that was returned; None before the first if no start was given.
    """

    def __init__(self, session_id: str, sequence: int | None, *, allow_gaps: bool = False) -> None:
        self.sequence = sequence
        self._session_id = session_id
        self._allow_gaps = allow_gaps

    def accept(self, received: Sequence[SseEvent]) -> list[AgentEvent]:
        """Return the new events among those received.

        Raises:
            GoneError: the server no longer has the next events (``extensions`` has their range), or the
                session has fewer events than were read: it is another session of that id.
            SequenceGapError: an event is missing and the server sent no gap event.
        """
        before = self.sequence
        new: list[AgentEvent] = []
        try:
            for event in received:
                self._accept(event, new)
        except Exception:
            # The events before the error are not returned, so they have to be read again.
            self.sequence = before
            raise
        return new

    def _accept(self, event: SseEvent, new: list[AgentEvent]) -> None:
        if event.event == "message":
            self._accept_message(event.data, new)
        elif event.event == "gap":
            self._accept_gap(parse_event_data(event.data))
        elif event.event == "reset":
            raise GoneError(
                f"session '{self._session_id}' has no event {self.sequence}: it was deleted and created "
                "again, or this is another server; read it from the beginning",
                lastSequence=parse_event_data(event.data).get("lastSequence"),
            )
        else:
            logger.info("session %s: unknown stream event %r", self._session_id, event.event)

    def _accept_message(self, data: bytes, new: list[AgentEvent]) -> None:
        event = read_event(data)
        if self.sequence is not None:
            if event.sequence <= self.sequence:
                return
            if event.sequence > self.sequence + 1:
                raise SequenceGapError(f"event {event.sequence} came after {self.sequence}")
        self.sequence = event.sequence
        new.append(event)

    def _accept_gap(self, params: dict[str, object]) -> None:
        begin, end = params.get("from"), params.get("to")
        if not isinstance(begin, int) or not isinstance(end, int):
            raise SandboxAgentError(f"session '{self._session_id}': invalid gap event {params!r}")
        if self.sequence is not None:
            begin = self.sequence + 1
        if end < begin:
            return
        if not self._allow_gaps:
            raise GoneError(
                f"session '{self._session_id}': events {begin} to {end} are gone; "
                f"continue from offset {end}, or allow gaps",
                missingFrom=begin,
                missingTo=end,
                firstSequence=end + 1,
            )
        logger.warning("session %s: events %d to %d are gone", self._session_id, begin, end)
        self.sequence = end


def read_event(data: bytes) -> AgentEvent:
    """Decode an event. Half of a surrogate pair is U+FFFD in its data, and unchanged in ``raw``.

    Raises:
        SandboxAgentError: the event is invalid.
    """
    try:
        event = decode_event(data)
        if rb"\ud" not in data:
            return event
        text = replace_surrogates(json.dumps(loads(data), ensure_ascii=False))
        return msgspec.structs.replace(event, data=decode_event(text.encode()).data)
    except (InvalidEnvelopeError, msgspec.ValidationError) as error:
        raise SandboxAgentError(
            f"the server sent an invalid event ({error}): is that a sandbox-agent server?"
        ) from error


class EventPage(Serializable, msgspec.Struct, frozen=True, rename="camel"):
    """A page of a session's events; ``has_more`` says whether more follow."""

    events: list[AgentEvent]
    has_more: bool


def read_page(answer: httpx2.Response, what: str) -> EventPage:
    """Decode a page of events; raises as ``decode``."""
    page = decode(answer, EventsResponse, what)
    return EventPage([read_event(bytes(raw)) for raw in page.events], page.has_more)
