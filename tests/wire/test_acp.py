import json
import typing
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from sandbox_agent.wire import acp
from sandbox_agent.wire.acp import (
    AgentMessageChunk,
    CompactionSummaryChunk,
    Content,
    ContentBlock,
    Diff,
    ImageContent,
    KnownUpdate,
    PermissionOption,
    Plan,
    PlanEntry,
    SessionUpdate,
    Terminal,
    TextContent,
    ToolCall,
    ToolCallContent,
    ToolCallLocation,
    ToolCallUpdate,
    UnknownContent,
    UnknownUpdate,
    UsageUpdate,
    parse_permission_request,
    parse_prompt_response,
    parse_update,
    read_update,
)

GOLDEN = Path(__file__).parent / "golden"
# How this file was made is in its "$comment".
SCHEMA: dict[str, Any] = json.loads((GOLDEN / "acp-v1-session-updates.json").read_text())
# One update per kind and agent out of recorded sessions of real agents; long lists and texts are cut.
UPDATES = [json.loads(line) for line in (GOLDEN / "acp-updates.ndjson").read_text().splitlines()]
PERMISSIONS = [json.loads(line) for line in (GOLDEN / "acp-permissions.ndjson").read_text().splitlines()]
RESPONSES = [json.loads(line) for line in (GOLDEN / "acp-prompt-responses.ndjson").read_text().splitlines()]
TEXT = {"type": "text", "text": "hi"}


def shape(view: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(view)}


def views(union: Any) -> dict[str, type[msgspec.Struct]]:
    members: tuple[type[msgspec.Struct], ...] = typing.get_args(union)
    return {str(member.__struct_config__.tag): member for member in members if member is not UnknownContent}


@pytest.mark.parametrize(
    ("name", "union"),
    [
        ("SessionUpdate", KnownUpdate),
        ("ContentBlock", ContentBlock),
        ("ToolCallContent", ToolCallContent),
    ],
)
def test_the_views_have_every_kind_and_property_of_the_schema(name: str, union: Any) -> None:
    kinds = views(union)
    assert sorted(kinds) == sorted(SCHEMA[name])
    for kind, definition in SCHEMA[name].items():
        assert shape(kinds[kind]) == set(definition["properties"]), kind


@pytest.mark.parametrize("name", sorted(SCHEMA["definitions"]))
def test_the_nested_views_have_every_property_of_the_schema(name: str) -> None:
    view = getattr(acp, {"RequestPermissionRequest": "PermissionRequest"}.get(name, name))
    # Agents send the usage, which the stable schema does not list; the SDK adds "cancelled".
    beyond: set[str] = {"usage", "cancelled"} if name == "PromptResponse" else set()
    assert shape(view) - beyond == set(SCHEMA["definitions"][name]["properties"])


@pytest.mark.parametrize("row", UPDATES, ids=lambda row: f"{row['agent']}-{row['update']['sessionUpdate']}")
def test_a_view_keeps_all_that_a_real_agent_says(row: dict[str, Any]) -> None:
    view = parse_update(row["update"])
    assert view == parse_update(json.dumps(row["update"]).encode())
    assert not isinstance(view, UnknownUpdate)
    assert view.session_update == row["update"]["sessionUpdate"]
    assert "UnknownContent" not in repr(view)
    kept = msgspec.to_builtins(view)
    for field in msgspec.structs.fields(type(view)):
        if field.encode_name in row["update"]:
            sent = without_nulls(row["update"][field.encode_name])
            assert without_nulls(kept.get(field.encode_name, field.default)) == sent, field.name


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {k: without_nulls(v) for k, v in members.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in cast("list[Any]", value)]
    return None if value is msgspec.NODEFAULT else value


def test_recordings_cover_eight_agents() -> None:
    assert len({row["agent"] for row in UPDATES}) == 8


def test_a_view_matches_in_a_match_statement() -> None:
    update = parse_update({"sessionUpdate": "agent_message_chunk", "content": TEXT, "messageId": "m"})
    match update:
        case AgentMessageChunk(content=TextContent(text=text), message_id=message_id):
            assert (text, message_id, update.text) == ("hi", "m", "hi")
        case _:
            pytest.fail(f"{update!r} did not match")


