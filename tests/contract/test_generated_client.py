"""A client that openapi-python-client generates from our document decodes each event as its own type."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sandbox_agent.server.app import openapi_json
from sandbox_agent.wire.universal import EVENT_DATA_TYPES, decode_event
from tests.support.servers import our_server

NAME = "generated_client"
ITEM = {
    "item_id": "i",
    "kind": "message",
    "role": "assistant",
    "status": "completed",
    "content": [
        {"type": "text", "text": "Hello"},
        {"type": "reasoning", "text": "Hm", "visibility": "public"},
        {"type": "json", "json": {"a": [1]}},
        {"type": "tool_call", "name": "read", "arguments": "{}", "call_id": "c"},
        {"type": "tool_result", "call_id": "c", "output": "done"},
        {"type": "file_ref", "path": "/a", "action": "patch", "diff": "+a"},
        {"type": "image", "path": "/a.png", "mime": "image/png"},
        {"type": "status", "label": "plan", "detail": "[x] a"},
    ],
}
PERMISSION: dict[str, Any] = {"permission_id": "p", "action": "Write a", "metadata": {"options": []}}
QUESTION = {"question_id": "q", "prompt": "Which?", "options": ["a", "b"]}
SAMPLES: dict[str, dict[str, Any]] = {
    "session.started": {"metadata": {"agent": "mock"}},
    "session.ended": {
        "reason": "error",
        "terminated_by": "agent",
        "message": "it crashed",
        "exit_code": 1,
        "stderr": {"truncated": True, "head": "a", "tail": "b", "total_lines": 9},
    },
    "turn.started": {"phase": "started", "turn_id": "t"},
    "turn.ended": {"phase": "ended", "turn_id": "t", "metadata": {"stop_reason": "end_turn"}},
    "item.started": {"item": {**ITEM, "status": "in_progress"}},
    "item.delta": {"item_id": "i", "delta": "Hel", "native_item_id": "n"},
    "item.completed": {"item": ITEM},
    "error": {"message": "it failed", "code": "stream_error", "details": {"a": 1}},
    "permission.requested": {**PERMISSION, "status": "requested"},
    "permission.resolved": {**PERMISSION, "status": "accept"},
    "question.requested": {**QUESTION, "status": "requested"},
    "question.resolved": {**QUESTION, "status": "answered", "response": "a"},
    "agent.unparsed": {"error": "not JSON", "location": "stdout", "raw_hash": "00"},
}


def event_of(kind: str) -> dict[str, Any]:
    return {
        "event_id": "e1",
        "sequence": 1,
        "time": "2026-11-18T11:06:41.353Z",
        "session_id": "s",
        "source": "agent",
        "synthetic": False,
        "type": kind,
        "data": SAMPLES[kind],
        "native_session_id": "n",
        "raw": {"jsonrpc": "2.0"},
    }


def class_name(kind: str) -> str:
    return "".join(part.capitalize() for part in kind.split(".")) + "Event"


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Generator[ModuleType]:
    """The package that is generated from the document, imported."""
    folder = tmp_path_factory.mktemp("generated")
    document = folder / "openapi.json"
    document.write_bytes(openapi_json())
    output = folder / NAME
    # The generator knows no archives.
    config = folder / "config.json"
    config.write_text('{"content_type_overrides": {"application/x-tar": "application/octet-stream"}}')
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--fail-on-warning"]
    command += ["--path", str(document), "--output-path", str(output), "--meta", "none"]
    command += ["--config", str(config)]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # it formats with the environment's ruff
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    sys.path.insert(0, str(folder))
    try:
        yield importlib.import_module(NAME)
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name == NAME or name.startswith(f"{NAME}.")]:
            del sys.modules[name]


def test_there_is_a_sample_of_every_type_and_our_own_code_reads_it():
    assert set(SAMPLES) == set(EVENT_DATA_TYPES)
    for kind in SAMPLES:
        event = decode_event(json.dumps(event_of(kind)).encode())
        assert type(event.data) is EVENT_DATA_TYPES[kind]


@pytest.mark.parametrize("kind", EVENT_DATA_TYPES)
def test_the_generated_client_decodes_an_event_as_its_own_type(generated: ModuleType, kind: str):
    models: Any = importlib.import_module(f"{NAME}.models")
    page = models.EventsResponse.from_dict({"events": [event_of(kind)], "hasMore": False})
    (event,) = page.events
    assert type(event) is getattr(models, class_name(kind))
    assert type(event.data) is getattr(models, EVENT_DATA_TYPES[kind].__name__)
    assert event.to_dict() == event_of(kind)


def test_the_generated_client_decodes_each_part_of_an_item_as_itself(generated: ModuleType):
    models: Any = importlib.import_module(f"{NAME}.models")
    item = models.UniversalItem.from_dict(ITEM)
    assert [type(part).__name__ for part in item.content] == [
        "TextPart",
        "ReasoningPart",
        "JsonPart",
        "ToolCallPart",
        "ToolResultPart",
        "FileRefPart",
        "ImagePart",
        "StatusPart",
    ]


def test_the_generated_client_runs_a_session(generated: ModuleType, tmp_path: Path):
    models: Any = importlib.import_module(f"{NAME}.models")
    api = {
        name: importlib.import_module(f"{NAME}.api.sessions.{name}").sync_detailed
        for name in ("create_session", "post_message", "get_events", "get_session")
    }
    with (
        our_server(tmp_path) as server,
        generated.Client(base_url=server.url, raise_on_unexpected_status=True) as client,
    ):
        body = models.CreateSessionRequest(agent="mock", permission_mode="allow")
        assert api["create_session"]("s", client=client, body=body).parsed.healthy
        sent = api["post_message"]("s", client=client, body=models.MessageRequest(message="hi"))
        assert sent.status_code == 204
        deadline = time.monotonic() + 30
        events: list[Any] = []
        while not events or events[-1].type_ != "turn.ended":
            assert time.monotonic() < deadline
            offset = events[-1].sequence if events else 0
            events += api["get_events"]("s", client=client, offset=offset).parsed.events
        for event in events:
            assert type(event) is getattr(models, class_name(str(event.type_.value)))
        assert {"SessionStartedEvent", "ItemDeltaEvent", "TurnEndedEvent"} <= {
            type(event).__name__ for event in events
        }
        refused = api["get_session"]("unknown", client=client)
        assert type(refused.parsed) is models.ProblemDetails
        assert refused.parsed.type_ == "urn:sandbox-agent:error:session_not_found"
