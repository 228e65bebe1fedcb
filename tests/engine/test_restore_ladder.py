"""A restore without I/O: what is asked of the agent, in which order, and what comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from sandbox_agent.engine.restore import (
    CLOSING,
    AskOptions,
    Call,
    Ladder,
    Outcome,
    Plan,
    ReadNewest,
    Refusal,
    Retelling,
    Told,
    is_replay_title,
    native_methods,
)
from sandbox_agent.wire.records import SessionEvent

from .test_project_traffic import read
from .test_restore import DONE, chunk, event, replay, update, user

JsonObject = dict[str, Any]
NEW: JsonObject = {"jsonrpc": "2.0", "id": 1, "method": "session/new", "params": {"cwd": "/w"}}
HISTORY = [NEW, user("hi"), chunk("Hello."), DONE]
LOAD: JsonObject = {"jsonrpc": "2.0", "id": 7, "method": "session/load", "params": {"sessionId": "n"}}
REFUSED: JsonObject = {"jsonrpc": "2.0", "id": 1, "error": {"code": -32000, "message": "no"}}
LOADED: JsonObject = {"jsonrpc": "2.0", "id": 7, "result": {}}
LOADS = ["session/load"]
BOTH = ["session/resume", "session/load"]
INIT = {"cwd": "/w", "mcpServers": [{"name": "m"}]}


def option(name: str, value: str, *values: str) -> JsonObject:
    """Return a config option of the category of its name."""
    choices = [{"value": each, "name": each} for each in (value, *values)]
    return {
        "id": name,
        "name": name,
        "category": name,
        "type": "select",
        "currentValue": value,
        "options": choices,
    }


def events_of(*payloads: JsonObject) -> list[SessionEvent]:
    """Return the payloads as stored events."""
    sent = {"session/new", "session/prompt", "session/load", "session/resume"}
    return [
        event(number, "client" if payload.get("method") in sent else "agent", payload)
        for number, payload in enumerate(payloads, 1)
    ]


def plan(**given: Any) -> Plan:
    """Return a plan of a session that its agent may know."""
    events = given.pop("events", events_of(*HISTORY))
    fields: JsonObject = {
        "agent": "claude",
        "native_id": "n1",
        "methods": BOTH,
        "init": INIT,
        "wanted": {},
        "events": events,
        "total": len(events),
        "max_events": 50,
        "max_chars": 12_000,
    }
    return Plan(**{**fields, **given})


class Agent:
    """Answers steps: a method's answer is a result or a Refusal; what has none is not found."""

    def __init__(
        self, answers: Mapping[str, JsonObject | Refusal], options: Any = None, told: Told | None = None
    ) -> None:
        self.told = told
        self.calls: list[tuple[str, JsonObject]] = []
        self._answers = {"session/new": {"sessionId": "n2"}, **answers}
        self._options = options

    def run(self, ladder: Ladder) -> Outcome:
        """Do all the steps."""
        for step in ladder:
            if isinstance(step, AskOptions):
                self.calls.append(("options", {}))
                step.options = self._options
                continue
            assert not isinstance(step, ReadNewest)
            self.calls.append((step.method, step.params))
            answer = self._answers.get(step.method, Refusal("no such session", -32002))
            if isinstance(answer, Refusal):
                assert step.may_fail
                step.refusal = answer
            else:
                step.result = answer
                step.told = self.told if step.opens else None
        return ladder.outcome

    @property
    def methods(self) -> list[str]:
        """What was called."""
        return [method for method, _ in self.calls]


@pytest.mark.parametrize(
    ("initialized", "expected"),
    [
        ({}, []),
        ({"agentCapabilities": {"loadSession": True}}, ["session/load"]),
        (
            {"agentCapabilities": {"loadSession": False, "sessionCapabilities": {"resume": {}}}},
            ["session/resume"],
        ),
        ({"agentCapabilities": {"loadSession": True, "sessionCapabilities": {"resume": {}}}}, BOTH),
        (
            {"agentCapabilities": {"loadSession": True, "sessionCapabilities": {"resume": None}}},
            ["session/load"],
        ),
        ({"agentCapabilities": {"sessionCapabilities": {"resume": False}}}, []),
        ({"agentCapabilities": "nonsense"}, []),
    ],
)
def test_the_agent_says_by_which_means_it_opens_sessions(
    initialized: JsonObject, expected: list[str]
) -> None:
    assert native_methods(initialized) == expected


