"""A table of in and out for every update kind, and the orders that real agents send them in."""

import json
from typing import Any

import pytest

from sandbox_agent.engine.project import Projector
from sandbox_agent.engine.project.tools import MAX_UNENDED
from sandbox_agent.wire.universal import (
    AgentUnparsedData,
    ContentPart,
    FileRefPart,
    ImagePart,
    ItemEventData,
    JsonPart,
    ReasoningPart,
    StatusPart,
    TextPart,
    ToolCallPart,
    ToolResultPart,
    UniversalEvent,
)

from .test_project_checks import (
    agent,
    answers,
    asks,
    check,
    completed,
    ends,
    feed,
    joined,
    outline,
    project,
    prompts,
    refuses,
    says,
    sends,
    update,
)

DIFF = {"type": "diff", "path": "/w/a.txt", "oldText": "one\ntwo\n", "newText": "one\n2\n"}
HUNK = "@@ -1,2 +1,2 @@\n one\n-two\n+2\n"
IMAGE = {"type": "image", "data": "aGk=", "mimeType": "image/png"}
COMMANDS = [{"name": "plan", "description": "Plan."}, {"name": "compact", "description": "Compact."}]


def text_content(text: str) -> dict[str, Any]:
    return {"type": "content", "content": {"type": "text", "text": text}}


def tool(kind: str, call_id: str = "c1", /, **members: Any) -> tuple[str, bytes]:
    return update(kind, toolCallId=call_id, **members)


def permission(request_id: Any, call_id: str = "c1", **members: Any) -> tuple[str, bytes]:
    options = [
        {"optionId": "a", "name": "Allow", "kind": "allow_once"},
        {"optionId": "b", "name": "Always", "kind": "allow_always"},
        {"optionId": "c", "name": "No", "kind": "reject_once"},
        {"optionId": "d", "name": "Odd", "kind": "something_new"},
    ]
    call = {"toolCallId": call_id, **members}
    return asks(request_id, "session/request_permission", sessionId="native", toolCall=call, options=options)


def selected(option_id: str) -> dict[str, Any]:
    return {"outcome": {"outcome": "selected", "optionId": option_id}}


def of_turn(*envelopes: tuple[str, bytes]) -> list[UniversalEvent]:
    """Project these in a turn and return what is neither the turn nor the user's message."""
    return project(prompts(), *envelopes, ends())[4:-1]


STATUS = {
    "plan": (
        {
            "entries": [
                {"content": "a", "priority": "high", "status": "completed"},
                {"content": "b", "priority": "low", "status": "pending"},
            ]
        },
        [
            StatusPart("plan", "[x] a\n[ ] b"),
            JsonPart(
                {
                    "entries": [
                        {"content": "a", "priority": "high", "status": "completed"},
                        {"content": "b", "priority": "low", "status": "pending"},
                    ]
                }
            ),
        ],
    ),
    "usage_update": (
        {"used": 5, "size": 10, "cost": {"amount": 0.25, "currency": "USD"}},
        [
            StatusPart("usage", "5 of 10 tokens, 0.25 USD"),
            JsonPart({"used": 5, "size": 10, "cost": {"amount": 0.25, "currency": "USD"}}),
        ],
    ),
    "session_info_update": ({"title": "A title"}, [StatusPart("title", "A title")]),
    "current_mode_update": ({"currentModeId": "plan"}, [StatusPart("mode", "plan")]),
    "config_option_update": (
        {"configOptions": [{"id": "model", "currentValue": "sonnet"}, {"id": "fast", "currentValue": True}]},
        [
            StatusPart("config", "model=sonnet, fast=true"),
            JsonPart(
                {
                    "configOptions": [
                        {"id": "model", "currentValue": "sonnet"},
                        {"id": "fast", "currentValue": True},
                    ]
                }
            ),
        ],
    ),
    "available_commands_update": (
        {"availableCommands": COMMANDS},
        [StatusPart("commands", "plan, compact"), JsonPart({"availableCommands": COMMANDS})],
    ),
    "notice": (
        {"severity": "warning", "title": "Careful", "description": "Slow"},
        [StatusPart("notice", "Careful"), JsonPart({"severity": "warning", "description": "Slow"})],
    ),
    "compaction_update": (
        {"compactionId": "k", "status": "completed", "summary": [{"type": "text", "text": "short"}]},
        [
            StatusPart("compaction", "completed"),
            JsonPart({"compactionId": "k", "status": "completed"}),
            TextPart("short"),
        ],
    ),
}


