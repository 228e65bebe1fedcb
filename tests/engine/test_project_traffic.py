"""Recorded sessions of eight real agents, projected.

``golden/traffic`` holds one file per agent: JSON lines of ``t`` (seconds), ``dir`` (c2a: client to agent,
a2c: agent to client, err: stderr, meta) and ``msg``. They were recorded on stdio, one connection each.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sandbox_agent.engine.project import Projector
from sandbox_agent.wire.records import Sender
from sandbox_agent.wire.universal import (
    FileRefPart,
    PermissionEventData,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    TurnEventData,
    UniversalEvent,
    encode_event,
)

from .test_project_checks import check, completed, joined, outline

GOLDEN = Path(__file__).parent / "golden"
AGENTS = ["claude", "codex", "copilot", "gemini", "goose", "opencode", "pi", "qwen"]


class Line(NamedTuple):
    sender: Sender
    envelope: bytes
    time_ms: int


def read(agent: str) -> Iterator[Line]:
    """Yield a recording's envelopes that belong to its first session."""
    native_id: str | None = None
    for text in (GOLDEN / "traffic" / f"{agent}.ndjson").read_text().splitlines():
        row = json.loads(text)
        message: Any = row["msg"]
        if row["dir"] not in {"c2a", "a2c"}:
            continue
        result: Any = message.get("result")
        if native_id is None and isinstance(result, dict):
            native_id = message["result"].get("sessionId")
        # claude forks its session: what the fork says is another session's.
        if native_id is not None and message.get("params", {}).get("sessionId", native_id) != native_id:
            continue
        if message.get("method") == "_auth/status_update":
            continue  # belongs to the connection
        sender: Sender = "client" if row["dir"] == "c2a" else "agent"
        yield Line(sender, json.dumps(message).encode(), 1_795_000_000_000 + round(row["t"] * 1000))


def project(agent: str) -> list[UniversalEvent]:
    projector = Projector(f"{agent}-session")
    return [event for line in read(agent) for event in projector.feed(*line)]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_recording_becomes_whole_items_and_nothing_is_unparsed(agent: str):
    events = project(agent)
    check(events)
    assert not [event for event in events if event.type == "agent.unparsed"]
    assert len([event for event in events if event.type == "turn.ended"]) >= 3
    assert {event.native_session_id for event in events if event.type == "turn.ended"} != {None}


@pytest.mark.parametrize("agent", AGENTS)
def test_a_recording_becomes_the_same_events_again(agent: str):
    assert [encode_event(event) for event in project(agent)] == [
        encode_event(event) for event in project(agent)
    ]


@pytest.mark.parametrize("agent", AGENTS)
def test_a_fold_goes_on_from_a_snapshot_at_every_position(agent: str):
    whole = project(agent)
    projector = Projector(f"{agent}-session")
    events: list[UniversalEvent] = []
    for line in read(agent):
        # As a store would keep it: as JSON.
        projector = Projector.restore(json.loads(json.dumps(projector.snapshot())))
        events += projector.feed(*line)
    assert events == whole


@pytest.mark.parametrize("agent", AGENTS)
def test_a_recording_that_stops_anywhere_is_closed_by_an_exit(agent: str):
    lines = list(read(agent))
    projector = Projector("s")
    events: list[UniversalEvent] = []
    for line in lines:
        events += projector.feed(*line)
        cut = Projector.restore(projector.snapshot())
        closing = cut.agent_exited(line.time_ms, exit_code=9)
        check([*events, *closing], new=len(closing))
        assert not cut.open_turns
        assert not cut.agent_exited(line.time_ms, exit_code=9)