def test_the_agents_own_session_is_asked_for_first_with_what_it_was_made_with() -> None:
    agent = Agent({"session/resume": {}})
    assert agent.run(Ladder(plan())) == Outcome("session/resume")
    assert agent.calls == [("session/resume", {**INIT, "sessionId": "n1"})]


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (Refusal("unknown method", -32601), ["session/resume", "session/load"]),
        (Refusal("already loaded", -32602), ["session/resume", "session/load"]),
        (Refusal("not found", -32002), ["session/resume", "session/new"]),
        (Refusal("no answer"), ["session/resume", "session/new"]),
    ],
    ids=["unknown", "refused", "not found", "silent"],
)
def test_the_next_rung_depends_on_why_the_first_one_failed(first: Refusal, expected: list[str]) -> None:
    agent = Agent({"session/resume": first, "session/load": {}})
    outcome = agent.run(Ladder(plan()))
    assert agent.methods == expected
    assert outcome.method == ("session/load" if "session/load" in expected else "replay")


def test_the_replay_is_the_last_rung_and_says_what_it_has() -> None:
    agent = Agent({name: Refusal("broken", -32603) for name in BOTH})
    outcome = agent.run(Ladder(plan(total=100)))
    assert agent.methods == [*BOTH, "session/new"]
    assert agent.calls[-1][1] == INIT
    assert (outcome.method, outcome.replayed, outcome.left_out) == ("replay", 4, 96)
    assert outcome.text is not None
    assert "User: hi\n\nAssistant: Hello." in outcome.text


@pytest.mark.parametrize(
    ("given", "native"),
    [
        ({"native_id": ""}, False),
        ({"from_agent": "codex"}, False),
        ({"methods": []}, False),
        ({"events": []}, True),
        ({"events": events_of(NEW)}, True),
        ({"events": events_of(*HISTORY, NEW)}, False),
        ({"events": events_of(*HISTORY, NEW, chunk("hello from a new session"))}, False),
        ({"events": events_of(*HISTORY, NEW, user("on"))}, False),
        ({"events": events_of(*HISTORY, NEW, user("on"), update("usage_update"))}, False),
        ({"events": events_of(*HISTORY, NEW, user("on"), chunk("yes"))}, True),
        ({"events": events_of(*HISTORY, NEW, user("on"), DONE)}, True),
        ({"events": events_of(NEW), "total": 9}, False),
        ({"events": events_of(*[chunk("x")] * 50), "total": 900}, True),
    ],
)
def test_an_agent_is_asked_for_its_own_session_only_where_that_has_the_history(
    given: JsonObject, native: bool
) -> None:
    outcome = Agent({"session/load": {}}).run(Ladder(plan(**{"methods": LOADS, **given})))
    assert outcome.method == ("session/load" if native else "replay")


WANTED = {"model": "big", "mode": "plan", "thought_level": "high"}
OFFERED = [
    option("model", "small", "big"),
    option("mode", "ask", "plan"),
    option("thought_level", "low", "high"),
]
MODES = {"currentModeId": "ask", "availableModes": [{"id": "ask"}, {"id": "plan"}]}


def settings(calls: list[tuple[str, JsonObject]]) -> list[tuple[str, str]]:
    """Return what was set."""
    return [
        (str(params.get("configId", "mode")), str(params.get("value", params.get("modeId"))))
        for method, params in calls
        if method.startswith("session/set_")
    ]


ALL = [("model", "big"), ("mode", "plan"), ("thought_level", "high")]


@pytest.mark.parametrize("method", ["session/resume", "session/new"])
def test_settings_are_set_again_where_they_differ(method: str) -> None:
    result = {"sessionId": "n2", "configOptions": OFFERED, "modes": MODES}
    taken: JsonObject = {"session/set_mode": {}, "session/set_config_option": {}}
    agent = Agent({method: result, **taken})
    assert agent.run(Ladder(plan(wanted=WANTED))).failed is None
    assert settings(agent.calls) == ALL
    assert agent.calls[-1][1]["sessionId"] == ("n1" if method == "session/resume" else "n2")
    same = [option(name, value) for name, value in WANTED.items()]
    agent = Agent({method: {"sessionId": "n2", "configOptions": same}, **taken})
    assert agent.run(Ladder(plan(wanted=WANTED))).failed is None
    assert settings(agent.calls) == []


