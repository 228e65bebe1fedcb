"""What an agent tells again of a session when it opens it, and what it has lost of it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from sandbox_agent.engine.restore.history import CLOSING
from sandbox_agent.engine.restore.ladder import Ladder, Outcome
from sandbox_agent.engine.restore.load_phase import Retelling
from sandbox_agent.engine.restore.replay_check import ReportedHistory
from sandbox_agent.wire.records import SessionEvent

from .test_project_traffic import read
from .test_restore import DONE, chunk, event, update, user
from .test_restore_ladder import BOTH, HISTORY, LOAD, LOADED, LOADS, Agent, JsonObject, events_of, plan

REFUSED: JsonObject = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "no"}}


def told(*updates: JsonObject) -> ReportedHistory:
    """Return what was told again."""
    found = ReportedHistory()
    for each in updates:
        found.add(each["params"]["update"])
    return found


def again(text: str) -> JsonObject:
    """Return the user's words, told again."""
    return chunk(text, "user_message_chunk")


MORE = [*HISTORY, user("more"), chunk("Of it."), user("go on"), chunk("I do")]


@pytest.mark.parametrize(
    ("updates", "history", "expected"),
    [
        ([again("hi"), chunk("Hello.")], HISTORY, 4),
        ([again("h"), again("i"), chunk("He"), chunk("llo.\n")], HISTORY, 4),
        ([again("old"), chunk("x"), again("hi"), chunk("Hello. And more.")], HISTORY, 4),
        ([again("hi"), chunk("Goodbye.")], HISTORY, 0),
        ([again("ho"), chunk("Hello.")], HISTORY, 0),
        ([], HISTORY, None),
        ([again("hi")], HISTORY, None),
        ([again("hi")], [user("hi"), DONE], 2),
        ([again("hi"), chunk("Hello.")], [], None),
        ([chunk("a long text")], [chunk("long "), chunk("text")], 2),
        ([again("hi"), chunk("Hello.")], [user("the history", "hi"), chunk("Hello.")], 2),
        (
            [again("hi"), update("tool_call", toolCallId="t"), chunk("Done.")],
            [user("hi"), chunk("Let me."), update("tool_call", toolCallId="t"), chunk("Done.")],
            4,
        ),
        ([again("hi"), chunk("Hello.")], MORE, 4),
        ([again("hi"), chunk("Hello."), again("more"), chunk("Of it.")], MORE, 6),
        ([again("hi"), chunk("Hello."), again("more"), chunk("Of")], MORE, 4),
        ([again("hi"), chunk("Hello."), again("more"), chunk("Of it."), again("go on")], MORE, None),
        (
            [again("hi"), chunk("Hello.")],
            [*HISTORY, LOAD, again("hi"), chunk("Hello."), LOADED, again("hi"), chunk("Hello.")],
            10,
        ),
    ],
)
def test_what_is_told_again_is_compared_by_the_last_words_of_each_turn(
    updates: list[JsonObject], history: list[JsonObject], expected: int | None
) -> None:
    assert told(*updates).covered_until(events_of(*history)) == expected


def test_of_an_answer_that_was_cut_off_nothing_is_waited_for() -> None:
    known = told(again("hi"), chunk("Hello."), again("more"), chunk("Of it."), again("go on"))
    assert known.covered_until(events_of(*MORE), cut_off=True) == 6


@pytest.mark.parametrize(
    ("end", "first"),
    [
        ([user("on")], "session/load"),
        ([user("on"), chunk("yes")], "session/load"),
        ([user("on"), chunk("yes"), LOADED], "session/load"),
        ([user("on"), chunk("yes"), DONE], "session/resume"),
        ([user("on"), REFUSED], "session/load"),
        ([update("usage_update")], "session/resume"),
    ],
)
def test_an_agent_that_was_cut_off_is_asked_to_tell_what_it_has_kept(
    end: list[JsonObject], first: str
) -> None:
    for before in (HISTORY, []):
        agent = Agent({name: {} for name in BOTH})
        agent.run(Ladder(plan(events=events_of(*before, *end))))
        assert agent.methods == [first]
    # The prompt is further back than what was read.
    agent = Agent({name: {} for name in BOTH})
    agent.run(Ladder(plan(events=events_of(*[chunk("x")] * 50), total=900)))
    assert agent.methods == ["session/load"]