@pytest.mark.parametrize("agent", AGENTS)
def test_everything_that_the_agent_said_in_its_turns_is_in_the_messages(agent: str):
    said: list[str] = []
    in_turn = False
    for line in read(agent):
        message = json.loads(line.envelope)
        update = message.get("params", {}).get("update", {})
        if message.get("method") == "session/prompt":
            in_turn = True
        elif message.get("method") == "session/load":
            in_turn = False
        elif in_turn and update.get("sessionUpdate") in {"agent_message_chunk", "agent_thought_chunk"}:
            said.append(update["content"]["text"])
    messages = [item for item in completed(project(agent), "message") if item.role == "assistant"]
    shown = [joined(item.content) for item in messages]
    # pi says its version before the first turn.
    extra = sum(len(text) for text in shown if text.startswith("pi v"))
    assert sum(len(text) for text in said) == sum(len(text) for text in shown) - extra
    for text in said:
        assert any(text in message for message in shown)


@pytest.mark.parametrize("agent", AGENTS)
def test_every_call_has_one_result_and_a_refused_one_has_failed(agent: str):
    events = project(agent)
    calls = [item.native_item_id for item in completed(events, "tool_call")]
    results = completed(events, "tool_result")
    assert sorted(str(item.native_item_id) for item in results) == sorted(map(str, calls))
    refused = {
        event.data.metadata["outcome"]: event.data.permission_id
        for event in events
        if isinstance(event.data, PermissionEventData) and event.data.status == "reject"
    }
    asked = {
        event.data.permission_id: event.data.metadata["tool_call_id"]
        for event in events
        if isinstance(event.data, PermissionEventData) and event.data.status == "requested"
    }
    failed = {item.native_item_id for item in results if item.status == "failed"}
    assert {asked[permission_id] for permission_id in refused.values()} <= failed


def test_claude_writes_a_file_after_it_was_allowed_to():
    events = project("claude")
    call = completed(events, "tool_call")[0]
    assert call.content[0] == ToolCallPart(
        "Write",
        '{"file_path":"/workspace/hello.txt","content":"hello world"}',
        "toolu_6a26638d7eb74c86a5d3",
    )
    assert call.content[2] == FileRefPart(
        "/workspace/hello.txt", "write", "@@ -0,0 +1 @@\n+hello world\n\\ No newline at end of file\n"
    )
    result = completed(events, "tool_result")[0]
    assert isinstance(result.content[0], ToolResultPart)
    assert result.content[0].output.startswith("File created successfully")
    assert result.parent_id == call.item_id


def test_goose_ends_its_turn_after_a_cancel_and_the_turn_is_cancelled_all_the_same():
    ended = [event.data for event in project("goose") if event.type == "turn.ended"]
    assert isinstance(ended[-1], TurnEventData)
    assert ended[-1].metadata["stop_reason"] == "end_turn"
    assert ended[-1].metadata["cancelled"] is True


def test_a_history_that_is_loaded_again_is_said_once_and_a_status_tells_of_it():
    events = project("codex")
    users = [joined(item.content) for item in completed(events, "message") if item.role == "user"]
    assert users.count("say hi [[think:pondering]]") == 1
    details = [part for item in completed(events, "status") for part in item.content]
    assert any("updates that repeat what is here are left out" in str(part) for part in details)


@pytest.mark.parametrize("agent", ["claude", "codex", "opencode", "pi", "qwen"])
def test_a_history_that_is_loaded_for_the_first_time_is_shown(agent: str):
    lines = list(read(agent))
    start = next(index for index, line in enumerate(lines) if b'"session/load"' in line.envelope)
    projector = Projector("s")
    events = [event for line in lines[start:] for event in projector.feed(*line)]
    check(events)
    messages = completed(events, "message")
    assert messages[0].content == [TextPart("say hi [[think:pondering]]")]
    assert [item.role for item in messages].count("user") >= 3
    assert completed(events, "tool_result")


def test_a_recording_is_projected_as_the_golden_file_says():
    path = GOLDEN / "universal-qwen.ndjson"
    lines = b"".join(encode_event(event) + b"\n" for event in project("qwen"))
    if os.environ.get("REWRITE_GOLDEN"):
        path.write_bytes(lines)
    assert lines == path.read_bytes()
    assert "permission.requested requested" in outline(project("qwen"))
