"""``scripts/observe_agents.py``: capabilities and options from recorded traffic."""

from __future__ import annotations

import importlib.util
import json
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/observe_agents.py"
CATALOGUE_FILE = Path(__file__).parents[2] / "src/sandbox_agent/agents/catalogue.toml"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("observe_agents", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(folder: Path, name: str, *messages: tuple[str, dict[str, Any]]) -> None:
    lines = [json.dumps({"t": 0.0, "dir": direction, "msg": message}) for direction, message in messages]
    (folder / name).write_text("\n".join(lines) + "\n")


def update(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "a2c", {"method": "session/update", "params": {"update": fields}}


SESSION = {
    "sessionId": "s",
    "modes": {
        "currentModeId": "yolo",
        "availableModes": [
            {"id": "default", "name": "Default"},
            {"id": "yolo", "name": "All"},
            {"id": "plan"},
        ],
    },
    "models": {"currentModelId": "m", "availableModels": [{"modelId": "m", "name": "M"}]},
}


def test_capabilities_and_options_are_what_was_seen(script: ModuleType, tmp_path: Path) -> None:
    record(
        tmp_path,
        "qwen.ndjson",
        ("meta", {"agent": "qwen"}),
        ("c2a", {"id": 1, "method": "initialize", "params": {}}),
        ("a2c", {"id": 1, "result": {"agentCapabilities": {"promptCapabilities": {"image": True}}}}),
        ("c2a", {"id": 2, "method": "session/new", "params": {"mcpServers": [{"name": "tiny"}]}}),
        ("a2c", {"id": 2, "result": SESSION}),
        update(sessionUpdate="agent_message_chunk", content={"type": "text", "text": "hello"}),
        update(sessionUpdate="tool_call", kind="execute", title="mcp__tiny__do"),
    )
    record(tmp_path, "qwen-more.ndjson", ("a2c", {"id": 0, "method": "session/request_permission"}))
    record(tmp_path, "unknown.ndjson")
    (observed,) = script.observe(tmp_path).values()
    assert observed.capabilities == {
        *("plan_mode", "permissions", "tool_calls", "text_messages", "images", "error_events"),
        *("command_execution", "mcp_tools", "streaming_deltas", "item_started"),
    }

    before = CATALOGUE_FILE.read_text()
    after = tomllib.loads(script.rewrite(before, "qwen", observed))
    known = tomllib.loads(before)
    assert set(after["qwen"]["capabilities"]) == observed.capabilities
    assert after["qwen"]["options"]["model"] == {"current": "m", "choices": {"m": "M"}}
    # What the agent starts with was configured in the recording: that of the catalogue stays.
    assert after["qwen"]["options"]["mode"] == {
        "current": known["qwen"]["options"]["mode"]["current"],
        "choices": {"default": "Default", "yolo": "All", "plan": "plan"},
    }
    for entries in (after, known):
        del entries["qwen"]["capabilities"], entries["qwen"]["options"]
    assert after == known
    assert script.rewrite(script.rewrite(before, "qwen", observed), "qwen", observed) == script.rewrite(
        before, "qwen", observed
    )


def test_a_list_with_a_model_of_the_recording_is_left_out(script: ModuleType, tmp_path: Path) -> None:
    models = {"currentModelId": "x/fake-model", "availableModels": [{"modelId": "x/fake-model"}]}
    record(
        tmp_path,
        "qwen.ndjson",
        ("c2a", {"id": 2, "method": "session/new", "params": {}}),
        ("a2c", {"id": 2, "result": {**SESSION, "models": models}}),
    )
    assert list(script.observe(tmp_path)["qwen"].options) == ["mode"]
