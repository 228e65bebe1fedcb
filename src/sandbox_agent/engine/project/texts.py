"""Joins chunks to messages: by messageId, or without one until another kind of item comes."""

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

# In characters. A longer message continues in a second item, so that the memory for it is bounded.
MAX_TEXT = 1024 * 1024

_Shape = tuple[ItemKind, ItemRole, Literal["text", "reasoning"]]
STREAMS: dict[str, _Shape] = {
    "agent_message_chunk": ("message", "assistant", "text"),
    "agent_thought_chunk": ("message", "assistant", "reasoning"),
    "user_message_chunk": ("message", "user", "text"),
    "compaction_summary_chunk": ("system", "system", "text"),
}


class Texts:
    """The incomplete messages of a session."""

    def __init__(self, state: State, emit: Emitter) -> None:
        self._state = state
        self._emit = emit

    def add_chunk(self, stream: str, native_id: str | None, text: str) -> None:
        """Add a piece of text. An empty piece is ignored."""
        if not text or self._is_repeated(stream, text):
            return
        state = self._state
        item = state.texts.get(stream)
        if item is None or state.current != stream or item.native_id != native_id:
            item = self._open_item(stream, native_id)
        item.pieces.append(text)
        item.size += len(text)
        self._emit.event("item.delta", ItemDeltaData(item.item_id, text, native_id))
        if item.size >= MAX_TEXT:
            self._close(stream)

    def add_block(self, stream: str, native_id: str | None, part: ContentPart) -> None:
        """Add content other than text. It appears in the completed item only."""
        if self._is_repeated(stream, ""):
            return
        item = self._open_item(stream, native_id)
        _join_pieces(item, stream)
        item.parts.append(part)

    def add_message(self, stream: str, parts: list[ContentPart], text: str) -> None:
        """Add a complete message, such as the user's prompt."""
        kind, role, _ = STREAMS[stream]
        item_id = self._emit.next_id("itm")
        self._emit.start(item_id, kind, role, [_piece(stream, "")])
        if text:
            self._emit.delta(item_id, text, source="daemon")
        self._emit.complete(item_id, kind, role, parts)
        self._state.seen = True

    def interrupt(self) -> None:
        """End the messages without an id, because another kind of item comes."""
        self._state.current = ""
        for stream, item in list(self._state.texts.items()):
            if item.native_id is None:
                self._close(stream)

    def end(self, stream: str) -> None:
        """End the message of a stream, if it is open."""
        if stream in self._state.texts:
            self._close(stream)

    def close(self, status: ItemStatus = "completed") -> None:
        """End all messages."""
        self._state.current = ""
        for stream in list(self._state.texts):
            self._close(stream, status)

    def _is_repeated(self, stream: str, text: str) -> bool:
        state = self._state
        if stream != "user_message_chunk" or not text:
            return False
        # Some agents repeat the prompt, which was added when it was sent.
        if state.turns and state.echo.startswith(text):
            state.echo = state.echo[len(text) :]
            return True
        return is_replay(text)

    def _open_item(self, stream: str, native_id: str | None) -> OpenText:
        texts = self._state.texts
        for other, item in list(texts.items()):
            if item.native_id != native_id or (native_id is None and other != stream):
                self._close(other)
        self._state.current = stream
        item = texts.get(stream)
        if item is None:
            kind, role, _ = STREAMS[stream]
            # The empty part shows the type of the deltas.
            item = texts[stream] = OpenText(self._emit.next_id("itm"), native_id)
            self._emit.start(item.item_id, kind, role, [_piece(stream, "")], native_id=native_id)
            self._state.seen = True
        return item

    def _close(self, stream: str, status: ItemStatus = "completed") -> None:
        item = self._state.texts.pop(stream)
        kind, role, _ = STREAMS[stream]
        _join_pieces(item, stream)
        self._emit.complete(item.item_id, kind, role, item.parts, status=status, native_id=item.native_id)


def _piece(stream: str, text: str) -> ContentPart:
    return ReasoningPart(text) if STREAMS[stream][2] == "reasoning" else TextPart(text)


def _join_pieces(item: OpenText, stream: str) -> None:
    if item.pieces:
        item.parts.append(_piece(stream, "".join(item.pieces)))
        item.pieces = []
