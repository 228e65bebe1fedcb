"""From a session's history to the text that tells a new agent session what was before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from sandbox_agent.engine.restore.retelling import OPENING_METHODS, Retelling
from sandbox_agent.engine.restore.window import has_room, window_start
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError
from sandbox_agent.wire.members import elements, members
from sandbox_agent.wire.records import SessionEvent

__all__ = ["CLOSING", "OPENING", "Replay", "build_replay", "is_replay_title"]

OPENING = "<conversation_history>"
CLOSING = "</conversation_history>"
_INTRODUCTION = (
    "This conversation began earlier, in a session that was lost. What was said and done so far, oldest "
    "first, is between the tags. Use it as context for the message that follows; don't repeat or answer it."
)
# How the TypeScript SDK's replays begin: it stores them as if the user had said them.
_PEER_OPENING = "Previous session history is replayed below as JSON-RPC envelopes."
# Between two entries, and the line that says what is left out: kept free in the budget.
_SEPARATOR = "\n\n"
# The longest outcome of a tool call that is told in full.
_MAX_OUTCOME = 2_000
# Where agents put a tool's text that they don't give as content, best first.
_OUTPUT_MEMBERS = ("output", "content", "text", "formatted_output", "stdout", "error", "message")


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


class _Entry:
    """One thing that was said or done, and the events that it is made of.

    ``first`` is the position of its first event in the tail: when it is cut off, so is all before it.
    """

    def __init__(self, first: int, role: str, text: str) -> None:
        self.first = first
        self.role = role
        # Chunks of one speaker: joined at the end, they may be many.
        self.parts = [text]
        self.status = ""
        self.outcome = ""

    @property
    def text(self) -> str:
        if len(self.parts) > 1:
            self.parts = ["".join(self.parts)]
        return self.parts[0]

    @text.setter
    def text(self, text: str) -> None:
        self.parts = [text]

    def render(self) -> str:
        if self.role != "Tool":
            return f"{self.role}: {self.text.strip()}"
        line = f"Tool: {self.text}" + (f" [{self.status}]" if self.status else "")
        return line + (f"\n{self.outcome}" if self.outcome else "")


def build_replay(tail: Sequence[SessionEvent], total: int, *, max_events: int, max_chars: int) -> Replay:
    """Return the newest history that fits.

    Args:
        tail: the newest events, oldest of them first; what an agent told again in it counts and says
            nothing.
        total: how many events the history has.
        max_events: at most so many events are replayed, the pieces of a text counted as one
            (``window_start``).
        max_chars: at most so many characters are in the text, its frame included.
    """
    events = tail[window_start(tail, max_events) :]
    entries = _read(events, is_cut=total > len(events))
    if not entries:
        return Replay(None, len(events), max(total - len(events), 0))
    frame = len(_INTRODUCTION) + len(OPENING) + len(CLOSING) + 4
    # The line is longest when everything is left out.
    budget = max_chars - frame - len(_left_out_line(total)) - len(_SEPARATOR)
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
    lines = [_left_out_line(left_out)] if left_out else []
    body = _SEPARATOR.join([*lines, *reversed(kept)])
    return Replay(f"{_INTRODUCTION}\n{OPENING}\n{body}\n{CLOSING}", replayed, left_out)


def needs_older(tail: Sequence[SessionEvent], total: int, *, max_events: int, max_chars: int) -> bool:
    """Return whether the replay has room for older events than these; the arguments are build_replay's."""
    if len(tail) >= total or max_events < 1 or not has_room(tail, max_events):
        return False
    entries = _read(tail, is_cut=True)
    return sum(len(entry.render()) + len(_SEPARATOR) for entry in entries) < max_chars


def _left_out_line(count: int) -> str:
    return f"[{count} earlier events are left out]"


def is_replay_title(title: str) -> bool:
    """Whether an agent named its session after a replay that was in front of its first prompt."""
    return title.startswith(_INTRODUCTION[:30])


def _read(events: Sequence[SessionEvent], *, is_cut: bool) -> list[_Entry]:
    reader = _Reader()
    for position, event in enumerate(events):
        try:
            payload = cast("object", event.payload)
        except InvalidEnvelopeError:
            continue
        if isinstance(payload, dict):
            reader.take(position, event.sender, cast("dict[str, Any]", payload))
    entries = reader.entries
    for entry in entries:
        if entry.role == "Assistant":
            entry.text = _without_replay(entry.text, is_cut=is_cut and entry is entries[0])
    return [entry for entry in entries if entry.text.strip()]