def test_a_mode_is_set_by_its_option_where_the_agent_lacks_the_method() -> None:
    refused = {"session/set_mode": Refusal("unknown", -32601)}
    agent = Agent({"session/resume": {"configOptions": OFFERED}, "session/set_config_option": {}, **refused})
    assert agent.run(Ladder(plan(wanted={"mode": "plan"}))).failed is None
    assert agent.methods == ["session/resume", "session/set_mode", "session/set_config_option"]


def test_what_the_model_changes_is_seen_before_the_rest_is_set() -> None:
    then = [option("model", "big", "small"), option("thought_level", "high")]
    agent = Agent(
        {"session/resume": {"configOptions": OFFERED}, "session/set_config_option": {"configOptions": then}}
    )
    assert agent.run(Ladder(plan(wanted={"model": "big", "thought_level": "high"}))).failed is None
    assert settings(agent.calls) == [("model", "big")]


def test_what_can_not_be_set_is_said() -> None:
    result = {"sessionId": "n2", "configOptions": [option("model", "small", "mid")], "modes": MODES}
    agent = Agent({"session/new": result, "session/set_mode": Refusal("not now", -32000)})
    assert agent.run(Ladder(plan(native_id="", wanted=WANTED))).failed == {
        "model": "claude has no model 'big': it has small, mid",
        "mode": "not now",
        "thought_level": "claude has no thought level 'high': it offers no choice of thought level",
    }
    # Some errors end no restore: the agent is there, and so is the history.
    assert agent.methods == ["session/new", "session/set_mode"]


def test_an_agent_that_is_silent_about_its_settings_keeps_or_gets_them() -> None:
    taken: JsonObject = {"session/set_mode": {}, "session/set_config_option": {}, "session/resume": {}}
    agent = Agent(taken)
    agent.run(Ladder(plan(wanted=WANTED)))
    assert settings(agent.calls) == []  # nothing is known of them: they are as the agent left them
    agent = Agent(taken)
    agent.run(Ladder(plan(wanted=WANTED, known_options=OFFERED, known_modes=MODES)))
    assert settings(agent.calls) == ALL
    agent = Agent(taken, options=OFFERED)
    agent.run(Ladder(plan(wanted=WANTED, native_id="")))
    assert agent.methods[:2] == ["session/new", "options"]
    assert settings(agent.calls) == ALL
    agent = Agent({**taken, "session/set_mode": Refusal("unknown", -32601)})
    failed = agent.run(Ladder(plan(wanted=WANTED, native_id=""))).failed
    assert set(failed or {}) == {"model", "mode", "thought_level"}
    assert agent.methods.count("options") == 1


def test_another_agent_is_set_only_to_what_it_lists() -> None:
    free = {"id": "model", "name": "model", "category": "model", "type": "text", "currentValue": "x"}
    result = {"sessionId": "n2", "configOptions": [free, option("thought_level", "low", "high")]}
    agent = Agent({"session/new": result, "session/set_config_option": {}})
    outcome = agent.run(Ladder(plan(wanted=WANTED, from_agent="codex", known_options=OFFERED)))
    assert settings(agent.calls) == [("thought_level", "high")]
    assert set(outcome.failed or {}) == {"model", "mode"}


def told(*updates: JsonObject) -> Told:
    """Return what was told again."""
    found = Told()
    for each in updates:
        found.take(each["params"]["update"])
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
    assert told(*updates).until(events_of(*history)) == expected


def test_of_an_answer_that_was_cut_off_nothing_is_waited_for() -> None:
    known = told(again("hi"), chunk("Hello."), again("more"), chunk("Of it."), again("go on"))
    assert known.until(events_of(*MORE), cut_off=True) == 6


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
    agent = Agent({"session/load": {}}, told=told(again("hi"), chunk("Hello.")))
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
    agent = Agent({"session/load": {}}, told=told(again("ho"), chunk("Goodbye.")))
    outcome = agent.run(Ladder(plan(total=100, methods=LOADS)))
    assert (outcome.verified, outcome.replayed, outcome.left_out) == (False, 4, 96)
    assert "[96 earlier events are left out]\n\nUser: hi\n\nAssistant: Hello." in str(outcome.text)


def test_an_agent_that_tells_it_all_is_told_nothing() -> None:
    agent = Agent({"session/load": {}}, told=told(again("hi"), chunk("Hello.")))
    assert agent.run(Ladder(plan(methods=LOADS))) == Outcome("session/load", verified=True)


