"""From a session's history to the text that tells an agent session what was before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sandbox_agent.engine.restore.entries import read_entries
from sandbox_agent.engine.restore.frame import framed
from sandbox_agent.engine.restore.window import has_room, window_start
from sandbox_agent.wire.records import SessionEvent

# Between two entries, and the lines that say what is not told: kept free in the budget.
_SEPARATOR = "\n\n"
_KNOWN_LINE = "[what was before that is in this session's own history]"


class Replay(NamedTuple):
    """What is put in front of the next prompt.

    Attributes:
        text: the text block, or None where there is nothing to tell.
        replayed: how many of the newest events it covers, those that say nothing included.
        left_out: how many older events it does not.
    """

    text: str | None
    replayed: int
    left_out: int


def build_replay(
    tail: Sequence[SessionEvent], total: int, *, max_events: int, max_chars: int, continues: bool = False
) -> Replay:
    """Return the newest history that fits.

    Args:
        tail: the newest events, oldest of them first; what an agent told again in it counts and says
            nothing.
        total: how many events there are to tell.
        max_events: at most so many events are replayed, the pieces of a text counted as one
            (``window_start``).
        max_chars: at most so many characters are in the text, its frame included.
        continues: whether the agent session has what was before them.
    """
    events = tail[window_start(tail, max_events) :]
    entries = read_entries(events, is_cut=total > len(events))
    if not entries:
        return Replay(None, len(events), max(total - len(events), 0))
    lines = [_KNOWN_LINE] if continues else []
    # The line is longest when everything is left out.
    around = _SEPARATOR.join([*lines, _left_out_line(total), ""])
    budget = max_chars - len(framed(around))
    kept: list[str] = []
    covered_from = len(events)
    for position in range(len(entries) - 1, -1, -1):
        rendered = entries[position].render()
        room = budget - len(_SEPARATOR) * bool(kept)
        if len(rendered) > room:
            # The newest entry alone is over the budget: its end is what counts.
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
    return Replay(framed(_SEPARATOR.join([*lines, *reversed(kept)])), replayed, left_out)


def needs_older(tail: Sequence[SessionEvent], total: int, *, max_events: int, max_chars: int) -> bool:
    """Return whether the replay has room for older events than these; the arguments are build_replay's."""
    if len(tail) >= total or max_events < 1 or not has_room(tail, max_events):
        return False
    entries = read_entries(tail, is_cut=True)
    return sum(len(entry.render()) + len(_SEPARATOR) for entry in entries) < max_chars


def _left_out_line(count: int) -> str:
    return f"[{count} earlier events are left out]"