class _Reader:
    """Turns envelopes into entries: chunks of one speaker are joined, a tool call is one entry."""

    def __init__(self) -> None:
        self.entries: list[_Entry] = []
        self._tools: dict[str, _Entry] = {}
        self._plan: _Entry | None = None
        self._retelling = Retelling()
        self._opening: object = None

    def take(self, position: int, sender: str, payload: dict[str, Any]) -> None:
        method: object = payload.get("method")
        params = members(payload.get("params"))
        if method == "session/prompt":
            self._plan = None
            self._retelling.end()
            self.entries.append(_Entry(position, "User", _prompt_text(params.get("prompt"))))
        elif method == "session/update":
            update = members(params.get("update"))
            kind: object = update.get("sessionUpdate")
            if not self._retelling.is_past(kind if isinstance(kind, str) else None):
                self._take_update(position, update)
        elif method in OPENING_METHODS and sender == "client":
            self._opening = payload.get("id")
            self._retelling.begin()
        elif method is None and sender == "agent" and self._opening == payload.get("id"):
            self._opening = None
            if payload.get("error") is None:
                self._retelling.answer()
            else:
                self._retelling.end()

    def _take_update(self, position: int, update: dict[str, Any]) -> None:
        kind: object = update.get("sessionUpdate")
        if kind == "agent_message_chunk":
            self._say(position, _block_text(update.get("content")))
        elif kind in {"tool_call", "tool_call_update"}:
            self._tool(position, update)
        elif kind == "plan":
            self._take_plan(position, update)

    def _say(self, position: int, text: str) -> None:
        last = self.entries[-1] if self.entries else None
        if last is not None and last.role == "Assistant":
            last.parts.append(text)
        else:
            self.entries.append(_Entry(position, "Assistant", text))

    def _tool(self, position: int, update: dict[str, Any]) -> None:
        call_id = str(update.get("toolCallId"))
        entry = self._tools.get(call_id)
        if entry is None:
            entry = self._tools[call_id] = _Entry(position, "Tool", call_id)
            self.entries.append(entry)
        title: object = update.get("title")
        if isinstance(title, str) and title:
            entry.text = title
        status: object = update.get("status")
        if isinstance(status, str):
            entry.status = status
        outcome = _outcome(update) or (_output(update.get("rawOutput")) if not entry.outcome else "")
        if outcome:
            entry.outcome = outcome

    def _take_plan(self, position: int, update: dict[str, Any]) -> None:
        entries = [members(item) for item in elements(update.get("entries"))]
        text = "".join(
            f"\n- [{item.get('status') or 'pending'}] {item.get('content') or ''}" for item in entries
        )
        if self._plan is None:
            self._plan = _Entry(position, "Plan", text)
            self.entries.append(self._plan)
        else:
            self._plan.text = text


def _outcome(update: dict[str, Any]) -> str:
    parts: list[str] = []
    for item in map(members, elements(update.get("content"))):
        if item.get("type") == "content":
            parts.append(_block_text(item.get("content")))
        elif item.get("type") == "diff":
            parts.append(f"(changed {item.get('path')})")
    return _shortened("\n".join(part for part in parts if part))


def _output(raw: object) -> str:
    if isinstance(raw, str):
        return _shortened(raw)
    output = members(raw)
    texts = (output.get(name) for name in _OUTPUT_MEMBERS)
    return _shortened(next((text for text in texts if isinstance(text, str) and text.strip()), ""))


def _shortened(outcome: str) -> str:
    text = outcome.strip()
    return text if len(text) <= _MAX_OUTCOME else text[:_MAX_OUTCOME] + "…"


def _prompt_text(blocks: object) -> str:
    texts = [_block_text(block) for block in elements(blocks)]
    if len(texts) > 1:
        # The other SDK's replay is a block of its own.
        texts = [text for text in texts if not text.startswith(_PEER_OPENING)]
    return _without_replay("\n".join(text for text in texts if text))


def _block_text(block: object) -> str:
    content = members(block)
    kind: object = content.get("type")
    if kind == "text":
        text: object = content.get("text")
        return text if isinstance(text, str) else ""
    if kind == "resource_link":
        return f"[{content.get('name') or 'file'}: {content.get('uri')}]"
    if kind == "resource":
        return f"[{members(content.get('resource')).get('uri')}]"
    return f"[{kind}]" if isinstance(kind, str) else ""


def _without_replay(text: str, *, is_cut: bool = False) -> str:
    end = text.find(CLOSING)
    if is_cut and end >= 0 and OPENING not in text[:end]:
        # The history that is read begins in the middle of it.
        text = text[end + len(CLOSING) :]
    while (start := text.find(OPENING)) >= 0:
        before = text[:start].removesuffix("\n")
        end = text.find(CLOSING, start)
        if end >= 0:
            text = before.removesuffix(_INTRODUCTION) + text[end + len(CLOSING) :]
        elif before.endswith(_INTRODUCTION):
            text = before.removesuffix(_INTRODUCTION)
        else:
            break  # someone speaks of it
    if text.startswith(_PEER_OPENING):
        # Its lines are JSON; what the user said follows the last of them.
        lines = text.splitlines()
        text = "\n".join(line for line in lines[1:] if not line.startswith(("{", "[history truncated]")))
    return text