@pytest.mark.parametrize(("kind", "members", "content"), [(kind, *row) for kind, row in STATUS.items()])
def test_a_change_beside_the_conversation_becomes_a_status_item(
    kind: str, members: dict[str, Any], content: list[ContentPart]
):
    events = of_turn(update(kind, **members))
    assert outline(events) == ["item.started status system", "item.completed status system completed"]
    assert completed(events)[0].content == content
    assert [event.source for event in events] == ["daemon", "agent"]


@pytest.mark.parametrize("kind", sorted(STATUS.keys() - {"notice", "compaction_update"}))
def test_a_status_that_is_told_again_is_shown_once(kind: str):
    members = STATUS[kind][0]
    assert len(completed(of_turn(update(kind, **members), update(kind, **members)))) == 1


@pytest.mark.parametrize(
    ("kind", "role", "item_kind", "part"),
    [
        ("agent_message_chunk", "assistant", "message", TextPart),
        ("agent_thought_chunk", "assistant", "message", ReasoningPart),
        ("user_message_chunk", "user", "message", TextPart),
        ("compaction_summary_chunk", "system", "system", TextPart),
    ],
)
def test_chunks_become_one_item_of_joined_text(kind: str, role: str, item_kind: str, part: Any):
    members = {"compactionId": "k"} if kind == "compaction_summary_chunk" else {}
    chunks = [
        update(kind, content={"type": "text", "text": text}, **members) for text in ("Hel", "", "lo", " you")
    ]
    events = of_turn(*chunks)
    assert [line.removesuffix(" completed") for line in outline(events)] == [
        f"item.started {item_kind} {role}",
        "item.delta Hel",
        "item.delta lo",
        "item.delta  you",
        f"item.completed {item_kind} {role}",
    ]
    assert completed(events)[0].content == [part("Hello you")]
    assert isinstance(events[0].data, ItemEventData)
    assert events[0].data.item.content == [part("")]


def test_an_empty_chunk_alone_is_no_item():
    assert of_turn(says(""), says("", "m1")) == []


def test_a_message_takes_images_links_and_resources_in_their_places():
    events = of_turn(
        says("see "),
        update("agent_message_chunk", content=IMAGE),
        update(
            "agent_message_chunk", content={"type": "resource_link", "name": "a", "uri": "file:///w/a%20b"}
        ),
        update("agent_message_chunk", content={"type": "resource_link", "name": "a", "uri": "https://x/y"}),
        update("agent_message_chunk", content={"type": "hologram", "data": 1}),
        says("there"),
    )
    (item,) = completed(events)
    assert item.content == [
        TextPart("see "),
        ImagePart("data:image/png;base64,aGk=", "image/png"),
        FileRefPart("/w/a b", "read"),
        JsonPart({"type": "resource_link", "name": "a", "uri": "https://x/y"}),
        JsonPart({"type": "hologram", "data": 1}),
        TextPart("there"),
    ]


@pytest.mark.parametrize(
    ("chunks", "messages"),
    [
        pytest.param([("a", "m1"), ("b", "m1")], ["ab"], id="same id"),
        pytest.param([("a", "m1"), ("b", "m2")], ["a", "b"], id="other id"),
        pytest.param([("a", None), ("b", "m1")], ["a", "b"], id="an id after none"),
        pytest.param([("a", "m1"), ("b", None)], ["a", "b"], id="none after an id"),
        pytest.param([("a", "m1"), ("b", "m2"), ("c", "m1")], ["a", "b", "c"], id="an id comes back"),
    ],
)
def test_messages_are_told_apart_by_their_id(chunks: list[tuple[str, str | None]], messages: list[str]):
    events = of_turn(*(says(text, message_id) for text, message_id in chunks))
    assert [joined(item.content) for item in completed(events)] == messages


@pytest.mark.parametrize(("message_id", "messages"), [(None, ["a", "b"]), ("m1", ["ab"])])
def test_another_item_ends_a_message_that_has_no_id(message_id: str | None, messages: list[str]):
    call = tool("tool_call", title="Run", status="completed")
    events = of_turn(says("a", message_id), call, says("b", message_id))
    assert [joined(item.content) for item in completed(events, "message")] == messages


