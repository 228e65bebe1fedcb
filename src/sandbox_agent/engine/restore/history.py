"""Reads the history of a session: what was said and done, without the replays in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast

from sandbox_agent.engine.handshake import is_lost_session_error
from sandbox_agent.engine.restore.load_phase import OPENING_METHODS, Retelling
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, elements, members
from sandbox_agent.wire.records import SessionEvent

OPENING: Final = "<conversation_history>"
CLOSING: Final = "</conversation_history>"
INTRODUCTION: Final = (
    "This conversation began earlier, in a session that was lost. What was said and done so far, oldest "
    "first, is between the tags. Use it as context for the message that follows; don't repeat or answer it."
)
# How the TypeScript SDK's replays begin: it stores them as part of the user's message.
PEER_OPENING: Final = "Previous session history is replayed below as JSON-RPC envelopes."


def is_replay_title(title: str) -> bool:
    """Whether an agent named its session after a replay in front of its first prompt."""
    return title.startswith(INTRODUCTION[:30])


def without_replay(text: str, *, is_cut: bool = False) -> str:
    """Return a message without the replay in front of it.

    Args:
        text: the message.
        is_cut: whether it may begin in the middle of a replay.
    """
    end = text.find(CLOSING)
    if is_cut and end >= 0 and OPENING not in text[:end]:
        # The events that were read begin in the middle of the replay.
        text = text[end + len(CLOSING) :]
    while (start := text.find(OPENING)) >= 0:
        before = text[:start].removesuffix("\n")
        end = text.find(CLOSING, start)
        if end >= 0:
            text = before.removesuffix(INTRODUCTION) + text[end + len(CLOSING) :]
        elif before.endswith(INTRODUCTION):
            text = before.removesuffix(INTRODUCTION)
        else:
            break  # the message mentions the tag
    if text.startswith(PEER_OPENING):
        # Its lines are JSON; the user's message follows the last of them.
        lines = text.splitlines()
        text = "\n".join(line for line in lines[1:] if not line.startswith(("{", "[history truncated]")))
    return text


# In characters: longer outcomes of tool calls are shortened.
_MAX_OUTCOME = 2_000
# The members of rawOutput in which agents put the text of a tool, best first.
OUTPUT_MEMBERS = ("output", "content", "text", "formatted_output", "stdout", "error", "message")


class Entry:
    """One entry of a transcript.

    Attributes:
        first: the position of its first event.
        role: "User", "Assistant", "Tool" or "Plan".
        words: the last text of a user's message that is not an attachment; otherwise the text.
        status, outcome: of a tool call.
    """

    def __init__(self, first: int, role: str, text: str, words: str | None = None) -> None:
        self.first = first
        self._words = words
        self.role = role
        # The chunks of a message. They may be many, so they are joined at the end.
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
        """Return the entry as text."""
        if self.role != "Tool":
            return f"{self.role}: {self.text.strip()}"
        line = f"Tool: {self.text}" + (f" [{self.status}]" if self.status else "")
        return line + (f"\n{self.outcome}" if self.outcome else "")


def read_entries(events: Sequence[SessionEvent], *, is_cut: bool) -> list[Entry]:
    """Return what was said and done, oldest first, without replays and without history reported again.

    Args:
        events: the events of a history, oldest first.
        is_cut: whether there are older events.
    """
    reader = _Reader()
    for position, event in enumerate(events):
        try:
            payload = cast("object", event.payload)
        except InvalidEnvelopeError:
            continue
        if isinstance(payload, dict):
            reader.feed(position, event.sender, cast("dict[str, Any]", payload))
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
        self._prompt: object = None
        self._undecided: list[tuple[int, dict[str, Any]]] = []

    def feed(self, position: int, sender: str, payload: dict[str, Any]) -> None:
        method: object = payload.get("method")
        params = members(payload.get("params"))
        if method == "session/prompt":
            self._retelling.end()
            self._add_undecided()
            self._plan = None
            blocks = elements(params.get("prompt"))
            self.entries.append(Entry(position, "User", _prompt_text(blocks), words=_last_words(blocks)))
            self._prompt = payload.get("id")
        elif method == "session/update":
            update = members(params.get("update"))
            kind: object = update.get("sessionUpdate")
            verdict = self._retelling.classify(kind if isinstance(kind, str) else None)
            if verdict == "news":
                self._add_update(position, update)
            elif verdict == "undecided":
                self._undecided.append((position, update))
            else:
                self._undecided.clear()
        elif method in OPENING_METHODS and sender == "client":
            self._opening, self._prompt = payload.get("id"), None
            self._retelling.begin()
        elif (
            method is None
            and sender == "agent"
            and self._prompt is not None
            and self._prompt == payload.get("id")
        ):
            self._prompt = None
            if self.entries[-1].role == "User" and is_lost_session_error(payload.get("error")):
                del self.entries[-1]  # it was sent again
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
            self._add_update(position, update)

    def _add_update(self, position: int, update: dict[str, Any]) -> None:
        kind: object = update.get("sessionUpdate")
        if kind == "agent_message_chunk":
            self._add_text(position, _block_text(update.get("content")))
        elif kind in {"tool_call", "tool_call_update"}:
            self._add_tool(position, update)
        elif kind == "plan":
            self._add_plan(position, update)

    def _add_text(self, position: int, text: str) -> None:
        last = self.entries[-1] if self.entries else None
        if last is not None and last.role == "Assistant":
            last.parts.append(text)
        else:
            self.entries.append(Entry(position, "Assistant", text))

    def _add_tool(self, position: int, update: dict[str, Any]) -> None:
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

    def _add_plan(self, position: int, update: dict[str, Any]) -> None:
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
    texts = (output.get(name) for name in OUTPUT_MEMBERS)
    return _shortened(next((text for text in texts if isinstance(text, str) and text.strip()), ""))


def _shortened(outcome: str) -> str:
    text = outcome.strip()
    return text if len(text) <= _MAX_OUTCOME else text[:_MAX_OUTCOME] + "…"


def _last_words(blocks: Sequence[object]) -> str:
    # The user's text follows a replay.
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
