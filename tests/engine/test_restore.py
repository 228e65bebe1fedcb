"""From history to the text of a replay: tables of in and out."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_agent.engine.restore.history import CLOSING, OPENING
from sandbox_agent.engine.restore.replay import Replay, build_replay
from sandbox_agent.wire.records import Sender, SessionEvent

BIG = 100_000
# How an entry of the transcript begins, whole or cut off at its front.
ROLES = re.compile(r"^(?:User|Assistant|Tool):|^…", re.MULTILINE)


def event(index: int, sender: Sender, payload: dict[str, Any]) -> SessionEvent:
    """Return a stored event."""
    return SessionEvent(f"e{index}", index, "s", 1, "c", sender, json.dumps(payload).encode())


def user(*texts: str) -> dict[str, Any]:
    """Return a prompt."""
    blocks = [{"type": "text", "text": text} for text in texts]
    return {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "session/prompt",
        "params": {"sessionId": "a", "prompt": blocks},
    }


def update(kind: str, **fields: Any) -> dict[str, Any]:
    """Return a session/update."""
    params = {"sessionId": "a", "update": {"sessionUpdate": kind, **fields}}
    return {"jsonrpc": "2.0", "method": "session/update", "params": params}


def chunk(text: str, kind: str = "agent_message_chunk") -> dict[str, Any]:
    """Return a piece of text."""
    return update(kind, content={"type": "text", "text": text})


DONE = {"jsonrpc": "2.0", "id": 1, "result": {"stopReason": "end_turn"}}


def replay(*payloads: dict[str, Any], total: int | None = None, **limits: int) -> Replay:
    """Build the replay of these payloads."""
    events = [
        event(number, "client" if payload.get("method") == "session/prompt" else "agent", payload)
        for number, payload in enumerate(payloads, 1)
    ]
    return build_replay(
        events,
        len(events) if total is None else total,
        max_events=limits.get("max_events", BIG),
        max_chars=limits.get("max_chars", BIG),
    )


def body(result: Replay) -> str:
    """Return what is between the tags."""
    assert result.text is not None
    assert result.text.count(OPENING) == result.text.count(CLOSING) == 1
    return result.text.split(OPENING)[1].split(CLOSING)[0].strip()


@pytest.mark.parametrize(
    ("payloads", "expected"),
    [
        ([user("hi"), chunk("Hel"), chunk("lo."), DONE], "User: hi\n\nAssistant: Hello."),
        ([user("one", "two")], "User: one\ntwo"),
        ([user("a"), chunk("thinking", "agent_thought_chunk"), chunk("b")], "User: a\n\nAssistant: b"),
        ([user("a"), chunk("a", "user_message_chunk"), chunk("b")], "User: a\n\nAssistant: b"),
        (
            [
                user("go"),
                update("tool_call", toolCallId="t", title="Read x", status="pending"),
                update("tool_call_update", toolCallId="t", status="in_progress"),
                update(
                    "tool_call_update",
                    toolCallId="t",
                    status="completed",
                    content=[
                        {"type": "content", "content": {"type": "text", "text": "42 lines"}},
                        {"type": "diff", "path": "/x", "oldText": "a", "newText": "b"},
                    ],
                ),
                chunk("done"),
            ],
            "User: go\n\nTool: Read x [completed]\n42 lines\n(changed /x)\n\nAssistant: done",
        ),
        ([update("tool_call_update", toolCallId="t7", status="failed")], "Tool: t7 [failed]"),
        (
            [
                update("plan", entries=[{"content": "a", "status": "pending"}]),
                update("plan", entries=[{"content": "a", "status": "completed"}, {"content": "b"}]),
            ],
            "Plan: - [completed] a\n- [pending] b",
        ),
        (
            [
                {
                    "method": "session/prompt",
                    "params": {
                        "prompt": [
                            {"type": "image", "data": "AAAA", "mimeType": "image/png"},
                            {"type": "resource_link", "name": "main.py", "uri": "file:///main.py"},
                            {"type": "resource", "resource": {"uri": "file:///b", "text": "…"}},
                        ]
                    },
                }
            ],
            "User: [image]\n[main.py: file:///main.py]\n[file:///b]",
        ),
    ],
)
def test_history_becomes_a_transcript(payloads: list[dict[str, Any]], expected: str) -> None:
    result = replay(*payloads)
    assert body(result) == expected
    assert (result.replayed, result.left_out) == (len(payloads), 0)
    assert result.text is not None
    assert "jsonrpc" not in result.text


@pytest.mark.parametrize(
    "payloads",
    [
        [],
        [DONE],
        [update("usage_update", used=1)],
        [user("")],
        [chunk("")],
        [{"method": "session/prompt", "params": None}],
        [{"method": "session/update", "params": {"update": "nonsense"}}],
        [update("tool_call", toolCallId="")],
        [{"id": 1, "error": {"code": 1}}],
    ],
)
def test_history_that_says_nothing_gives_no_text(payloads: list[dict[str, Any]]) -> None:
    assert replay(*payloads) == Replay(None, len(payloads), 0)


def test_the_newest_events_survive_the_limit_of_events() -> None:
    result = replay(user("old"), chunk("old answer"), user("new"), chunk("new answer"), max_events=2)
    assert body(result) == "[2 earlier events are left out]\n\nUser: new\n\nAssistant: new answer"
    assert (result.replayed, result.left_out) == (2, 2)


def test_the_pieces_of_a_text_count_as_one_event() -> None:
    pieces = [chunk(f"{number} ") for number in range(100)]
    told = [update("usage_update", used=number) for number in range(100)]
    streamed = [each for pair in zip(pieces, told, strict=True) for each in pair]
    result = replay(user("old"), chunk("old answer"), DONE, user("new"), *streamed, DONE, max_events=4)
    answer = "".join(f"{number} " for number in range(100)).strip()
    # the prompt, the text, the usage, and the end of the turn
    assert body(result) == f"[3 earlier events are left out]\n\nUser: new\n\nAssistant: {answer}"
    assert (result.replayed, result.left_out) == (202, 3)
    assert replay(user("new"), *streamed, DONE, max_events=3).left_out == 1


@pytest.mark.parametrize(
    ("newest", "counted"),
    [
        ([chunk("a"), chunk("b")], 1),
        ([chunk("a", "agent_thought_chunk"), chunk("b", "agent_thought_chunk"), chunk("c")], 2),
        ([chunk("a"), update("tool_call", toolCallId="t"), chunk("b")], 3),
        ([update("tool_call", toolCallId="t"), *[update("tool_call_update", toolCallId="t")] * 3], 1),
        ([update("tool_call", toolCallId="t"), update("tool_call", toolCallId="u")], 2),
        ([update("plan", entries=[]), update("plan", entries=[])], 1),
        ([update("usage_update"), DONE, user("b"), update("usage_update"), DONE], 5),
        ([DONE, DONE, DONE], 3),
        ([user("a"), user("b")], 2),
        ([{"method": "session/update", "params": {"update": {"sessionUpdate": 1}}}, DONE], 2),
    ],
)
def test_the_limit_counts_what_was_said_and_done(newest: list[dict[str, Any]], counted: int) -> None:
    history = [user("old"), *newest]
    assert replay(*history, max_events=counted).left_out == 1
    assert replay(*history, max_events=counted + 1).left_out == 0


def test_events_that_were_never_read_count_as_left_out() -> None:
    result = replay(user("new"), total=1_000_000)
    assert body(result) == "[999999 earlier events are left out]\n\nUser: new"
    assert (result.replayed, result.left_out) == (1, 999_999)


def test_the_newest_text_survives_the_limit_of_characters() -> None:
    payloads = [user(f"question {number}") for number in range(100)]
    result = replay(*payloads, max_chars=800)
    text = body(result)
    assert text.endswith("User: question 99")
    assert "question 1\n" not in text
    assert result.text is not None
    assert len(result.text) <= 800
    shown = text.count("User:")
    assert (result.replayed, result.left_out) == (shown, 100 - shown)
    assert text.startswith(f"[{100 - shown} earlier events are left out]")


def test_the_end_of_one_long_text_survives() -> None:
    result = replay(user("q"), chunk("x" * 5000 + " the end"), max_chars=1000)
    assert body(result).endswith("the end")
    assert result.text is not None
    assert len(result.text) <= 1000
    assert result.left_out == 1


def test_no_room_at_all_leaves_everything_out() -> None:
    assert replay(user("hello"), chunk("hi"), max_chars=10) == Replay(None, 0, 2)


def test_an_earlier_replay_is_never_replayed() -> None:
    earlier = replay(user("first"), chunk("answer")).text
    assert earlier is not None
    peers = (
        "Previous session history is replayed below as JSON-RPC envelopes. Use it as context before "
        'responding to the latest user prompt.\n{"createdAt":1,"sender":"client","payload":{}}\n'
    )
    result = replay(user(earlier, "second"), chunk(f"You said: {earlier} and more"), user(peers, "third"))
    assert body(result) == "User: second\n\nAssistant: You said:  and more\n\nUser: third"


def test_a_replay_that_is_cut_in_two_is_never_replayed() -> None:
    earlier = replay(user("first"), chunk("answer")).text
    assert earlier is not None
    middle = earlier.index("User: first")
    # The history that is read begins in the middle of what an agent said back.
    result = replay(chunk(earlier[middle:]), chunk(" and that was it"), total=9)
    assert body(result) == "[7 earlier events are left out]\n\nAssistant: and that was it"
    # An agent was cut off while it said it back.
    assert body(replay(chunk("You said: " + earlier[:middle]))) == "Assistant: You said:"
    # Who speaks of it is not cut off.
    spoken = replay(user(f"what is {OPENING} for?")).text
    assert spoken is not None
    assert f"User: what is {OPENING} for?" in spoken


def test_what_the_user_said_behind_the_other_sdks_replay_is_kept() -> None:
    peers = 'Previous session history is replayed below as JSON-RPC envelopes. Use it.\n{"sender":"client"}\n'
    assert body(replay(user(peers, '{"what": "is this?"}'))) == 'User: {"what": "is this?"}'


@pytest.mark.parametrize(
    ("raw", "outcome"),
    [
        ("42", "\n42"),
        ({"stdout": "hi", "exit": 0}, "\nhi"),
        ({"output": " "}, ""),
        ({"exit": 0}, ""),
        (None, ""),
    ],
)
def test_a_tools_outcome_is_also_taken_from_its_raw_output(raw: Any, outcome: str) -> None:
    call = update("tool_call", toolCallId="t", title="Run", status="completed", rawOutput=raw)
    assert body(replay(call)) == f"Tool: Run [completed]{outcome}"
    told = update("tool_call_update", toolCallId="t", rawOutput="raw")
    content = [{"type": "content", "content": {"type": "text", "text": "shown"}}]
    shown = update("tool_call", toolCallId="t", title="Run", content=content)
    assert body(replay(shown, told)) == "Tool: Run\nshown"


def test_a_line_that_can_not_be_read_says_nothing() -> None:
    broken = SessionEvent("e", 1, "s", 1, "c", "agent", b"{")
    odd = SessionEvent("e", 2, "s", 1, "c", "agent", b"[]")
    result = build_replay([broken, odd, event(3, "client", user("hi"))], 3, max_events=9, max_chars=BIG)
    assert body(result) == "User: hi"


def test_a_restore_event_says_nothing() -> None:
    restored = {"method": "_sandbox_agent/session_restored", "params": {"sessionId": "s", "method": "replay"}}
    assert body(replay(user("a"), restored, chunk("b"))) == "User: a\n\nAssistant: b"


# What is said must not look like a role of the transcript's.
_texts = st.text(st.characters(exclude_characters=":"), max_size=30)
_payloads = st.lists(
    st.one_of(
        _texts.map(user),
        _texts.map(chunk),
        _texts.map(lambda title: update("tool_call", toolCallId="t", title=title)),
        st.just(DONE),
    ),
    max_size=30,
)


@given(_payloads, st.integers(1, 40), st.integers(1, 2000), st.integers(0, 100))
def test_the_limits_and_the_count_always_hold(
    payloads: list[dict[str, Any]], max_events: int, max_chars: int, older: int
) -> None:
    total = len(payloads) + older
    result = replay(*payloads, total=total, max_events=max_events, max_chars=max_chars)
    assert result.replayed + result.left_out == total
    assert 0 <= result.replayed <= len(payloads)
    if result.text is not None:
        assert len(result.text) <= max_chars
        assert 1 <= len(ROLES.findall(body(result))) <= max_events
        if result.left_out:
            assert f"[{result.left_out} earlier events are left out]" in result.text
