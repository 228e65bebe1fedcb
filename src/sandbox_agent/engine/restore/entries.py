"""From a session's events to what was said and done in it, entry by entry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sandbox_agent.engine.restore.frame import PEER_OPENING, without_replay
from sandbox_agent.engine.restore.load_phase import OPENING_METHODS, Retelling
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError
from sandbox_agent.wire.members import elements, members
from sandbox_agent.wire.records import SessionEvent

# The longest outcome of a tool call that is told in full.
_MAX_OUTCOME = 2_000
# Where agents put a tool's text that they don't give as content, best first.
_OUTPUT_MEMBERS = ("output", "content", "text", "formatted_output", "stdout", "error", "message")


class Entry:
    """One thing that was said or done, and the events that it is made of.

    Attributes:
        first: the position of its first event: when it is cut off, so is all before it.
        role: "User", "Assistant", "Tool" or "Plan".
        words: of the user's, the last text that is no attachment; else the text.
        status, outcome: a tool call's.
    """

    def __init__(self, first: int, role: str, text: str, words: str | None = None) -> None:
        self.first = first
        self._words = words
        self.role = role
        # Chunks of one speaker: joined at the end, they may be many.
        self.parts: list[str] = [text]
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

    @property
    def words(self) -> str:
        return self._words if self._words is not None else self.text

    def render(self) -> str:
        """Return it as a transcript has it."""
        if self.role != "Tool":
            return f"{self.role}: {self.text.strip()}"
        line = f"Tool: {self.text}" + (f" [{self.status}]" if self.status else "")
        return line + (f"\n{self.outcome}" if self.outcome else "")


def read_entries(events: Sequence[SessionEvent], *, is_cut: bool) -> list[Entry]:
    """Return what was said and done, oldest first; what an agent told again, and replays, are not in it.

    Args:
        events: of a history, oldest first.
        is_cut: whether there are older ones.
    """
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
            entry.text = without_replay(entry.text, is_cut=is_cut and entry is entries[0])
    return [entry for entry in entries if entry.text.strip()]


class _Reader:
    """Turns envelopes into entries: chunks of one speaker are joined, a tool call is one entry."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self._tools: dict[str, Entry] = {}
        self._plan: Entry | None = None
        self._retelling = Retelling()
        self._opening: object = None
        self._undecided: list[tuple[int, dict[str, Any]]] = []

    def take(self, position: int, sender: str, payload: dict[str, Any]) -> None:
        method: object = payload.get("method")
        params = members(payload.get("params"))
        if method == "session/prompt":
            self._retelling.end()
            self._add_undecided()
            self._plan = None
            blocks = elements(params.get("prompt"))
            self.entries.append(Entry(position, "User", _prompt_text(blocks), words=_last_words(blocks)))
        elif method == "session/update":
            update = members(params.get("update"))
            kind: object = update.get("sessionUpdate")
            verdict = self._retelling.classify(kind if isinstance(kind, str) else None)
            if verdict == "news":
                self._take_update(position, update)
            elif verdict == "undecided":
                self._undecided.append((position, update))
            else:
                self._undecided.clear()
        elif method in OPENING_METHODS and sender == "client":
            self._opening = payload.get("id")
            self._retelling.begin()
        elif method is None and sender == "agent" and self._opening == payload.get("id"):
            self._opening = None
            if payload.get("error") is None:
                self._retelling.answer()
            else:
                self._retelling.end()
            self._add_undecided()

    def _add_undecided(self) -> None:
        undecided, self._undecided = self._undecided, []
        for position, update in undecided:
            self._take_update(position, update)

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
            self.entries.append(Entry(position, "Assistant", text))

    def _tool(self, position: int, update: dict[str, Any]) -> None:
        call_id = str(update.get("toolCallId"))
        entry = self._tools.get(call_id)
        if entry is None:
            entry = self._tools[call_id] = Entry(position, "Tool", call_id)
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
            self._plan = Entry(position, "Plan", text)
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


def _last_words(blocks: Sequence[object]) -> str:
    # The user's text is behind what a restore put in front of it.
    texts = (members(block).get("text") for block in reversed(blocks))
    return next((text for text in texts if isinstance(text, str) and text.strip()), "")


def _prompt_text(blocks: Sequence[object]) -> str:
    texts = [_block_text(block) for block in blocks]
    if len(texts) > 1:
        # The other SDK's replay is a block of its own.
        texts = [text for text in texts if not text.startswith(PEER_OPENING)]
    return without_replay("\n".join(text for text in texts if text))


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
