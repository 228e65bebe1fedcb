"""Builds the replay: the newest history as text in front of the next prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sandbox_agent.engine.restore.history import CLOSING, INTRODUCTION, OPENING, read_entries
from sandbox_agent.engine.restore.load_phase import PRESENT_UPDATES
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, members
from sandbox_agent.wire.records import SessionEvent

_SEPARATOR = "\n\n"
_KNOWN_LINE = "[what was before that is in this session's own history]"


class Replay(NamedTuple):
    """The text in front of the next prompt.

    Attributes:
        text: the text block, or None if there is nothing to replay.
        replayed: the number of newest events that it covers, including those without text.
        left_out: the number of older events.
    """

    text: str | None
    replayed: int
    left_out: int


def build_replay(
    tail: Sequence[SessionEvent], total: int, *, max_events: int, max_chars: int, continues: bool = False
) -> Replay:
    """Return the newest history that fits.

    Args:
        tail: the newest events, oldest first; history that an agent reported again is counted but has no
            text.
        total: the number of events in the history.
        max_events: the maximum number of events, with the pieces of a text counted as one
            (``window_start``).
        max_chars: the maximum number of characters of the whole text.
        continues: whether the agent session has the events before these.
    """
    events = tail[window_start(tail, max_events) :]
    entries = read_entries(events, is_cut=total > len(events))
    if not entries:
        return Replay(None, len(events), max(total - len(events), 0))
    lines = [_KNOWN_LINE] if continues else []
    # The line is longest when everything is left out.
    around = _SEPARATOR.join([*lines, _left_out_line(total), ""])
    budget = max_chars - len(_framed(around))
    kept: list[str] = []
    covered_from = len(events)
    for position in range(len(entries) - 1, -1, -1):
        rendered = entries[position].render()
        room = budget - len(_SEPARATOR) * bool(kept)
        if len(rendered) > room:
            # The newest entry alone is over the budget: keep its end.
            if not kept and room > 2:
                kept.append("…" + rendered[len(rendered) - room + 1 :])
                covered_from = entries[position].first
            break
        kept.append(rendered)
        budget = room - len(rendered)
        covered_from = 0 if position == 0 else entries[position].first
    if not kept:
        return Replay(None, 0, total)
    replayed = len(events) - covered_from
    left_out = max(total - replayed, 0)
    if left_out:
        lines.append(_left_out_line(left_out))
    return Replay(_framed(_SEPARATOR.join([*lines, *reversed(kept)])), replayed, left_out)


def needs_older(tail: Sequence[SessionEvent], total: int, *, max_events: int, max_chars: int) -> bool:
    """Return whether the replay has room for older events; arguments as in ``build_replay``."""
    if len(tail) >= total or max_events < 1 or not has_room(tail, max_events):
        return False
    entries = read_entries(tail, is_cut=True)
    return sum(len(entry.render()) + len(_SEPARATOR) for entry in entries) < max_chars


def _left_out_line(count: int) -> str:
    return f"[{count} earlier events are left out]"


def _framed(body: str) -> str:
    """Return the text block of a replay."""
    return f"{INTRODUCTION}\n{OPENING}\n{body}\n{CLOSING}"


# A text may have too many pieces to read all: at most this many stored events are read for each that counts.
EVENTS_PER_ENTRY = 40

_TEXTS = frozenset({"agent_message_chunk", "agent_thought_chunk"})
_TOOLS = frozenset({"tool_call", "tool_call_update"})


def window_start(events: Sequence[SessionEvent], count: int) -> int:
    """Return the position after which the events count as at most ``count``.

    The pieces of one text count as one event. So do the updates of one tool call, and the repeated updates of
    a state (plan, usage, title, …) in one turn.

    Args:
        events: the newest events, oldest first.
        count: the limit.
    """
    counter = _Counter()
    for position in range(len(events) - 1, -1, -1):
        counter.feed(events[position])
        if counter.count > count:
            return position + 1
    return 0


def has_room(events: Sequence[SessionEvent], count: int) -> bool:
    """Return whether an older event may still count as one of the ``count``."""
    counter = _Counter()
    for event in reversed(events):
        counter.feed(event)
        if counter.count > count:
            return False
    return counter.count < count or counter.in_text


class _Counter:
    """Counts events, the newest first."""

    def __init__(self) -> None:
        self.count = 0
        # The kind of text, the tool calls and the states that are already counted.
        self._text = ""
        self._tools: set[str] = set()
        self._states: set[str] = set()

    @property
    def in_text(self) -> bool:
        """Whether another piece of the last text would not be counted."""
        return bool(self._text)

    def feed(self, event: SessionEvent) -> None:
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
                self._states.clear()
            self.count += 1

    def _is_new(self, update: dict[str, Any]) -> bool:
        kind = update.get("sessionUpdate")
        if not isinstance(kind, str):
            return True
        if kind in _TEXTS:
            previous, self._text = self._text, kind
            return previous != kind
        if kind in PRESENT_UPDATES:
            return _add(self._states, kind)
        self._text = ""
        if kind in _TOOLS:
            return _add(self._tools, str(update.get("toolCallId")))
        return kind != "plan" or _add(self._states, kind)


def _add(known: set[str], name: str) -> bool:
    is_new = name not in known
    known.add(name)
    return is_new
