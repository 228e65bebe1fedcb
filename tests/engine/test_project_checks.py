"""What holds for every projection, as functions for the other tests; and that they find what is wrong."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
from jsonschema import Draft202012Validator

from sandbox_agent.engine.project import Projector
from sandbox_agent.wire.universal import (
    ContentPart,
    ItemDeltaData,
    ItemEventData,
    PermissionEventData,
    QuestionEventData,
    ReasoningPart,
    TextPart,
    TurnEventData,
    UniversalEvent,
    UniversalItem,
    decode_event,
    encode_event,
)

GOLDEN = Path(__file__).parent / "golden"
DATA_SCHEMAS = {
    "session.started": "SessionStartedData",
    "session.ended": "SessionEndedData",
    "turn.started": "TurnEventData",
    "turn.ended": "TurnEventData",
    "item.started": "ItemEventData",
    "item.delta": "ItemDeltaData",
    "item.completed": "ItemEventData",
    "error": "ErrorData",
    "permission.requested": "PermissionEventData",
    "permission.resolved": "PermissionEventData",
    "question.requested": "QuestionEventData",
    "question.resolved": "QuestionEventData",
    "agent.unparsed": "AgentUnparsedData",
}


def read_schema() -> dict[str, Any]:
    """Return the contract's schemas; nothing may be in an event that they don't name."""
    document: dict[str, Any] = json.loads((GOLDEN / "universal-0.1.json").read_text())
    schemas: dict[str, Any] = document["components"]["schemas"]
    # The data's oneOf can't hold: SessionStartedData requires nothing, so that all others fit it too. The
    # event's type says which one is meant.
    schemas["UniversalEvent"]["properties"]["data"] = {}
    for schema in [*schemas.values(), *schemas["ContentPart"]["oneOf"]]:
        if "properties" in schema:
            schema["additionalProperties"] = False
    return document


def validator(name: str) -> Any:
    return Draft202012Validator(read_schema() | {"$ref": f"#/components/schemas/{name}"})


def errors(schema: Any, document: Any) -> Iterable[object]:
    return schema.iter_errors(document)


EVENT = validator("UniversalEvent")
DATA = {kind: validator(name) for kind, name in DATA_SCHEMAS.items()}


def check_schema(event: UniversalEvent) -> None:
    document = json.loads(encode_event(event))
    assert not list(errors(EVENT, document))
    assert not list(errors(DATA[event.type], document["data"]))


def joined(content: Iterable[ContentPart]) -> str:
    return "".join(part.text for part in content if isinstance(part, TextPart | ReasoningPart))


def identity(item: UniversalItem) -> tuple[object, ...]:
    return (item.item_id, item.kind, item.role, item.native_item_id, item.parent_id)


def check(
    events: Sequence[UniversalEvent], *, first: int = 1, closed: bool = True, new: int | None = None
) -> None:
    """Check what holds for every session.

    ``closed`` says that all that starts must have ended, ``new`` that only so many of the last events need
    be held against the schema.
    """
    for event in events[len(events) - new :] if new is not None else events:
        check_schema(event)
    assert [event.sequence for event in events] == list(range(first, first + len(events)))
    assert len({event.event_id for event in events}) == len(events)
    started: dict[str, UniversalItem] = {}
    deltas: dict[str, list[str]] = {}
    completed: dict[str, UniversalItem] = {}
    open_now: set[tuple[str, str]] = set()
    for event in events:
        assert event.synthetic is (event.source == "daemon")
        match event.data:
            case ItemEventData(item=item) if event.type == "item.started":
                assert item.status == "in_progress"
                assert item.item_id not in started, "an item starts twice"
                started[item.item_id] = item
                deltas[item.item_id] = []
            case ItemEventData(item=item):
                assert item.status != "in_progress"
                assert item.item_id not in completed, "an item completes twice"
                assert identity(started[item.item_id]) == identity(item)
                completed[item.item_id] = item
            case ItemDeltaData():
                assert event.data.item_id not in completed, "a delta comes after the end"
                assert event.data.delta
                deltas[event.data.item_id].append(event.data.delta)
            case TurnEventData():
                change(open_now, "turn", event.data.turn_id or "", begins=event.data.phase == "started")
                assert event.type == f"turn.{event.data.phase}"
            case PermissionEventData():
                begins = event.data.status == "requested"
                change(open_now, "permission", event.data.permission_id, begins=begins)
            case QuestionEventData():
                begins = event.data.status == "requested"
                change(open_now, "question", event.data.question_id, begins=begins)
            case _:
                pass
    for item_id, item in completed.items():
        if deltas[item_id] or item.kind in {"message", "system"}:
            assert "".join(deltas[item_id]) == joined(item.content)
    if closed:
        assert started.keys() == completed.keys(), "an item never completes"
        assert not open_now


def change(open_now: set[tuple[str, str]], kind: str, name: str, *, begins: bool) -> None:
    assert begins is ((kind, name) not in open_now), f"{kind} {name}"
    if begins:
        open_now.add((kind, name))
    else:
        open_now.remove((kind, name))


def agent(method: str, /, **params: Any) -> tuple[str, bytes]:
    return "agent", json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()


def update(kind: str, /, **members: Any) -> tuple[str, bytes]:
    return agent("session/update", sessionId="native", update={"sessionUpdate": kind, **members})


def says(text: str, message_id: str | None = None, kind: str = "agent_message_chunk") -> tuple[str, bytes]:
    named = {} if message_id is None else {"messageId": message_id}
    return update(kind, content={"type": "text", "text": text}, **named)


def asks(request_id: Any, method: str, /, **params: Any) -> tuple[str, bytes]:
    envelope = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    return "agent", json.dumps(envelope).encode()


def sends(request_id: Any, method: str, /, **params: Any) -> tuple[str, bytes]:
    envelope = {"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}
    return "client", json.dumps(envelope).encode()


def notifies(method: str, /, **params: Any) -> tuple[str, bytes]:
    return "client", json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()


def prompts(request_id: Any = 1, text: str = "go") -> tuple[str, bytes]:
    return sends(request_id, "session/prompt", sessionId="native", prompt=[{"type": "text", "text": text}])


def answers(sender: str, request_id: Any, result: Any) -> tuple[str, bytes]:
    return sender, json.dumps({"jsonrpc": "2.0", "id": request_id, "result": result}).encode()


def refuses(sender: str, request_id: Any, code: int, message: str, **data: Any) -> tuple[str, bytes]:
    error = {"code": code, "message": message, **({"data": data} if data else {})}
    return sender, json.dumps({"jsonrpc": "2.0", "id": request_id, "error": error}).encode()


def ends(request_id: Any = 1, reason: str = "end_turn") -> tuple[str, bytes]:
    return answers("agent", request_id, {"stopReason": reason})


def feed(projector: Projector, *envelopes: tuple[str, bytes]) -> list[UniversalEvent]:
    events: list[UniversalEvent] = []
    for sender, envelope in envelopes:
        events += projector.feed("client" if sender == "client" else "agent", envelope, 1_000)
    return events


def project(*envelopes: tuple[str, bytes], closed: bool = True) -> list[UniversalEvent]:
    """Return the events of these envelopes, checked."""
    events = feed(Projector("s"), *envelopes)
    check(events, closed=closed)
    return events


def completed(events: Iterable[UniversalEvent], *kinds: str) -> list[UniversalItem]:
    """Return the completed items of these kinds."""
    return [
        event.data.item
        for event in events
        if event.type == "item.completed"
        and isinstance(event.data, ItemEventData)
        and (not kinds or event.data.item.kind in kinds)
    ]


def outline(events: Iterable[UniversalEvent]) -> list[str]:
    """Return a line for each event: its type and what it is about."""
    lines: list[str] = []
    for event in events:
        match event.data:
            case ItemEventData(item=item):
                status = "" if event.type == "item.started" else f" {item.status}"
                lines.append(f"{event.type} {item.kind} {item.role}{status}")
            case ItemDeltaData():
                lines.append(f"{event.type} {event.data.delta}")
            case PermissionEventData() | QuestionEventData():
                lines.append(f"{event.type} {event.data.status}")
            case TurnEventData():
                metadata = cast("dict[str, Any]", event.data.metadata or {})
                lines.append(" ".join(filter(None, [event.type, metadata.get("stop_reason")])))
            case _:
                lines.append(event.type)
    return lines


GOOD = feed(Projector("s"), prompts(), says("a"), says("b"), update("plan", entries=[]), ends())


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(GOOD[1:], id="the first is missing"),
        pytest.param([*GOOD, GOOD[-1]], id="the last comes twice"),
        pytest.param(GOOD[:-2], id="the end is missing"),
        pytest.param(
            [msgspec.structs.replace(event, event_id="same") for event in GOOD], id="all have one name"
        ),
        pytest.param(
            [
                msgspec.structs.replace(event, data=ItemDeltaData(event.data.item_id, "other"))
                if isinstance(event.data, ItemDeltaData)
                else event
                for event in GOOD
            ],
            id="the deltas are others",
        ),
    ],
)
def test_the_checks_find_what_is_wrong(broken: list[UniversalEvent]):
    check(GOOD)
    with pytest.raises(AssertionError):
        check(broken)


def test_every_event_comes_back_as_it_was_written():
    for event in GOOD:
        assert decode_event(encode_event(event)) == event