@pytest.mark.parametrize("total", [8, 1_008])
def test_what_an_agent_has_lost_of_its_session_is_put_in_front_of_the_next_prompt(total: int) -> None:
    history = events_of(*MORE)
    agent = Agent({"session/load": {}}, reported=told(again("hi"), chunk("Hello.")))
    outcome = agent.run(Ladder(plan(events=history, total=total, methods=LOADS)))
    assert agent.methods == ["session/load"]
    assert (outcome.method, outcome.verified, outcome.replayed, outcome.left_out) == (
        "session/load",
        False,
        4,
        0,
    )
    assert outcome.text is not None
    assert outcome.text.endswith(
        "\n[what was before that is in this session's own history]\n\nUser: more\n\nAssistant: Of it.\n\n"
        f"User: go on\n\nAssistant: I do\n{CLOSING}"
    )
    # Both limits hold, and what does not fit is counted.
    short = agent.run(
        Ladder(plan(events=history, total=total, methods=LOADS, max_chars=len(outcome.text) - 1))
    )
    assert short.text is not None
    assert "[3 earlier events are left out]" in short.text
    assert (short.replayed, short.left_out) == (1, 3)
    assert len(short.text) < len(outcome.text)


def test_an_agent_that_tells_something_else_is_told_the_history() -> None:
    agent = Agent({"session/load": {}}, reported=told(again("ho"), chunk("Goodbye.")))
    outcome = agent.run(Ladder(plan(total=100, methods=LOADS)))
    assert (outcome.verified, outcome.replayed, outcome.left_out) == (False, 4, 96)
    assert "[96 earlier events are left out]\n\nUser: hi\n\nAssistant: Hello." in str(outcome.text)


def test_an_agent_that_tells_it_all_is_told_nothing() -> None:
    agent = Agent({"session/load": {}}, reported=told(again("hi"), chunk("Hello.")))
    assert agent.run(Ladder(plan(methods=LOADS))) == Outcome("session/load", verified=True)


def test_long_histories_are_compared_in_bounded_memory() -> None:
    found = told(again("hi"), *[chunk("x" * 1000)] * 2_000, chunk("the end"))
    assert found.covered_until(events_of(user("hi"), chunk("x" * 5_000), chunk("the end"))) == 3


@pytest.mark.parametrize(
    ("agent", "known"),
    [("claude", True), ("codex", False), ("opencode", True), ("pi", True), ("qwen", True)],
)
def test_real_agents_are_found_to_tell_the_history_that_was_recorded(agent: str, known: bool) -> None:
    events: list[SessionEvent] = []
    found, retelling = ReportedHistory(), Retelling()
    loading: object = None
    for number, line in enumerate(read(agent), 1):
        payload = json.loads(line.envelope)
        if payload.get("method") == "session/load":
            loading = payload["id"]
            retelling.begin()
        elif loading is None:
            events.append(event(number, line.sender, payload))
        elif payload.get("id") == loading:
            retelling.answer()
        elif payload.get("method") == "session/prompt":
            break
        elif payload.get("method") == "session/update":
            kind = payload["params"]["update"]["sessionUpdate"]
            # None of them tells the past behind its answer.
            past = retelling.classify(kind) == "past"
            if past:
                assert retelling.state == "open"
                found.add(payload["params"]["update"])
    assert found.covered_until(events) == (len(events) if known else None)


def kinds(*steps: str | Callable[[Retelling], None]) -> list[bool]:
    """Return which of the updates are past."""
    retelling = Retelling()
    past: list[bool] = []
    for step in steps:
        if isinstance(step, str):
            past.append(retelling.classify(step) == "past")
        else:
            step(retelling)
    return past


USER, AGENT, USAGE = "user_message_chunk", "agent_message_chunk", "usage_update"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([USER, AGENT], [False, False]),
        ([Retelling.begin, USER, AGENT, USAGE, Retelling.answer, AGENT], [True, True, False, False]),
        ([Retelling.begin, Retelling.answer, AGENT, USER, AGENT, USAGE], [False, True, True, False]),
        ([Retelling.begin, USER, Retelling.answer, AGENT, "tool_call"], [True, True, True]),
        (
            [Retelling.begin, USER, Retelling.answer, AGENT, Retelling.end, AGENT, USER],
            [True, True, False, False],
        ),
        ([Retelling.begin, USER, Retelling.end, AGENT], [True, False]),
        # A warning is no retelling: nothing of it has the user's words.
        ([Retelling.begin, AGENT, Retelling.answer, AGENT], [False, False]),
        ([Retelling.begin, AGENT, USER, AGENT, Retelling.answer], [False, True, True]),
        ([Retelling.answer, USER], [False]),
    ],
)
def test_the_past_ends_with_the_answer_or_else_with_the_next_prompt(
    steps: list[str | Callable[[Retelling], None]], expected: list[bool]
) -> None:
    assert kinds(*steps) == expected
