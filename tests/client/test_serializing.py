"""Public types as JSON: with their own methods, by msgspec, by pydantic, and as FastAPI returns them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import pytest
from pydantic import BaseModel, TypeAdapter

from sandbox_agent import (
    AgentMessageChunk,
    InMemorySessionPersistDriver,
    ListPage,
    McpLocalServer,
    McpRemoteServer,
    SandboxAgent,
    SandboxAgentError,
    SessionEvent,
    SessionRecord,
    ToolCall,
    UniversalEvent,
)
from sandbox_agent.wire.acp import parse_update
from sandbox_agent.wire.universal import decode_event
from tests.client.scripted_sessions import event
from tests.client.test_copies import INSTANCES

TYPES: dict[str, Any] = {
    name: value
    for name, value in INSTANCES.items()
    if name != "Capability" and not isinstance(value, SandboxAgentError)
}
EVENT = SessionEvent("e", 1, "s", 1_700_000_000_123, "c", "agent", b'{"method":"x","params":{"a":[1,null]}}')
RECORD = SessionRecord(
    id="s",
    agent="mock",
    agent_session_id="a",
    last_connection_id="c",
    created_at=1_700_000_000_123,
    session_init={"cwd": "/", "mcpServers": [{"name": "m", "env": [{"name": "K", "value": "hunter2"}]}]},
)


@pytest.mark.parametrize("name", TYPES)
def test_a_public_type_has_one_json_form(name: str) -> None:
    value = TYPES[name]
    plain = value.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert json.loads(value.to_json()) == plain
    adapter: TypeAdapter[Any] = TypeAdapter(cast("Any", type(value)))
    assert adapter.dump_python(value) == plain
    if "\\ud83d" not in json.dumps(plain) and not name.startswith("Unknown"):
        assert msgspec.json.decode(msgspec.json.encode(value)) == plain


def test_a_stored_event_is_written_as_the_typescript_sdk_does() -> None:
    assert EVENT.to_dict() == {
        "id": "e",
        "eventIndex": 1,
        "sessionId": "s",
        "createdAt": 1_700_000_000_123,
        "connectionId": "c",
        "sender": "agent",
        "payload": {"method": "x", "params": {"a": [1, None]}},
    }
    assert msgspec.json.decode(msgspec.json.encode([EVENT])) == [EVENT.to_dict()]


def test_events_are_read_back() -> None:
    assert SessionEvent.from_dict(EVENT.to_dict()) == EVENT
    universal = decode_event(event(3))
    assert UniversalEvent.from_dict(universal.to_dict()) == universal
    for kind in (SessionEvent, UniversalEvent):
        with pytest.raises(msgspec.ValidationError):
            kind.from_dict({"id": 1})


def test_what_is_not_known_passes_through() -> None:
    block = {"type": "hologram", "data": [1]}
    chunk = parse_update({"sessionUpdate": "agent_message_chunk", "content": block})
    assert isinstance(chunk, AgentMessageChunk)
    assert chunk.to_dict() == {"sessionUpdate": "agent_message_chunk", "content": block}
    call = parse_update(
        {"sessionUpdate": "tool_call", "toolCallId": "t", "title": "T", "content": [{"type": "odd", "x": 1}]}
    )
    assert isinstance(call, ToolCall)
    assert call.to_dict()["content"] == [{"type": "odd", "x": 1}]
    update = {"sessionUpdate": "novel", "x": {"y": 1}}
    assert parse_update(update).to_dict() == update


def test_models_of_pydantic_have_them_as_fields() -> None:
    class Answer(BaseModel):
        record: SessionRecord
        events: list[SessionEvent]
        page: ListPage[Any]

    answer = Answer(record=RECORD, events=[EVENT], page=ListPage([EVENT], "next"))
    assert json.loads(answer.model_dump_json()) == {
        "record": RECORD.to_dict(),
        "events": [EVENT.to_dict()],
        "page": {"items": [EVENT.to_dict()], "next_cursor": "next"},
    }
    assert Answer.model_json_schema()["properties"]["record"]["type"] == "object"


def test_times_are_datetimes_too() -> None:
    expected = datetime(2023, 11, 14, 22, 13, 20, 123_000, UTC)
    assert (EVENT.created_time, RECORD.created_time, RECORD.destroyed_time) == (expected, expected, None)
    universal = decode_event(event(1))
    assert universal.created_time == datetime.fromisoformat(universal.time)
    assert msgspec.structs.replace(RECORD, created_at=10**18).created_time.year == 9999
    assert msgspec.structs.replace(RECORD, created_at=-1).created_time == datetime(1970, 1, 1, tzinfo=UTC)


def test_representations_are_short_and_have_no_secrets() -> None:
    values: list[object] = [
        RECORD,
        McpLocalServer(command="x", env={"K": "hunter2"}),
        McpRemoteServer(url="http://h", headers={"Authorization": "hunter2"}),
        SandboxAgent(base_url="http://h", token="hunter2", persist=InMemorySessionPersistDriver()),
        TYPES["PermissionRequest"],
        EVENT,
        decode_event(event(1)),
    ]
    for value in values:
        assert "hunter2" not in repr(value)
        assert len(repr(value)) < 250
    assert repr(values[3]) == "<SandboxAgent 'http://h'>"


@pytest.mark.anyio
async def test_a_session_is_its_record_without_what_it_was_created_with(sdk: SandboxAgent) -> None:
    servers = {"m": {"command": "x", "env": {"K": "hunter2"}}}
    session = await sdk.create_session(agent="mock", mcp_servers=servers)
    assert "hunter2" in json.dumps(session.record.to_dict())
    assert "hunter2" not in session.to_json() + repr(session)
    assert session.to_dict()["id"] == session.id
    assert session.created_time == session.record.created_time
    assert session.to_dict() in (await sdk.list_sessions()).to_dict()["items"]