def test_text_is_empty_where_a_chunk_holds_no_text() -> None:
    update = parse_update(
        {
            "sessionUpdate": "compaction_summary_chunk",
            "compactionId": "c",
            "content": {"type": "image", "data": "aGk=", "mimeType": "image/png"},
        }
    )
    image = ImageContent(data="aGk=", mime_type="image/png")
    assert update == CompactionSummaryChunk(compaction_id="c", content=image)
    assert isinstance(update, CompactionSummaryChunk)
    assert update.text == ""


def test_a_tool_call_is_typed_to_its_leaves() -> None:
    update = parse_update(
        {
            "sessionUpdate": "tool_call",
            "toolCallId": "t",
            "title": "Edit",
            "kind": "edit",
            "content": [
                {"type": "content", "content": TEXT},
                {"type": "diff", "path": "/a", "oldText": None, "newText": "x"},
                {"type": "terminal", "terminalId": "term"},
            ],
            "locations": [{"path": "/a", "line": 3}],
            "rawInput": {"path": "/a"},
            "_meta": {"x": 1},
            "notInTheSchema": True,
        }
    )
    assert update == ToolCall(
        tool_call_id="t",
        title="Edit",
        kind="edit",
        content=[
            Content(content=TextContent(text="hi")),
            Diff(path="/a", new_text="x"),
            Terminal(terminal_id="term"),
        ],
        locations=[ToolCallLocation(path="/a", line=3)],
        raw_input={"path": "/a"},
        meta={"x": 1},
    )


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        (
            {
                "sessionUpdate": "tool_call",
                "toolCallId": "t",
                "title": "T",
                "content": None,
                "locations": None,
            },
            ToolCall(tool_call_id="t", title="T"),
        ),
        (
            {"sessionUpdate": "tool_call", "toolCallId": "t", "title": "T", "kind": None, "status": 7},
            ToolCall(tool_call_id="t", title="T"),
        ),
        (
            {
                "sessionUpdate": "tool_call_update",
                "toolCallId": "t",
                "locations": [{"path": 1}, {"path": "/a", "line": "x"}],
            },
            ToolCallUpdate(tool_call_id="t", locations=[ToolCallLocation(path="/a")]),
        ),
        ({"sessionUpdate": "plan", "entries": None}, Plan(entries=[])),
        (
            {"sessionUpdate": "plan", "entries": [{"content": "a", "priority": None}, 3]},
            Plan(entries=[PlanEntry(content="a")]),
        ),
        (
            {"sessionUpdate": "usage_update", "used": 1, "size": 2, "cost": {"amount": "a lot"}},
            UsageUpdate(used=1, size=2),
        ),
        (
            {"sessionUpdate": "agent_message_chunk", "content": {"type": "hologram", "depth": 3}},
            AgentMessageChunk(content=UnknownContent("hologram", {"type": "hologram", "depth": 3})),
        ),
        (
            {"sessionUpdate": "agent_message_chunk", "content": {"type": "text", "text": None}},
            AgentMessageChunk(content=UnknownContent("text", {"type": "text", "text": None})),
        ),
        (
            {
                "sessionUpdate": "tool_call_update",
                "toolCallId": "t",
                "content": [{"type": "content", "content": TEXT}, {"type": "chart"}],
            },
            ToolCallUpdate(
                tool_call_id="t",
                content=[
                    Content(content=TextContent(text="hi")),
                    UnknownContent("chart", {"type": "chart"}),
                ],
            ),
        ),
    ],
)
def test_a_broken_update_keeps_what_fits(update: dict[str, Any], expected: SessionUpdate) -> None:
    assert parse_update(update) == expected
    assert parse_update(json.dumps(update).encode()) == expected


