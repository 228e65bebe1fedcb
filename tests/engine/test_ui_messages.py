"""Turns of recorded sessions as chunks of the AI SDK."""

from __future__ import annotations

from typing import Any

import pytest

from sandbox_agent.engine.ui_messages import Chunk, UiMessageChunks, approvals_of, prompt_of
from sandbox_agent.errors import InvalidRequestError
from sandbox_agent.wire.universal import (
    ItemEventData,
    PermissionEventData,
    TextPart,
    TurnEventData,
    UniversalEvent,
)

from .test_project_traffic import AGENTS, project

LAST = {"finish", "abort", "error"}


def turns_of(agent: str) -> list[tuple[str, list[UniversalEvent]]]:
    """Return the turns of a recording: the id and the events of each."""
    turns: list[tuple[str, list[UniversalEvent]]] = []
    current: list[UniversalEvent] | None = None
    for event in project(agent):
        if isinstance(event.data, TurnEventData) and event.data.phase == "started":
            current = []
            turns.append((event.data.turn_id or "", current))
        if current is not None:
            current.append(event)
        if event.type == "turn.ended":
            current = None
    return [(turn_id, events) for turn_id, events in turns if events[-1].type == "turn.ended"]


class Reader:
    """Checks what the AI SDK requires of a response; keeps which calls it knows from earlier ones."""

    def __init__(self) -> None:
        self.calls: set[str] = set()

    def read(self, chunks: list[Chunk]) -> str:
        """Return the text of a response."""
        assert chunks[0]["type"] == "start"
        assert chunks[-1]["type"] in LAST
        open_texts: dict[str, str] = {}
        text = ""
        for chunk in chunks[1:]:
            kind, _, step = chunk["type"].rpartition("-")
            if kind in ("text", "reasoning"):
                if step == "start":
                    assert open_texts.setdefault(chunk["id"], kind) == kind
                assert open_texts[chunk["id"]] == kind
                if step == "end":
                    del open_texts[chunk["id"]]
                text += chunk["delta"] if (kind, step) == ("text", "delta") else ""
            elif chunk["type"] == "tool-input-start":
                self.calls.add(chunk["toolCallId"])
            elif chunk["type"].startswith("tool-"):
                assert chunk["toolCallId"] in self.calls
            else:
                assert chunk["type"] not in LAST or chunk is chunks[-1]
        assert open_texts == {} or chunks[-1]["type"] == "error"
        return text


def read_whole(turn_id: str, events: list[UniversalEvent]) -> list[Chunk]:
    """Return the chunks of a turn in one response."""
    stream = UiMessageChunks(turn_id)
    return stream.start() + [chunk for event in events for chunk in stream.feed(event)]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_turn_is_a_message_with_the_agents_words(agent: str) -> None:
    turns = turns_of(agent)
    assert len(turns) >= 3
    for turn_id, events in turns:
        said = "".join(
            part.text
            for event in events
            if event.type == "item.completed" and isinstance(event.data, ItemEventData)
            if event.data.item.kind == "message" and event.data.item.role == "assistant"
            for part in event.data.item.content
            if isinstance(part, TextPart)
        )
        assert Reader().read(read_whole(turn_id, events)) == said


@pytest.mark.parametrize("agent", AGENTS)
def test_a_turn_is_continued_behind_any_event(agent: str) -> None:
    for turn_id, events in turns_of(agent):
        whole = Reader().read(read_whole(turn_id, events))
        for number, cut in enumerate(events[:-1], 1):
            stream, reader = UiMessageChunks(turn_id), Reader()
            before = stream.start() + [chunk for event in events[:number] for chunk in stream.feed(event)]
            text = reader.read(before + stream.pause(cut.sequence))
            after = stream.start() + [chunk for event in events[number:] for chunk in stream.feed(event)]
            assert text + reader.read(after) == whole


def test_it_waits_from_a_request_to_its_answer() -> None:
    waits: set[bool] = set()
    for turn_id, events in turns_of("claude"):
        stream = UiMessageChunks(turn_id)
        pending = 0
        for event in events:
            stream.feed(event)
            if isinstance(event.data, PermissionEventData):
                pending += 1 if event.data.status == "requested" else -1
            assert len(stream.waiting) == pending
            waits.add(bool(stream.waiting))
    assert waits == {True, False}


def test_files_of_all_kinds_are_blocks() -> None:
    parts: list[Any] = [
        {"type": "text", "text": "look"},
        {"type": "file", "mediaType": "audio/wav", "url": "data:audio/wav;base64,AA=="},
        {"type": "file", "mediaType": "image/png", "url": "https://host/a.png", "filename": "a.png"},
        {"type": "file", "url": "data:,hi"},
        {"type": "data-own", "data": 1},
        {"type": "text", "text": ""},
        "no part",
    ]
    assert prompt_of({"parts": parts}) == [
        {"type": "text", "text": "look"},
        {"type": "audio", "mimeType": "audio/wav", "data": "AA=="},
        {"type": "resource_link", "uri": "https://host/a.png", "name": "a.png", "mimeType": "image/png"},
        {
            "type": "resource_link",
            "uri": "data:,hi",
            "name": "file",
            "mimeType": "application/octet-stream",
        },
    ]
    with pytest.raises(InvalidRequestError, match="no text and no file"):
        prompt_of({"parts": [{"type": "reasoning", "text": "hm"}]})


def test_only_answers_are_answers() -> None:
    parts = [
        {"state": "approval-responded", "approval": {"id": "a", "approved": True}},
        {"state": "approval-responded", "approval": {"id": "b", "approved": False, "reason": "no"}},
        {"state": "approval-requested", "approval": {"id": "c"}},
        {"state": "output-available", "approval": {"id": "d", "approved": True}},
        {"state": "approval-responded", "approval": {"id": 5, "approved": True}},
    ]
    assert approvals_of({"parts": parts}) == {"a": True, "b": False}