def test_a_status_does_not_end_a_message():
    events = of_turn(says("a"), update("usage_update", used=1, size=2), says("b"))
    assert [joined(item.content) for item in completed(events, "message")] == ["ab"]


def test_a_thought_and_a_message_of_one_id_are_two_items():
    thought = says("hm", "m1", "agent_thought_chunk")
    events = of_turn(thought, says("so", "m1"), says("!", "m1", "agent_thought_chunk"))
    assert sorted(joined(item.content) for item in completed(events)) == ["hm!", "so"]


def test_a_tool_call_becomes_a_call_and_its_result():
    events = of_turn(
        tool("tool_call", title="Edit", kind="edit", status="pending", rawInput={}),
        tool(
            "tool_call_update",
            title="Edit a.txt",
            rawInput={"path": "a"},
            content=[DIFF],
            locations=[{"path": "/w/a.txt"}, {"path": "/w/b.txt"}],
        ),
        tool("tool_call_update", status="in_progress"),
        tool("tool_call_update", status="completed", content=[text_content("done"), text_content("well")]),
    )
    assert outline(events) == [
        "item.started tool_call assistant",
        "item.completed tool_call assistant completed",
        "item.started tool_result tool",
        "item.completed tool_result tool completed",
    ]
    call, result = completed(events)
    assert call.content == [
        ToolCallPart("Edit a.txt", '{"path":"a"}', "c1"),
        StatusPart("Edit a.txt", "edit"),
        FileRefPart("/w/a.txt", "patch", HUNK),
        FileRefPart("/w/b.txt", "patch"),
    ]
    assert result.content == [ToolResultPart("c1", "done\nwell")]
    assert (result.parent_id, result.native_item_id) == (call.item_id, "c1")


@pytest.mark.parametrize(
    ("members", "output"),
    [
        ({"content": [text_content("text")], "rawOutput": "raw"}, "text"),
        ({"rawOutput": "raw"}, "raw"),
        ({"rawOutput": {"output": "out", "metadata": {}}}, "out"),
        ({"rawOutput": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}, "a\nb"),
        ({"rawOutput": {"exit": 0}}, '{"exit":0}'),
        ({"_meta": {"terminal_output": {"data": "$ ls\n"}}}, "$ ls\n"),
        ({}, ""),
    ],
)
def test_a_result_is_what_the_agent_shows_or_else_its_raw_output(members: dict[str, Any], output: str):
    about = tool("tool_call", title="Run", status="pending", content=[text_content("lists the files")])
    described = [] if not members else [about]
    events = of_turn(*described, tool("tool_call_update", status="failed", **members))
    (result,) = completed(events, "tool_result")
    assert (result.content, result.status) == ([ToolResultPart("c1", output)], "failed")


def test_terminal_output_that_comes_in_pieces_is_joined():
    pieces = [tool("tool_call_update", _meta={"terminal_output": {"data": text}}) for text in ("a", "b")]
    events = of_turn(*pieces, tool("tool_call_update", status="completed"))
    assert completed(events, "tool_result")[0].content == [ToolResultPart("c1", "ab")]


def test_a_new_file_is_written_and_a_result_tells_the_diff_that_the_call_did_not():
    new = {"type": "diff", "path": "/w/n", "oldText": None, "newText": "x"}
    events = of_turn(
        tool("tool_call", title="write", kind="edit", rawInput={"a": 1}),
        tool("tool_call_update", status="completed", content=[new]),
    )
    assert completed(events, "tool_result")[0].content[1:] == [
        FileRefPart("/w/n", "write", "@@ -0,0 +1 @@\n+x\n\\ No newline at end of file\n")
    ]


def test_arguments_that_change_after_the_call_are_kept_in_the_result():
    events = of_turn(
        tool("tool_call", title="t", rawInput={"a": 1}),
        tool("tool_call_update", rawInput={"a": 2}, status="completed"),
    )
    assert completed(events, "tool_result")[0].content[1:] == [JsonPart({"rawInput": {"a": 2}})]


@pytest.mark.parametrize(
    ("members", "name"),
    [
        ({"name": "exec"}, "exec"),
        ({"_meta": {"claudeCode": {"toolName": "Bash"}}}, "Bash"),
        ({"_meta": {"toolName": "write_file"}}, "write_file"),
        ({"_meta": {"goose": {"toolCall": {"toolName": "write"}}}}, "write"),
        ({}, "Title"),
    ],
)
def test_a_call_has_the_tools_name_where_the_agent_tells_it(members: dict[str, Any], name: str):
    events = of_turn(tool("tool_call", title="Title", status="completed", **members))
    part = completed(events, "tool_call")[0].content[0]
    assert isinstance(part, ToolCallPart)
    assert part.name == name


