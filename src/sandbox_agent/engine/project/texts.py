"""Chunks join to messages: by messageId where there is one, else until another kind of item comes."""

from __future__ import annotations

from typing import Literal

from sandbox_agent.engine.project.content import is_replay
from sandbox_agent.engine.project.emit import Emitter
from sandbox_agent.engine.project.state import OpenText, State
from sandbox_agent.wire.universal import (
    ContentPart,
    ItemDeltaData,
    ItemKind,
    ItemRole,
    ItemStatus,
    ReasoningPart,
    TextPart,
)

__all__ = ["MAX_TEXT", "STREAMS", "Texts"]

# A message that is longer (characters) goes on in a second item: what an agent says without end must not
# be held without end.
MAX_TEXT = 1024 * 1024

_Shape = tuple[ItemKind, ItemRole, Literal["text", "reasoning"]]
STREAMS: dict[str, _Shape] = {
    "agent_message_chunk": ("message", "assistant", "text"),
    "agent_thought_chunk": ("message", "assistant", "reasoning"),
    "user_message_chunk": ("message", "user", "text"),
    "compaction_summary_chunk": ("system", "system", "text"),
}


class Texts:
    """The open messages of a session."""

    def __init__(self, state: State, emit: Emitter) -> None:
        self._state = state
        self._emit = emit

    def chunk(self, stream: str, native_id: str | None, text: str) -> None:
        """Take a piece of text; an empty one says nothing and changes nothing."""
        if not text or self._skip(stream, text):
            return
        state = self._state
        item = state.texts.get(stream)
        if item is None or state.current != stream or item.native_id != native_id:
            item = self._item(stream, native_id)
        item.pieces.append(text)
        item.size += len(text)
        self._emit.event("item.delta", ItemDeltaData(item.item_id, text, native_id))
        if item.size >= MAX_TEXT:
            self._close(stream)

    def block(self, stream: str, native_id: str | None, part: ContentPart) -> None:
        """Take what is no text: it has its place in the completed item."""
        if self._skip(stream, ""):
            return
        item = self._item(stream, native_id)
        _flush(item, stream)
        item.parts.append(part)

    def whole(self, stream: str, parts: list[ContentPart], text: str) -> None:
        """Take a message that is complete and that the server knows from elsewhere, such as the user's."""
        kind, role, _ = STREAMS[stream]
        item_id = self._emit.next_id("itm")
        self._emit.start(item_id, kind, role, [_piece(stream, "")])
        if text:
            self._emit.delta(item_id, text, source="daemon")
        self._emit.complete(item_id, kind, role, parts)
        self._state.seen = True

    def interrupt(self) -> None:
        """Another kind of item comes: end the messages that have no id."""
        self._state.current = ""
        for stream, item in list(self._state.texts.items()):
            if item.native_id is None:
                self._close(stream)

    def end(self, stream: str) -> None:
        """End one message, where it is open."""
        if stream in self._state.texts:
            self._close(stream)

    def close(self, status: ItemStatus = "completed") -> None:
        """End all messages."""
        self._state.current = ""
        for stream in list(self._state.texts):
            self._close(stream, status)

    def _skip(self, stream: str, text: str) -> bool:
        state = self._state
        if state.retelling.is_past(stream):
            state.skipped += 1
            return True
        if stream != "user_message_chunk" or not text:
            return False
        # Some agents say the prompt again; it is there since the prompt was sent.
        if state.turns and state.echo.startswith(text):
            state.echo = state.echo[len(text) :]
            return True
        return is_replay(text)

    def _item(self, stream: str, native_id: str | None) -> OpenText:
        texts = self._state.texts
        for other, item in list(texts.items()):
            if item.native_id != native_id or (native_id is None and other != stream):
                self._close(other)
        self._state.current = stream
        item = texts.get(stream)
        if item is None:
            kind, role, _ = STREAMS[stream]
            # The empty part says what the deltas are.
            item = texts[stream] = OpenText(self._emit.next_id("itm"), native_id)
            self._emit.start(item.item_id, kind, role, [_piece(stream, "")], native_id=native_id)
            self._state.seen = True
        return item

    def _close(self, stream: str, status: ItemStatus = "completed") -> None:
        item = self._state.texts.pop(stream)
        kind, role, _ = STREAMS[stream]
        _flush(item, stream)
        self._emit.complete(item.item_id, kind, role, item.parts, status=status, native_id=item.native_id)


def _piece(stream: str, text: str) -> ContentPart:
    return ReasoningPart(text) if STREAMS[stream][2] == "reasoning" else TextPart(text)


def _flush(item: OpenText, stream: str) -> None:
    if item.pieces:
        item.parts.append(_piece(stream, "".join(item.pieces)))
        item.pieces = []
