"""A restore without I/O: what is asked of the agent, in which order, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from sandbox_agent.engine.restore.history import is_replay_title
from sandbox_agent.engine.restore.ladder import Ladder, OpenSession, Outcome, Plan, ReadNewest, native_methods
from sandbox_agent.engine.restore.replay_check import ReportedHistory
from sandbox_agent.engine.settings import AskOptions, Call, ReadReported, Refusal
from sandbox_agent.wire.records import SessionEvent

from .test_restore import DONE, chunk, event, replay, update, user

JsonObject = dict[str, Any]
NEW: JsonObject = {"jsonrpc": "2.0", "id": 1, "method": "session/new", "params": {"cwd": "/w"}}
HISTORY = [NEW, user("hi"), chunk("Hello."), DONE]
LOAD: JsonObject = {"jsonrpc": "2.0", "id": 7, "method": "session/load", "params": {"sessionId": "n"}}
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
        self,
        answers: Mapping[str, JsonObject | Refusal],
        options: Any = None,
        reported: ReportedHistory | None = None,
    ) -> None:
        self.reported = reported
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
            if isinstance(step, ReadReported):
                continue
            assert not isinstance(step, ReadNewest)
            self.calls.append((step.method, step.params))
            answer = self._answers.get(step.method, Refusal("no such session", -32002))
            if isinstance(answer, Refusal):
                assert step.may_fail
                step.refusal = answer
            else:
                step.result = answer
                if isinstance(step, OpenSession):
                    step.reported = self.reported
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
    failed = agent.run(Ladder(plan(wanted=WANTED))).failed
    # Nothing is known of them, so what can't be set counts as failed: the agent may have lost it.
    assert agent.methods == ["session/resume", "options", "session/set_model", "session/set_mode"]
    assert set(failed or {}) == {"model", "thought_level"}
    agent = Agent(taken)
    ids = {name: name for name in WANTED}
    assert agent.run(Ladder(plan(wanted=WANTED, config_ids=ids))).failed is None
    assert settings(agent.calls) == ALL
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


def test_what_an_agent_told_again_is_not_in_a_replay() -> None:
    refusal = {"jsonrpc": "2.0", "id": 7, "error": {"code": -32002, "message": "gone"}}
    for end, expected in ((LOADED, "once"), (refusal, "once and more")):
        told = [chunk("hi", "user_message_chunk"), chunk("once")]
        events = events_of(user("hi"), chunk("once"), LOAD, *told, end, user("on"))
        if end is refusal:
            events = events_of(user("hi"), chunk("once"), LOAD, end, chunk(" and more"), user("on"))
        outcome = Agent({}).run(Ladder(plan(native_id="", events=events)))
        assert f"Assistant: {expected}\n\nUser: on" in str(outcome.text)


def test_a_warning_while_a_session_is_resumed_is_news() -> None:
    events = events_of(user("hi"), chunk("Hello."), LOAD, chunk(" Warning: old model."), LOADED, user("on"))
    outcome = Agent({}).run(Ladder(plan(native_id="", events=events)))
    assert "Assistant: Hello. Warning: old model.\n\nUser: on" in str(outcome.text)


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