def test_the_call_of_a_sub_agent_belongs_to_the_call_that_started_it():
    events = of_turn(
        tool("tool_call", title="Task", rawInput={"a": 1}),
        tool("tool_call", "c2", title="Read", _meta={"claudeCode": {"parentToolUseId": "c1"}}),
    )
    task, read, *_ = completed(events, "tool_call")
    assert read.parent_id == task.item_id


def test_an_update_before_its_tool_call_is_one_call():
    events = of_turn(
        tool("tool_call_update", status="in_progress"),
        tool("tool_call", title="Run", kind="execute", rawInput={"cmd": "ls"}),
        tool("tool_call_update", status="completed", rawOutput="x"),
    )
    (call,) = completed(events, "tool_call")
    assert call.content[0] == ToolCallPart("Run", '{"cmd":"ls"}', "c1")


def test_a_permission_before_its_tool_call_is_one_call():
    events = of_turn(
        permission(0, title="Write a"),
        answers("client", 0, selected("a")),
        tool("tool_call", title="Write a", rawInput={"path": "a"}),
        tool("tool_call_update", status="completed", rawOutput="ok"),
    )
    assert outline(events) == [
        "item.started tool_call assistant",
        "permission.requested requested",
        "permission.resolved accept",
        "item.completed tool_call assistant completed",
        "item.started tool_result tool",
        "item.completed tool_result tool completed",
    ]
    assert completed(events, "tool_call")[0].content[0] == ToolCallPart("Write a", '{"path":"a"}', "c1")


def test_a_result_after_the_end_of_its_turn_is_told_and_one_that_is_told_twice_is_not():
    late = tool("tool_call_update", status="completed", rawOutput="late")
    events = project(prompts(), tool("tool_call", title="Run", rawInput={"a": 1}), ends(), late, late)
    results = completed(events, "tool_result")
    assert [item.content[0] for item in results] == [ToolResultPart("c1", ""), ToolResultPart("c1", "late")]


def late_results(*late: tuple[str, bytes], reason: str = "end_turn") -> list[tuple[str, str]]:
    """Return status and output of the results of a call that is open when its turn ends."""
    events = project(prompts(), tool("tool_call", title="Run", rawInput={"a": 1}), ends(reason=reason), *late)
    assert len(completed(events, "tool_call")) == 1
    parts = [(item.status, item.content[0]) for item in completed(events, "tool_result")]
    return [(status, part.output) for status, part in parts if isinstance(part, ToolResultPart)]


def test_a_call_that_ends_after_its_turn_has_the_status_that_the_agent_tells():
    done, failed = (tool("tool_call_update", status=status) for status in ("completed", "failed"))
    assert late_results(done, done, reason="cancelled") == [("failed", ""), ("completed", "")]
    assert late_results(failed, done) == [("completed", ""), ("failed", "")]
    assert late_results(done) == [("completed", "")]


def test_an_output_after_the_turn_is_part_of_the_result():
    part = tool("tool_call_update", status="in_progress", content=[text_content("all of it")])
    done = tool("tool_call_update", status="completed")
    assert late_results(part) == [("completed", "")]
    assert late_results(part, done) == [("completed", ""), ("completed", "all of it")]


def test_a_call_that_ends_in_the_next_turn_is_no_other_call():
    done = tool("tool_call_update", status="completed", rawOutput="late")
    assert late_results(prompts(2), done, ends(2), reason="cancelled") == [
        ("failed", ""),
        ("completed", "late"),
    ]
    assert late_results(prompts(2), ends(2), prompts(3), done, ends(3))[1:] == [("completed", "late")]


def test_a_call_that_never_ended_can_be_used_again_by_the_next_turn():
    again = tool("tool_call", title="Run", rawInput={"b": 1}, status="pending")
    events = project(prompts(), tool("tool_call", title="Run"), ends(), prompts(2), again, ends(2))
    assert len(completed(events, "tool_call")) == 2


