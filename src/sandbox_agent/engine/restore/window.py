"""How much of the newest history a number of events covers, as its reader counts them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sandbox_agent.engine.restore.load_phase import PRESENT_UPDATES
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError
from sandbox_agent.wire.members import members
from sandbox_agent.wire.records import SessionEvent

# A text may come in so many pieces that not all of them are read: so many stored events at most for each
# that is counted.
EVENTS_PER_ENTRY = 40

_TEXTS = frozenset({"agent_message_chunk", "agent_thought_chunk"})
_TOOLS = frozenset({"tool_call", "tool_call_update"})


def window_start(events: Sequence[SessionEvent], count: int) -> int:
    """Return the position from which on the events count as no more than ``count``.

    The pieces of one text count as one event, so do the updates of one tool call, and those updates of a
    turn that tell again what is so now (plan, usage, title, …).

    Args:
        events: the newest, oldest of them first.
        count: how many.
    """
    counter = _Counter()
    for position in range(len(events) - 1, -1, -1):
        counter.take(events[position])
        if counter.count > count:
            return position + 1
    return 0


def has_room(events: Sequence[SessionEvent], count: int) -> bool:
    """Return whether an older event may still count as one of the ``count``."""
    counter = _Counter()
    for event in reversed(events):
        counter.take(event)
        if counter.count > count:
            return False
    return counter.count < count or counter.in_text


class _Counter:
    """Takes events, the newest first."""

    def __init__(self) -> None:
        self.count = 0
        # What further pieces of count for nothing.
        self._text = ""
        self._tools: set[str] = set()
        self._told: set[str] = set()

    @property
    def in_text(self) -> bool:
        """Whether a further piece of the text that was taken last counts for nothing."""
        return bool(self._text)

    def take(self, event: SessionEvent) -> None:
        try:
            payload = members(event.payload)
        except InvalidEnvelopeError:
            payload = {}
        method: object = payload.get("method")
        params = members(payload.get("params"))
        if method == "session/update":
            self.count += self._is_new(members(params.get("update")))
        else:
            if method == "session/prompt":
                self._text = ""
                self._told.clear()
            self.count += 1

    def _is_new(self, update: dict[str, Any]) -> bool:
        kind = update.get("sessionUpdate")
        if not isinstance(kind, str):
            return True
        if kind in _TEXTS:
            told, self._text = self._text, kind
            return told != kind
        if kind in PRESENT_UPDATES:
            return _add(self._told, kind)
        self._text = ""
        if kind in _TOOLS:
            return _add(self._tools, str(update.get("toolCallId")))
        return kind != "plan" or _add(self._told, kind)


def _add(known: set[str], name: str) -> bool:
    is_new = name not in known
    known.add(name)
    return is_new
