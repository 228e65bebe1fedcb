"""ACP's objects: dicts whose members are attributes, too."""

from __future__ import annotations

import json
import typing

import msgspec
import pytest

from sandbox_agent import (
    AgentInfo,
    ConfigOption,
    ConfigOptionUpdate,
    Diff,
    PermissionOption,
    PermissionToolCall,
    SessionModes,
)
from sandbox_agent.agents.catalogue import known_agents
from sandbox_agent.wire.acp import parse_update
from sandbox_agent.wire.api import KnownAgent

OPTION = {
    "id": "model",
    "currentValue": "b",
    "options": [
        {"value": "a", "name": "A"},
        {"group": "g", "name": "G", "options": [{"value": "b", "name": "B", "description": "best"}]},
    ],
}


def test_a_member_is_an_item_and_an_attribute() -> None:
    option = PermissionOption({"optionId": "o", "kind": "allow_once", "_meta": {"x": 1}})
    assert (option["optionId"], option.option_id, option.get("kind"), option.kind) == (
        "o",
        "o",
        *["allow_once"] * 2,
    )
    assert option.name is None
    assert option == {"optionId": "o", "kind": "allow_once", "_meta": {"x": 1}}
    assert json.loads(json.dumps(option)) == option.to_dict()
    with pytest.raises(
        AttributeError, match="PermissionOption has no member 'colour'; it has optionId, kind"
    ):
        _ = option.colour


def test_a_newer_member_is_an_attribute_too() -> None:
    assert PermissionToolCall(brandNew=[1]).brand_new == [1]


def test_the_content_of_a_tool_call_is_typed() -> None:
    diff = {"type": "diff", "path": "/a", "oldText": None, "newText": "x"}
    call = PermissionToolCall(
        toolCallId="t", kind="edit", rawInput={"a": 1}, content=[diff], locations=[{"path": "/a"}]
    )
    assert (call.tool_call_id, call.kind, call.raw_input, call.title) == ("t", "edit", {"a": 1}, None)
    assert call.content == [Diff(path="/a", new_text="x")]
    assert [location.path for location in call.locations] == ["/a"]
    assert call["content"] == [diff]
    assert PermissionToolCall(content="nonsense", locations=3).content == []
    assert PermissionToolCall().locations == []


def test_a_config_option_has_its_values_without_their_groups() -> None:
    option = ConfigOption(OPTION)
    assert (option.id, option.current_value, option.category) == ("model", "b", None)
    assert [(each.value, each.name, each.description) for each in option.options] == [
        ("a", "A", None),
        ("b", "B", "best"),
    ]
    assert ConfigOption(id="x").options == []


def test_modes_are_objects() -> None:
    modes = SessionModes(currentModeId="plan", availableModes=[{"id": "plan", "name": "Plan"}, None])
    assert modes.current_mode_id == modes["currentModeId"] == "plan"
    assert [(mode.id, mode.name, mode.description) for mode in modes.available_modes] == [
        ("plan", "Plan", None)
    ]


def test_options_of_agents_and_updates_are_objects() -> None:
    update = parse_update({"sessionUpdate": "config_option_update", "configOptions": [OPTION]})
    assert isinstance(update, ConfigOptionUpdate)
    assert update.config_options[0].current_value == "b"
    text = json.dumps(
        {
            "id": "mock",
            "installed": True,
            "credentialsAvailable": True,
            "capabilities": {},
            "configOptions": [OPTION],
        }
    )
    info = msgspec.json.decode(text, type=AgentInfo)
    assert info.config_options is not None
    assert info.config_options[0].current_value == "b"
    assert json.loads(info.to_json())["configOptions"] == [OPTION]


def test_an_ide_completes_the_agents_of_the_catalogue() -> None:
    assert sorted(typing.get_args(KnownAgent)) == sorted(known_agents())