@pytest.mark.parametrize(
    "update",
    [
        {"sessionUpdate": "from_the_future", "x": [1]},
        {"sessionUpdate": "plan"},
        {"sessionUpdate": "current_mode_update", "currentModeId": None},
        {"sessionUpdate": "usage_update", "used": "many", "size": 1},
        {"sessionUpdate": ""},
    ],
)
def test_an_update_that_does_not_fit_passes_through(update: dict[str, Any]) -> None:
    expected = UnknownUpdate(update["sessionUpdate"], update)
    assert parse_update(update) == expected
    assert parse_update(json.dumps(update).encode()) == expected


@pytest.mark.parametrize(
    "data",
    [b"", b"null", b"[1]", b"{", b'"x"', b"\xff", b'{"sessionUpdate":3}', b"[" * 100_000],
)
def test_parse_update_never_raises(data: bytes) -> None:
    view = parse_update(data)
    assert isinstance(view, UnknownUpdate)
    assert view.session_update == ""


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (rb"a\ud83d", "a\ufffd"),
        (rb"\ud83db", "\ufffdb"),
        (rb"\ude00b", "\ufffdb"),
        (rb"\ude00\ud83d", "\ufffd\ufffd"),
        (rb"\ud83d\ude00", "\U0001f600"),
        (rb"\ufeffa", "\ufeffa"),
    ],
)
def test_the_text_of_a_chunk_has_no_lone_surrogates_and_its_content_has(escaped: bytes, text: str) -> None:
    update = b'{"sessionUpdate":"agent_message_chunk","content":{"type":"text","text":"%s"}}' % escaped
    view = parse_update(update)
    assert isinstance(view, AgentMessageChunk)
    assert view.text == text
    view.text.encode()
    assert isinstance(view.content, TextContent)
    assert view.content.text == json.loads(b'"%s"' % escaped)


def test_read_update_finds_the_update_in_an_envelope() -> None:
    plan: dict[str, Any] = {"sessionUpdate": "plan", "entries": []}
    envelope: dict[str, Any] = {
        "jsonrpc": "2.0",
        "method": "session/update",
        "params": {"sessionId": "s", "update": plan},
    }
    assert read_update(json.dumps(envelope).encode()) == Plan(entries=[])


@pytest.mark.parametrize(
    "envelope",
    [
        b'{"id":1,"result":{"stopReason":"end_turn"}}',
        b'{"id":1,"result":null}',
        b'{"method":"session/request_permission","id":0,"params":{"options":[]}}',
        b'{"method":"x","params":[1]}',
        b'{"method":3}',
        b"not json",
    ],
)
def test_read_update_is_none_where_an_envelope_carries_none(envelope: bytes) -> None:
    assert read_update(envelope) is None


def test_read_update_passes_a_broken_one_through() -> None:
    assert read_update(b'{"method":"session/update","params":null}') == UnknownUpdate("", {})
    assert read_update(b'{"method":"session/update","params":{"update":[1]}}') == UnknownUpdate("", {})


@pytest.mark.parametrize("row", PERMISSIONS, ids=lambda row: row["agent"])
def test_a_real_permission_request_is_typed(row: dict[str, Any]) -> None:
    params = row["params"]
    request = parse_permission_request(params)
    assert request == parse_permission_request(json.dumps(params).encode())
    assert request.session_id == params["sessionId"]
    assert request.tool_call.tool_call_id == params["toolCall"]["toolCallId"]
    assert request.tool_call.title == params["toolCall"].get("title")
    assert request.options == [
        PermissionOption(option_id=o["optionId"], name=o["name"], kind=o["kind"], meta=o.get("_meta"))
        for o in params["options"]
    ]


def test_a_broken_permission_request_is_empty_where_it_is_broken() -> None:
    request = parse_permission_request({"sessionId": "s", "toolCall": None, "options": None})
    assert (request.session_id, request.tool_call.tool_call_id, request.options) == ("s", "", [])


@pytest.mark.parametrize("row", RESPONSES, ids=lambda row: row["agent"])
def test_a_real_prompt_response_is_typed(row: dict[str, Any]) -> None:
    response = parse_prompt_response(row["result"])
    assert response.stop_reason == "end_turn"
    assert response.usage == row["result"].get("usage")
    assert response.meta == row["result"].get("_meta")
