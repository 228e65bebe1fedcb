"""Whatever is sent, in whatever order: the invariants hold, and the fold can be resumed anywhere."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_agent.engine.project import Projector
from sandbox_agent.wire.universal import UniversalEvent, encode_event
from tests.support.effort import repeats

from .test_project_checks import (
    agent,
    answers,
    asks,
    check,
    ends,
    notifies,
    prompts,
    refuses,
    says,
    sends,
    update,
)
from .test_project_updates import DIFF, IMAGE, STATUS, permission, selected, text_content, tool

SUMMARY = {"type": "text", "text": "s"}
IDS = st.sampled_from([0, 1, 2, "0", "u"])
CALLS = st.sampled_from(["c1", "c2", "c3"])
TEXTS = st.sampled_from(["", "a", "b\n", "go", "\ud800"])
STREAMS = st.sampled_from(["agent_message_chunk", "agent_thought_chunk", "user_message_chunk"])
MESSAGES = st.sampled_from([None, "m1", "m2"])
STATUSES = st.sampled_from([None, "pending", "in_progress", "completed", "failed", "odd"])
CONTENT = st.sampled_from([None, [], [DIFF], [text_content("x")], [{"type": "content", "content": IMAGE}]])
INPUT = st.sampled_from([None, {}, {"a": 1}, {"a": 2}, "text"])
SENDERS = st.sampled_from(["agent", "client"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
OPTIONS = st.sampled_from([selected("a"), selected("c"), {"outcome": {"outcome": "cancelled"}}, None, 3])


def as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode()


def a_tool(kind: str, call_id: str, status: Any, content: Any, raw_input: Any) -> tuple[str, bytes]:
    told = {"title": "T", "status": status, "content": content, "rawInput": raw_input}
    return tool(kind, call_id, **{name: value for name, value in told.items() if value is not None})


ENVELOPES = st.one_of(
    st.builds(says, TEXTS, MESSAGES, STREAMS),
    st.builds(says, TEXTS, MESSAGES, STREAMS),
    st.builds(a_tool, st.sampled_from(["tool_call", "tool_call_update"]), CALLS, STATUSES, CONTENT, INPUT),
    st.builds(prompts, IDS, TEXTS),
    st.builds(ends, IDS, st.sampled_from(["end_turn", "cancelled", ""])),
    st.builds(permission, IDS, CALLS),
    st.builds(answers, SENDERS, IDS, OPTIONS),
    st.builds(refuses, SENDERS, IDS, st.sampled_from([-32603, -32601]), st.just("no")),
    st.builds(asks, IDS, st.just("elicitation/create"), message=TEXTS),
    st.sampled_from([update(kind, **members) for kind, (members, _) in STATUS.items()]),
    st.just(update("agent_message_chunk", content=IMAGE)),
    st.builds(
        lambda: update("compaction_summary_chunk", compactionId="k", content={"type": "text", "text": "s"})
    ),
    st.just(notifies("session/cancel", sessionId="native")),
    st.builds(sends, IDS, st.sampled_from(["session/load", "session/resume"]), sessionId=st.just("native")),
    st.just(agent("_adapter/agent_exited", success=False, code=1)),
    st.builds(agent, st.sampled_from(["session/update", "session/request_permission", "x"]), update=JSON),
    st.builds(asks, JSON, st.sampled_from(["session/request_permission", "x/question"]), toolCall=JSON),
    st.builds(sends, JSON, st.sampled_from(["session/prompt", "session/set_mode"]), prompt=JSON, modeId=JSON),
    st.tuples(SENDERS, JSON.map(as_bytes)),
    st.tuples(SENDERS, st.binary(max_size=20)),
)


def fold(envelopes: list[tuple[str, bytes]], resume_at: int) -> list[UniversalEvent]:
    """Project the envelopes and close the session; the fold is taken up from JSON before one of them."""
    projector = Projector("s")
    events: list[UniversalEvent] = []
    for position, (sender, envelope) in enumerate(envelopes):
        if position == resume_at:
            projector = Projector.restore(json.loads(json.dumps(projector.snapshot())))
        events += projector.feed("client" if sender == "client" else "agent", envelope, position)
    return events + projector.session_ended(len(envelopes), reason="completed", terminated_by="agent")


@given(st.lists(ENVELOPES, max_size=30), st.integers(0, 30))
@pytest.mark.loops
@settings(max_examples=repeats(100, 300), deadline=None)
def test_any_envelopes_in_any_order_become_whole_items(envelopes: list[tuple[str, bytes]], resume_at: int):
    events = fold(envelopes, -1)
    check(events)
    assert [encode_event(event) for event in fold(envelopes, resume_at)] == [
        encode_event(event) for event in events
    ]


@given(st.lists(ENVELOPES, max_size=30))
@pytest.mark.loops
@settings(max_examples=repeats(60, 200), deadline=None)
def test_nothing_is_open_when_the_last_turn_ends(envelopes: list[tuple[str, bytes]]):
    projector = Projector("s")
    for sender, envelope in envelopes:
        busy = bool(projector.open_turns)
        projector.feed("client" if sender == "client" else "agent", envelope, 1)
        if busy and not projector.open_turns:
            left = projector.snapshot()
            assert not any(left[name] for name in ("texts", "tools", "permissions", "questions", "echo"))
