"""Turns a session's events into the whole texts that are searched."""

from __future__ import annotations

from typing import Any, Final, NamedTuple, cast

from sandbox_agent.engine.project.content import is_replay, output_text
from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError, replace_surrogates
from sandbox_agent.wire.records import SessionEvent

# A longer text (in characters) is continued as another one.
MAX_TEXT: Final = 256 * 1024
# How the TypeScript SDK's replays begin: it stores them as if the user had said them.
_PEER_REPLAY: Final = "Previous session history is replayed below as JSON-RPC envelopes."
# Envelopes without these contain no text, and are not decoded.
_TELLING: Final = (b"_chunk", b"tool_call", b"prompt")
_ENDED: Final = frozenset({"completed", "failed"})


class Said(NamedTuple):
    """What was said or done at one go.

    Attributes:
        first: the event index of its first event.
        time: that event's ``created_at``.
        text: the user's prompt, the agent's message, or a tool call's title and output; as every store can
            keep it, without lone surrogates and null characters.
    """

    first: int
    time: int
    text: str


class _Text:
    def __init__(self, event: SessionEvent) -> None:
        self.index = event.event_index
        self.time = event.created_at
        self.pieces: list[str] = []
        self.size = 0
        self.message_id: object = None

    def add(self, text: str) -> None:
        self.pieces.append(text)
        self.size += len(text)

    def said(self) -> Said:
        return Said(self.index, self.time, _clean("".join(self.pieces)))


class _Tool(_Text):
    """A tool call, whose title and outputs may be repeated, each time longer."""

    def __init__(self, event: SessionEvent) -> None:
        super().__init__(event)
        self.members: dict[str, str] = {}

    def said(self) -> Said:
        return Said(self.index, self.time, _clean("\n".join(filter(None, self.members.values()))))


class Folder:
    """Takes a session's events in their order and joins them to texts.

    User prompts are texts without what a restore prepended to them; chunks of an agent's message are
    joined; a tool call is one text. An index that keeps texts folds on from ``resume_at``: the texts that
    it has from there on are the ones to fold again.

    Attributes:
        resume_at: an event index; every text that may still change begins there or later, and folding from
            there gives what folding from the beginning gives.
    """

    def __init__(self) -> None:
        self.resume_at: int = 1
        self._done: list[Said] = []
        self._message: _Text | None = None
        self._tools: dict[str, _Tool] = {}

    def add(self, event: SessionEvent) -> None:
        """Add the next event; one that can't be read contains no text."""
        if self._message is None and not self._tools:
            self.resume_at = event.event_index
        if any(word in event.payload_json for word in _TELLING):
            try:
                payload: object = event.payload
            except InvalidEnvelopeError:
                payload = None
            self._read(event, _members(payload))
        if self._message is None and not self._tools:
            self.resume_at = event.event_index + 1

    def finished(self) -> list[Said]:
        """Return the texts that will not change, each once."""
        done, self._done = self._done, []
        return [said for said in done if said.text.strip()]

    def unfinished(self) -> list[Said]:
        """Return the texts that may still change, as they are now."""
        texts: list[_Text] = [*self._tools.values(), *([self._message] if self._message else [])]
        return [said for said in (text.said() for text in texts) if said.text.strip()]

    def _read(self, event: SessionEvent, payload: dict[str, Any]) -> None:
        params = _members(payload.get("params"))
        method: object = payload.get("method")
        if method == "session/prompt":
            # Calls of an earlier turn are over, whether the agent said so or not.
            self._end_message()
            for call_id in list(self._tools):
                self._end_tool(call_id)
            prompt = _Text(event)
            prompt.add(_prompt_text(params.get("prompt")))
            self._done.append(prompt.said())
        elif method == "session/update":
            update = _members(params.get("update"))
            kind: object = update.get("sessionUpdate")
            if kind == "agent_message_chunk":
                self._say(event, update)
            elif kind in {"tool_call", "tool_call_update"}:
                self._end_message()
                self._tool(event, update)
            elif kind == "agent_thought_chunk":
                self._end_message()

    def _say(self, event: SessionEvent, update: dict[str, Any]) -> None:
        message_id: object = update.get("messageId")
        message = self._message
        if message is not None and (message.message_id != message_id or message.size >= MAX_TEXT):
            self._end_message()
        if self._message is None:
            self._message = _Text(event)
            self._message.message_id = message_id
        self._message.add(_block_text(update.get("content")))

    def _tool(self, event: SessionEvent, update: dict[str, Any]) -> None:
        call_id = str(update.get("toolCallId"))
        tool = self._tools.get(call_id)
        if tool is None:
            tool = self._tools[call_id] = _Tool(event)
        title: object = update.get("title")
        if isinstance(title, str):
            tool.members["title"] = title
        if update.get("content") is not None:
            tool.members["content"] = _outcome(update["content"])
        if update.get("rawOutput") is not None and not tool.members.get("content"):
            tool.members["output"] = output_text(update["rawOutput"])
        if update.get("status") in _ENDED:
            self._end_tool(call_id)

    def _end_message(self) -> None:
        if self._message is not None:
            self._done.append(self._message.said())
            self._message = None

    def _end_tool(self, call_id: str) -> None:
        self._done.append(self._tools.pop(call_id).said())


def _clean(text: str) -> str:
    # The halves of a pair may have come in two chunks.
    return replace_surrogates(text[:MAX_TEXT].replace("\0", " "))


def _prompt_text(blocks: object) -> str:
    texts = [_block_text(block) for block in _items(blocks)]
    return "\n".join(text for text in texts if text and not is_replay(text) and not _is_peer_replay(text))


def _is_peer_replay(text: str) -> bool:
    return text.startswith(_PEER_REPLAY)


def _outcome(content: object) -> str:
    parts: list[str] = []
    for item in map(_members, _items(content)):
        if item.get("type") == "diff":
            parts.append(str(item.get("path") or ""))
        else:
            parts.append(_block_text(item.get("content")))
    return "\n".join(part for part in parts if part)


def _block_text(block: object) -> str:
    content = _members(block)
    kind: object = content.get("type")
    text: object = None
    if kind == "text":
        text = content.get("text")
    elif kind == "resource_link":
        text = content.get("name") or content.get("uri")
    elif kind == "resource":
        text = _members(content.get("resource")).get("text")
    return text if isinstance(text, str) else ""


def _members(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def _items(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []
