"""Turns, permissions, questions, and what happens to a session beside its envelopes."""

from typing import Any

import msgspec
import pytest

from sandbox_agent.engine.project import Projector
from sandbox_agent.engine.restore.replay import build_replay
from sandbox_agent.wire.records import SessionEvent
from sandbox_agent.wire.universal import (
    ErrorData,
    ImagePart,
    JsonPart,
    PermissionEventData,
    QuestionEventData,
    SessionEndedData,
    StatusPart,
    TextPart,
    TurnEventData,
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
    notifies,
    outline,
    project,
    prompts,
    refuses,
    says,
    sends,
    update,
)
from .test_project_updates import permission, selected, tool


def last_turn(events: list[UniversalEvent]) -> dict[str, Any]:
    data = [event.data for event in events if event.type == "turn.ended"][-1]
    assert isinstance(data, TurnEventData)
    return data.metadata


def test_a_prompt_starts_a_turn_and_says_what_the_user_said():
    image = {"type": "image", "data": "aGk=", "mimeType": "image/png", "uri": "file:///w/a.png"}
    text = {"type": "text", "text": "look"}
    events = project(sends(1, "session/prompt", sessionId="n", prompt=[text, image]), ends())
    assert outline(events) == [
        "turn.started",
        "item.started message user",
        "item.delta look",
        "item.completed message user completed",
        "turn.ended end_turn",
    ]
    assert completed(events)[0].content == [TextPart("look"), ImagePart("file:///w/a.png", "image/png")]
    assert {event.native_session_id for event in events} == {"n"}
    assert [event.source for event in events] == ["daemon"] * 4 + ["agent"]


@pytest.mark.parametrize(
    ("result", "metadata"),
    [
        ({"stopReason": "max_tokens"}, {"stop_reason": "max_tokens"}),
        (
            {"stopReason": "end_turn", "usage": {"inputTokens": 1}},
            {"stop_reason": "end_turn", "usage": {"inputTokens": 1}},
        ),
        (
            {
                "stopReason": "end_turn",
                "_meta": {"quota": {"token_count": {"input_tokens": 3, "output_tokens": 4}}},
            },
            {"stop_reason": "end_turn", "usage": {"inputTokens": 3, "outputTokens": 4}},
        ),
        ({"stopReason": "cancelled"}, {"stop_reason": "cancelled", "cancelled": True}),
        ({}, {"stop_reason": ""}),
        ([], {"stop_reason": ""}),
        (None, {"stop_reason": ""}),
    ],
)
def test_a_response_ends_the_turn_with_its_reason_and_usage(result: Any, metadata: dict[str, Any]):
    assert last_turn(project(prompts(), answers("agent", 1, result))) == metadata


@pytest.mark.parametrize("request_id", [0, 7, "0", "b864cffd-7a64-4975-a729-f21cda042448", 2.5])
def test_any_id_names_a_turn(request_id: Any):
    assert outline(project(prompts(request_id), ends(request_id)))[-1] == "turn.ended end_turn"


def test_an_id_and_the_same_digits_as_a_string_are_two_turns():
    events = project(prompts(1), prompts("1"), ends("1"), ends(1))
    ended = [event.data.turn_id for event in events if isinstance(event.data, TurnEventData)]
    assert ended == ["turn_1", "turn_5", "turn_5", "turn_1"]


def test_an_error_ends_the_turn_and_what_it_cut_off_has_failed():
    events = project(prompts(), says("half"), refuses("agent", 1, -32603, "API Error", errorKind="x"))
    assert outline(events)[-3:] == ["item.completed message assistant failed", "error", "turn.ended error"]
    error = events[-2].data
    assert error == ErrorData("API Error", "-32603", {"method": "session/prompt", "data": {"errorKind": "x"}})
    assert last_turn(events)["error"] == {"message": "API Error", "code": "-32603"}


def test_an_agent_that_says_end_turn_after_a_cancel_was_cancelled():
    events = project(prompts(), says("a"), notifies("session/cancel", sessionId="native"), says("b"), ends())
    assert last_turn(events) == {"stop_reason": "end_turn", "cancelled": True}


def test_a_message_after_the_response_ends_with_the_next_turn():
    events = project(prompts(), ends(), says("late"), prompts(2), ends(2))
    assert [joined(item.content) for item in completed(events)] == ["go", "late", "go"]


def test_a_prompt_that_the_agent_says_again_is_shown_once():
    echo = [says("Do ", None, "user_message_chunk"), says("this", None, "user_message_chunk")]
    events = project(prompts(text="Do this"), *echo, says("Yes"), ends())
    assert [joined(item.content) for item in completed(events)] == ["Do this", "Yes"]


def test_a_history_in_front_of_a_prompt_is_not_what_the_user_said():
    said = SessionEvent("e", 1, "s", 0, "c", "client", prompts()[1])
    replay = build_replay([said], 1, max_events=5, max_chars=5_000).text
    assert replay is not None
    blocks = [{"type": "text", "text": text} for text in (replay, "and now?")]
    echo = [says(text, None, "user_message_chunk") for text in (replay, "and now?")]
    events = project(sends(1, "session/prompt", prompt=blocks), *echo, ends())
    assert [item.content for item in completed(events)] == [[TextPart("and now?")]]


@pytest.mark.parametrize(
    ("answer", "status", "outcome"),
    [
        (answers("client", 0, selected("a")), "accept", "selected"),
        (answers("client", 0, selected("b")), "accept_for_session", "selected"),
        (answers("client", 0, selected("c")), "reject", "selected"),
        (answers("client", 0, selected("d")), "reject", "selected"),
        (answers("client", 0, selected("no such")), "reject", "selected"),
        (answers("client", 0, {"outcome": {"outcome": "cancelled"}}), "reject", "cancelled"),
        (answers("client", 0, None), "reject", "cancelled"),
        (refuses("client", 0, -32601, "no"), "reject", "error"),
        (agent("$/cancel_request", requestId=0), "reject", "cancelled"),
    ],
)
def test_a_permission_is_resolved_as_the_client_answers(answer: tuple[str, bytes], status: str, outcome: str):
    events = project(prompts(), permission(0, title="Write", rawInput={"a": 1}), answer, ends())
    asked, resolved = [event.data for event in events if isinstance(event.data, PermissionEventData)]
    assert (asked.action, asked.status, asked.metadata["request_id"]) == ("Write", "requested", 0)
    assert asked.metadata["tool_call_id"] == "c1"
    assert (resolved.permission_id, resolved.status) == (asked.permission_id, status)
    assert resolved.metadata["outcome"] == outcome
    assert completed(events, "tool_result")[0].status == ("failed" if status == "reject" else "completed")


def test_the_first_answer_counts_and_who_gave_it_is_told():
    projector = Projector("s")
    events = feed(projector, prompts(), permission("u-1"))
    assert list(projector.pending_permissions.values()) == ['"u-1"']
    _, first = answers("client", "u-1", selected("a"))
    _, second = answers("client", "u-1", selected("c"))
    events += projector.feed("client", first, 5, by="alice")
    assert projector.feed("client", second, 6, by="bob") == []
    assert isinstance(events[-1].data, PermissionEventData)
    assert events[-1].data.metadata["answered_by"] == "alice"
    assert not projector.pending_permissions


def test_a_permission_that_nobody_answers_is_given_up_with_its_turn():
    events = project(prompts(), permission(0), ends())
    assert "permission.resolved reject" in outline(events)
    assert completed(events, "tool_result")[0].status == "failed"


def test_an_id_in_both_directions_names_two_requests():
    events = project(prompts(1), permission(1), answers("client", 1, selected("a")), ends(1))
    assert outline(events)[-1] == "turn.ended end_turn"
    assert "permission.resolved accept" in outline(events)


QUESTIONS: dict[str, tuple[str, dict[str, Any], Any, tuple[str, list[str], str | None]]] = {
    "elicitation": (
        "elicitation/create",
        {
            "sessionId": "n",
            "mode": "form",
            "message": "Which?",
            "requestedSchema": {
                "type": "object",
                "properties": {"choice": {"type": "string", "oneOf": [{"const": "a", "title": "A"}]}},
            },
        },
        {"action": "accept", "content": {"choice": "a"}},
        ("Which?", ["A"], "a"),
    ),
    "boolean": (
        "elicitation/create",
        {
            "message": "Sure?",
            "requestedSchema": {"properties": {"sure": {"type": "boolean"}, "n": {"enum": ["x", "y"]}}},
        },
        {"action": "accept", "content": {"sure": True, "n": "x"}},
        ("Sure?", ["true", "false", "x", "y"], '{"sure":true,"n":"x"}'),
    ),
    "extension": (
        "cursor/ask_question",
        {"questions": [{"id": "q", "prompt": "Which?", "options": [{"id": "a", "label": "A"}]}]},
        {"outcome": {"outcome": "answered", "answers": [{"questionId": "q", "selectedOptionIds": ["a"]}]}},
        ("Which?", ["A"], '[{"questionId":"q","selectedOptionIds":["a"]}]'),
    ),
    "declined": ("_x/ask_user_question", {"question": "Why?"}, {"action": "decline"}, ("Why?", [], None)),
}


@pytest.mark.parametrize(("method", "params", "result", "expected"), QUESTIONS.values(), ids=list(QUESTIONS))
def test_a_question_is_asked_and_answered(
    method: str, params: dict[str, Any], result: Any, expected: tuple[str, list[str], str | None]
):
    events = project(prompts(), asks("q-1", method, **params), answers("client", "q-1", result), ends())
    asked, resolved = [event.data for event in events if isinstance(event.data, QuestionEventData)]
    assert (asked.prompt, asked.options) == expected[:2]
    assert resolved.question_id == asked.question_id
    assert (resolved.response, resolved.status) == (
        expected[2],
        "rejected" if expected[2] is None else "answered",
    )


def test_an_extension_request_that_asks_nothing_is_no_question():
    assert project(asks(1, "_x/question_count", n=1)) == []


def test_the_server_names_turns_permissions_and_questions_where_it_wants_to():
    projector = Projector("s")
    events = projector.feed("client", prompts()[1], 1, subject_id="turn-a")
    events += projector.feed("agent", permission(0)[1], 2, subject_id="perm-a")
    events += projector.feed("agent", asks(2, "elicitation/create", message="?")[1], 3, subject_id="q-a")
    assert projector.open_turns == ["turn-a"]
    assert projector.pending_permissions == {"perm-a": "0"}
    assert projector.pending_questions == {"q-a": "2"}
    events += projector.turn_interrupted(4, reason="server_restarted")
    check(events)
    assert last_turn(events) == {"stop_reason": "interrupted", "reason": "server_restarted"}


def open_session() -> tuple[Projector, list[UniversalEvent]]:
    projector = Projector("s")
    events = projector.session_started(0, native_session_id="n", metadata={"agent": "claude"})
    events += feed(projector, prompts(), says("half"), tool("tool_call", title="Run"), permission(0, "c2"))
    return projector, events


def test_an_exit_ends_everything_once():
    projector, events = open_session()
    events += projector.agent_exited(5, exit_code=137, stderr="killed")
    assert agent_exit(projector) == []
    check(events)
    assert last_turn(events) == {"stop_reason": "interrupted", "reason": "agent_exited"}
    errors = [event.data for event in events if isinstance(event.data, ErrorData)]
    assert [error.code for error in errors] == ["agent_process_exited"]
    assert errors[0].details == {"exit_code": 137, "stderr": "killed"}


def agent_exit(projector: Projector) -> list[UniversalEvent]:
    return feed(projector, agent("_adapter/agent_exited", success=False, code=137))


def test_an_exit_that_the_connection_tells_is_the_same():
    projector, events = open_session()
    events += agent_exit(projector)
    check(events)
    # The agent is started again, and may go again.
    events += feed(projector, prompts(2))
    events += agent_exit(projector)
    check(events)
    assert [event.type for event in events].count("error") == 2


def test_an_idle_agent_that_exits_well_is_no_event():
    projector = Projector("s")
    feed(projector, prompts(), ends())
    assert projector.agent_exited(5, exit_code=0) == []


def test_the_end_of_a_session_ends_everything():
    projector, events = open_session()
    events += projector.session_ended(5, reason="terminated", terminated_by="daemon", message="asked to")
    check(events)
    assert events[-1].data == SessionEndedData("terminated", "daemon", "asked to")
    assert not projector.open_turns


def test_a_turn_that_was_accepted_and_never_sent_is_interrupted_too():
    projector = Projector("s")
    (event,) = projector.turn_interrupted(5, reason="server_restarted", turn_id="queued")
    assert event.data == TurnEventData(
        "ended", "queued", {"stop_reason": "interrupted", "reason": "server_restarted"}
    )


def test_a_failing_store_is_told():
    (event,) = Projector("s").error(5, message="the disk is full", code="store_error")
    assert (event.type, event.source) == ("error", "daemon")


def test_a_restore_tells_its_means_and_what_it_left_out():
    projector = Projector("s")
    events = projector.restored(5, method="replay", replayed=3, left_out=2)
    restored = {"sessionId": "s", "method": "replay", "replayed": 3, "leftOut": 2}
    events += feed(projector, notifies("_sandbox_agent/session_restored", **restored))
    check(events)
    detail = "replay: 3 events of the history replayed, 2 older ones left out"
    assert [item.content[0] for item in completed(events)] == [StatusPart("restored", detail)] * 2


def test_who_runs_a_restore_tells_of_it_and_what_it_tried_is_no_event():
    projector = Projector("s")
    feed(projector, prompts(text="hi"), says("Hello."), ends())
    assert projector.restoring(5) == []
    tried = [
        sends(7, "session/resume", sessionId="n"),
        refuses("agent", 7, -32002, "no such session"),
        sends(8, "session/load", sessionId="n"),
        says("hi", kind="user_message_chunk"),
        says("Hello."),
        answers("agent", 8, {}),
    ]
    assert feed(projector, *tried) == []
    events = projector.restored(9, method="session/load", replayed=2, verified=False, failed={"mode": "no"})
    (item,) = completed(events)
    value = {
        "method": "session/load",
        "replayed": 2,
        "failed": {"mode": "no"},
        "verified": False,
        "repeated": 2,
    }
    assert item.content == [
        StatusPart(
            "restored",
            "session/load: the agent still knew the session; 2 updates that repeat what is here are left "
            "out; the history that it sent differs from what is here, 2 events of the history replayed",
        ),
        JsonPart(value),
    ]
    # The next one is a client's own.
    later = feed(projector, sends(9, "session/resume", sessionId="n"), answers("agent", 9, {}))
    assert [item.content[0] for item in completed(later)] == [
        StatusPart("restored", "session/resume: the agent still knew the session")
    ]


def test_a_warning_while_an_agent_resumes_a_session_is_shown_after_its_response():
    projector = Projector("s")
    feed(projector, prompts(text="hi"), says("Hello."), ends())
    assert feed(projector, sends(7, "session/resume", sessionId="n"), says("Warning: old model.")) == []
    again = Projector.restore(projector.snapshot())
    events = feed(again, answers("agent", 7, {}), prompts(9, text="on"))
    assert "item.delta Warning: old model." in outline(events)
    (restored, warning) = completed(events)[:2]
    assert isinstance(restored.content[0], StatusPart)
    assert warning.content == [TextPart("Warning: old model.")]


def test_a_session_that_was_handed_over_says_from_whom():
    restored = {"sessionId": "s", "method": "replay", "replayed": 3, "agent": "codex", "fromAgent": "claude"}
    events = project(notifies("_sandbox_agent/session_restored", **restored))
    (item,) = completed(events)
    value = {"method": "replay", "replayed": 3, "agent": "codex", "fromAgent": "claude"}
    assert item.content[1] == JsonPart(value)


@pytest.mark.parametrize("late", [False, True])
def test_what_is_told_again_behind_the_answer_is_no_news_until_the_next_prompt(late: bool):
    projector = Projector("s")
    feed(projector, prompts(text="hi"), says("Hello."), ends())
    plan = update("plan", entries=[{"content": "a", "status": "pending", "priority": "low"}])
    told = [update("user_message_chunk", content={"type": "text", "text": "hi"}), says("Hello."), plan]
    load, answer = sends(8, "session/load", sessionId="n"), answers("agent", 8, {})
    events = feed(projector, load, *([answer, *told] if late else [*told, answer]))
    assert [item.kind for item in completed(events)] == ["status"]
    events = feed(projector, prompts(2, "on"), says("Yes."), plan, ends(2))
    assert sorted(item.kind for item in completed(events)) == ["message", "message", "status"]


def test_a_new_session_of_the_agents_is_named_from_then_on():
    projector = Projector("s", native_session_id="old")
    feed(projector, sends(1, "session/new", cwd="/w"), answers("agent", 1, {"sessionId": "new"}))
    assert projector.native_session_id == "new"


@pytest.mark.parametrize("told", [True, False])
def test_a_mode_that_the_client_sets_is_shown_once(told: bool):
    mode = update("current_mode_update", currentModeId="plan")
    events = project(
        sends(3, "session/set_mode", sessionId="n", modeId="plan"),
        *([mode] if told else []),
        answers("agent", 3, {}),
    )
    assert [item.content for item in completed(events)] == [[StatusPart("mode", "plan")]]
    assert events[-1].synthetic is not told


def test_sequences_start_where_they_are_told_to():
    projector = Projector("s", first_sequence=41)
    events = feed(projector, prompts(), ends())
    check(events, first=41)
    assert projector.sequence == events[-1].sequence
    assert events[0].event_id == "evt_s_41"


def test_what_an_agent_tells_again_is_no_news_where_something_was_said_before_the_first_sequence():
    projector = Projector("s", first_sequence=41)
    again = update("user_message_chunk", content={"type": "text", "text": "hi"})
    assert feed(projector, sends(7, "session/load", sessionId="n"), again, says("Hello.")) == []


def test_clocks_that_jump_are_told_as_they_are():
    projector = Projector("s")
    times = [1_795_215_746_580, 1_795_215_746_579, 0, -1, 10**18]
    told = [projector.status(time_ms, label="x", detail="y")[0].time for time_ms in times]
    assert told[:3] == ["2026-11-20T23:02:26.580Z", "2026-11-20T23:02:26.579Z", "1970-01-01T00:00:00.000Z"]
    assert told[3].startswith("1970-01-01T00:00:00.")
    assert told[4].startswith("9999-12-31T23:59:59.")


def test_a_snapshot_of_another_version_is_refused():
    snapshot = Projector("s").snapshot()
    with pytest.raises(msgspec.ValidationError):
        Projector.restore(snapshot | {"version": 2})


def test_a_snapshot_is_not_changed_by_what_comes_after():
    projector, _ = open_session()
    snapshot = projector.snapshot()
    before = msgspec.json.encode(snapshot)
    feed(projector, says("more"), ends())
    feed(Projector.restore(snapshot), says("other"), ends())
    assert msgspec.json.encode(snapshot) == before
