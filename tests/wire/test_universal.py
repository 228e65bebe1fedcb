import gc
import json
import typing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandbox_agent.wire.jsonrpc import InvalidEnvelopeError
from sandbox_agent.wire.universal import (
    AgentEvent,
    ContentPart,
    ErrorData,
    EventData,
    EventSource,
    EventType,
    FileAction,
    FileRefPart,
    ItemDeltaData,
    ItemEventData,
    ItemKind,
    ItemRole,
    ItemStatus,
    JsonPart,
    PermissionStatus,
    QuestionStatus,
    ReasoningPart,
    ReasoningVisibility,
    SessionEndReason,
    StderrOutput,
    TerminatedBy,
    TextPart,
    TurnPhase,
    UniversalEvent,
    UniversalItem,
    decode_event,
    encode_event,
    event_time,
)

# The contract's schemas; their "$comment" says where they come from.
DOCUMENT = Path(__file__).parent.parent / "engine" / "golden" / "universal-0.1.json"
SCHEMAS: dict[str, Any] = json.loads(DOCUMENT.read_text())["components"]["schemas"]
STRUCTS: list[type[msgspec.Struct]] = [
    UniversalEvent,
    UniversalItem,
    StderrOutput,
    *typing.get_args(EventData),
]
LITERALS = {
    "EventSource": EventSource,
    "FileAction": FileAction,
    "ItemKind": ItemKind,
    "ItemRole": ItemRole,
    "ItemStatus": ItemStatus,
    "PermissionStatus": PermissionStatus,
    "QuestionStatus": QuestionStatus,
    "ReasoningVisibility": ReasoningVisibility,
    "SessionEndReason": SessionEndReason,
    "TerminatedBy": TerminatedBy,
    "TurnPhase": TurnPhase,
    "UniversalEventType": EventType,
}


def an_event(data: EventData, kind: EventType = "item.completed") -> UniversalEvent:
    return UniversalEvent("e", 1, event_time(0), "s", "agent", False, kind, data)


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.__name__)
def test_a_struct_has_the_fields_of_the_contract(struct: type[msgspec.Struct]):
    schema = SCHEMAS[struct.__name__]
    fields = msgspec.structs.fields(struct)
    assert {field.encode_name for field in fields} == set(schema["properties"])
    assert {field.encode_name for field in fields if field.required} == set(schema.get("required", []))


def test_the_parts_are_those_of_the_contract():
    parts: dict[str, type[msgspec.Struct]] = {
        str(part.__struct_config__.tag): part for part in typing.get_args(ContentPart)
    }
    schemas = {schema["properties"]["type"]["enum"][0]: schema for schema in SCHEMAS["ContentPart"]["oneOf"]}
    assert parts.keys() == schemas.keys()
    for name, schema in schemas.items():
        names = {field.encode_name for field in msgspec.structs.fields(parts[name])}
        assert names | {"type"} == set(schema["properties"])


@pytest.mark.parametrize("name", sorted(LITERALS))
def test_the_words_are_those_of_the_contract(name: str):
    assert set(typing.get_args(LITERALS[name])) == set(SCHEMAS[name]["enum"])


def test_what_the_contract_requires_is_written_though_it_is_the_default():
    written = json.loads(
        encode_event(an_event(ItemEventData(UniversalItem("i", "message", [], "completed"))))
    )
    assert written["synthetic"] is False
    assert written["data"]["item"] == {
        "item_id": "i",
        "kind": "message",
        "content": [],
        "status": "completed",
    }
    assert json.loads(msgspec.json.encode(ReasoningPart("x"))) == {
        "type": "reasoning",
        "text": "x",
        "visibility": "public",
    }


@pytest.mark.parametrize(
    "part", [TextPart("a\ud800"), JsonPart({"n": 2**80, "s": "\udfff"}), FileRefPart("/a\ud800", "read", "d")]
)
def test_an_event_is_written_and_read_whatever_is_in_it(part: ContentPart):
    event = an_event(ItemEventData(UniversalItem("i", "message", [part], "completed")))
    assert decode_event(encode_event(event)) == event


def test_raw_is_there_only_where_it_was_put():
    event = an_event(ErrorData("m"), "error")
    assert b"raw" not in encode_event(event)
    assert json.loads(encode_event(msgspec.structs.replace(event, raw=None)))["raw"] is None


def test_an_event_of_a_newer_server_keeps_its_data():
    written = json.loads(encode_event(an_event(ItemDeltaData("i", "d"), "item.delta")))
    newer = json.dumps(written | {"type": "item.moved", "data": {"to": 3}, "new": 1}).encode()
    event = decode_event(newer)
    assert (event.type, event.data) == ("item.moved", {"to": 3})
    odd: dict[str, Any] = {"item": {"item_id": "i", "kind": "hologram", "content": [], "status": "completed"}}
    assert decode_event(json.dumps(written | {"type": "item.started", "data": odd}).encode()).data == odd


def test_what_is_no_event_is_refused():
    with pytest.raises(InvalidEnvelopeError):
        decode_event(b"nonsense")
    with pytest.raises(msgspec.ValidationError):
        decode_event(b"{}")


def test_an_event_of_a_type_is_made_as_before_and_costs_no_class_of_its_own() -> None:
    event = UniversalEvent(
        "e", 1, "2026-01-01T00:00:00.000Z", "s", "agent", False, "item.delta", ItemDeltaData("i", "text")
    )
    assert decode_event(encode_event(event)) == event
    assert type(decode_event(encode_event(event))) is UniversalEvent
    assert AgentEvent is UniversalEvent
    assert UniversalEvent[typing.Literal["item.delta"], ItemDeltaData] is UniversalEvent
    assert not gc.is_tracked(event)
    assert not hasattr(event, "__dict__")