def test_only_the_newest_calls_that_never_ended_are_kept():
    calls = [tool("tool_call", f"c{number}", title="Run") for number in range(MAX_UNENDED + 5)]
    projector = Projector("s")
    feed(projector, prompts(), *calls, ends(), prompts(2))
    assert list(projector.snapshot()["done"]) == [f"c{number}" for number in range(5, MAX_UNENDED + 5)]


def test_a_call_id_that_is_used_again_is_another_call():
    once = [tool("tool_call", title="Run", rawInput={"a": 1}), tool("tool_call_update", status="completed")]
    assert len(completed(of_turn(*once, *once), "tool_call")) == 2


@pytest.mark.parametrize(("reason", "status"), [("end_turn", "completed"), ("cancelled", "failed")])
def test_a_call_of_which_the_agent_does_not_tell_the_end_ends_with_its_turn(reason: str, status: str):
    events = project(prompts(), tool("tool_call", title="Run"), ends(reason=reason))
    assert [item.status for item in completed(events, "tool_call", "tool_result")] == ["completed", status]


@pytest.mark.parametrize(("text", "value"), [("short", {"text": "short"}), ("x" * 3_000, None)])
def test_a_method_of_an_agents_own_is_a_status(text: str, value: object):
    (item,) = completed(project(agent("craft/drainMidTurnQueue", text=text)), "status")
    label, *rest = item.content
    assert label == StatusPart("extension", "craft/drainMidTurnQueue")
    assert rest == ([JsonPart(value)] if value else [])


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(update("quantum_update", x=1), id="unknown kind"),
        pytest.param(update("plan"), id="required member missing"),
        pytest.param(agent("session/update", sessionId="native"), id="no update"),
        pytest.param(agent("session/update", update=[1]), id="update is a list"),
        pytest.param(agent("session/unknown"), id="unknown method"),
        pytest.param(agent("unknown"), id="unknown method without a slash"),
        pytest.param(("agent", b'{"jsonrpc":"2.0","method":7}'), id="method is a number"),
        pytest.param(("agent", b'{"jsonrpc":"2.0"}'), id="no message"),
        pytest.param(("agent", b"[1,2]"), id="a list"),
        pytest.param(("client", b"nonsense"), id="no JSON, from the client"),
        pytest.param(("agent", b'{"a": "\xff\xfe'), id="not UTF-8"),
        pytest.param(("agent", b"[" * 100_000), id="nested too deeply"),
        pytest.param(agent("_adapter/invalid_stdout", error="not JSON", raw="hello"), id="a line of stdout"),
    ],
)
def test_what_is_not_understood_is_told_with_all_of_it(broken: tuple[str, bytes]):
    (event,) = project(broken)
    assert isinstance(event.data, AgentUnparsedData)
    assert event.type == "agent.unparsed"
    assert event.data.raw_hash is not None
    assert event.raw


@pytest.mark.parametrize(
    "silent",
    [
        agent("_vendor/notification", x=1),
        asks(3, "fs/read_text_file", path="/w/a"),
        asks(4, "terminal/create", command="ls"),
        asks("u", "_vendor/request", x=1),
        answers("agent", 99, {}),
        answers("client", 99, {}),
        sends(5, "initialize", protocolVersion=1),
        update("session_info_update", _meta={"x": 1}),
    ],
)
def test_what_no_viewer_needs_is_no_event(silent: tuple[str, bytes]):
    assert project(silent) == []


def test_lone_surrogates_go_through():
    prompt = sends(1, "session/prompt", prompt=[{"type": "text", "text": "\udc00"}])
    chunk = says("a\ud800")
    call = tool("tool_call", "\ud801", title="\ud801", status="completed", rawOutput="\ud801")
    events = project(prompt, chunk, call, ends())
    assert [joined(item.content) for item in completed(events, "message")] == ["\udc00", "a\ud800"]
    projector = Projector.restore(json.loads(json.dumps(feed_snapshot(prompt, chunk))))
    check([*feed(Projector("s"), prompt, chunk), *feed(projector, ends())])


def feed_snapshot(*envelopes: tuple[str, bytes]) -> dict[str, Any]:
    projector = Projector("s")
    feed(projector, *envelopes)
    return projector.snapshot()


def test_an_error_to_a_request_of_the_clients_is_told_unless_the_agent_has_no_such_method():
    sent = sends(7, "session/set_mode", modeId="plan")
    assert outline(project(sent, refuses("agent", 7, -32000, "log in"))) == ["error"]
    assert project(sent, refuses("agent", 7, -32601, "no such method")) == []