def test_long_histories_are_compared_in_bounded_memory() -> None:
    found = told(again("hi"), *[chunk("x" * 1000)] * 2_000, chunk("the end"))
    assert found.until(events_of(user("hi"), chunk("x" * 5_000), chunk("the end"))) == 3


@pytest.mark.parametrize(
    ("agent", "known"),
    [("claude", True), ("codex", False), ("opencode", True), ("pi", True), ("qwen", True)],
)
def test_real_agents_are_found_to_tell_the_history_that_was_recorded(agent: str, known: bool) -> None:
    events: list[SessionEvent] = []
    found, retelling = Told(), Retelling()
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
            past = retelling.is_past(kind)
            if past:
                assert retelling.state == "open"
                found.take(payload["params"]["update"])
    assert found.until(events) == (len(events) if known else None)


def kinds(*steps: str | Callable[[Retelling], None]) -> list[bool]:
    """Return which of the updates are past."""
    retelling = Retelling()
    past: list[bool] = []
    for step in steps:
        if isinstance(step, str):
            past.append(retelling.is_past(step))
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
        ([Retelling.answer, USER], [False]),
    ],
)
def test_the_past_ends_with_the_answer_or_else_with_the_next_prompt(
    steps: list[str | Callable[[Retelling], None]], expected: list[bool]
) -> None:
    assert kinds(*steps) == expected


def test_what_an_agent_told_again_is_not_in_a_replay() -> None:
    refusal = {"jsonrpc": "2.0", "id": 7, "error": {"code": -32002, "message": "gone"}}
    for end, expected in ((LOADED, "once"), (refusal, "once and more")):
        events = events_of(user("hi"), chunk("once"), LOAD, chunk("once"), end, user("on"))
        if end is refusal:
            events = events_of(user("hi"), chunk("once"), LOAD, end, chunk(" and more"), user("on"))
        outcome = Agent({}).run(Ladder(plan(native_id="", events=events)))
        assert f"Assistant: {expected}\n\nUser: on" in str(outcome.text)


def test_a_title_that_an_agent_made_of_a_replay_is_none() -> None:
    text = replay(user("hi")).text
    assert text is not None
    assert is_replay_title(text[:60] + "…")
    assert not is_replay_title("This conversation")


def reads(ladder: Ladder, history: list[SessionEvent]) -> list[int]:
    """Run a ladder down to its replay, and return how far back it read."""
    limits: list[int] = []
    for step in ladder:
        if isinstance(step, ReadNewest):
            limits.append(step.limit)
            step.events = history[-step.limit :]
        elif isinstance(step, Call):
            step.result = {"sessionId": "n2"}
    return limits


@pytest.mark.parametrize(
    ("said", "max_chars", "expected"),
    [
        ([user("early"), *[chunk("word ") for _ in range(99)]], 12_000, [40, 160]),
        # the text is long enough, or there are enough of them, or the read is as long as it may be
        ([user("early"), *[chunk("some words ") for _ in range(99)]], 400, [40]),
        ([user(f"number {number}") for number in range(100)], 12_000, []),
        ([user("early"), *[chunk("a") for _ in range(999)]], 12_000, [40, 160, 400]),
        ([user("a"), chunk("b")], 12_000, []),
    ],
)
def test_a_replay_reads_on_while_it_has_room(
    said: list[JsonObject], max_chars: int, expected: list[int]
) -> None:
    history = events_of(*said)
    ladder = Ladder(
        plan(
            native_id="",
            events=history[-10:],
            total=len(history),
            max_events=10,
            max_chars=max_chars,
            max_read=400,
        )
    )
    assert reads(ladder, history) == expected
    outcome = ladder.outcome
    assert outcome.replayed + outcome.left_out == len(history)
    if expected == [40, 160]:
        assert outcome.text is not None
        assert "User: early" in outcome.text


def test_a_replay_reads_no_further_back_than_the_store_goes() -> None:
    # The store has dropped what was older than that.
    history = events_of(*[chunk("a") for _ in range(30)])
    ladder = Ladder(plan(native_id="", events=history[-10:], total=500, max_events=10, max_read=400))
    assert reads(ladder, history) == [40, 160]
    assert (ladder.outcome.replayed, ladder.outcome.left_out) == (30, 470)
