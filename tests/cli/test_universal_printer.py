"""Universal events as users see them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest

from sandbox_agent.cli.output import Screen
from sandbox_agent.cli.search import format_hit, parse_time
from sandbox_agent.cli.tail import UniversalPrinter
from sandbox_agent.wire.sessions import SearchHit
from sandbox_agent.wire.universal import decode_event
from tests.client.scripted_sessions import event

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def printed(*events: bytes, replies: bool = True) -> str:
    stream = io.StringIO()
    screen = Screen(stream, stream)
    printer = UniversalPrinter(screen, "s", replies=replies)
    for each in events:
        printer.print_event(decode_event(each))
    screen.end_line()
    return stream.getvalue()


def item(
    sequence: int, kind: str, *content: Mapping[str, object], done: bool = True, **more: object
) -> bytes:
    fields: dict[str, object] = {
        "status": "completed" if done else "in_progress",
        "role": "assistant",
        **more,
    }
    body = {"item_id": "itm_1", "kind": kind, "content": list(content), **fields}
    return event(sequence, "item.completed" if done else "item.started", item=body)


def delta(sequence: int, text: str) -> bytes:
    return event(sequence, item_id="itm_1", delta=text)


TEXT = {"type": "text", "text": ""}


def test_the_agents_text_is_printed_as_it_streams_and_once() -> None:
    whole = {"type": "text", "text": "Hello there"}
    said = printed(
        item(1, "message", TEXT, done=False), delta(2, "Hello "), delta(3, "there"), item(4, "message", whole)
    )
    assert said == "Hello there\n"


def test_a_message_whose_beginning_was_missed_is_printed_when_it_is_complete() -> None:
    whole = {"type": "text", "text": "Hello there"}
    assert printed(delta(3, "there"), item(4, "message", whole)) == "Hello there\n"


def test_the_users_message_is_printed_once() -> None:
    whole = {"type": "text", "text": "Do it"}
    said = printed(
        item(1, "message", TEXT, done=False, role="user"),
        delta(2, "Do it"),
        item(3, "message", whole, {"type": "image", "path": "x", "mime": "image/png"}, role="user"),
    )
    assert said == "> Do it\n[image image/png]\n"


def test_a_tool_call_is_printed_with_its_result() -> None:
    call = {"type": "tool_call", "name": "bash", "arguments": "{}", "call_id": "c"}
    patch = {"type": "file_ref", "path": "/a", "action": "patch"}
    result = {"type": "tool_result", "call_id": "c", "output": "line 1\nline 2" + "x" * 500}
    said = printed(
        item(1, "tool_call", call, {"type": "status", "label": "List files"}),
        item(2, "tool_result", result, patch, status="failed"),
    )
    assert said.startswith("tool   List files\n       failed  line 1 line 2xxx")
    assert said.endswith("…\n       patch  /a\n")
    assert len(said) < 300


def test_a_request_is_printed_with_the_command_that_answers_it() -> None:
    asked = event(1, "permission.requested", permission_id="perm_1", action="rm -r /", status="requested")
    answered = event(
        2,
        "permission.resolved",
        permission_id="perm_1",
        action="rm -r /",
        status="reject",
        metadata={"answered_by": "bob"},
    )
    assert printed(asked, answered) == (
        "permission perm_1  rm -r /\n"
        "       sandbox-agent api sessions reply-permission s perm_1 --reply once|always|reject\n"
        "permission perm_1  reject by bob\n"
    )
    assert "sandbox-agent api" not in printed(asked, replies=False)


@pytest.mark.parametrize(
    ("kind", "data", "line"),
    [
        ("error", {"message": "it\nfailed", "code": "-32000"}, "error  it failed (-32000)"),
        (
            "session.ended",
            {"reason": "terminated", "terminated_by": "daemon"},
            "ended  terminated by the daemon",
        ),
        (
            "turn.ended",
            {"phase": "ended", "metadata": {"stop_reason": "interrupted", "reason": "server restarted"}},
            "stopped  interrupted: server restarted",
        ),
        (
            "question.requested",
            {"question_id": "q", "prompt": "Which?", "options": ["a", "b"], "status": "requested"},
            "question q  Which? (a | b)",
        ),
        ("agent.unparsed", {"error": "no JSON", "location": "stdout"}, "not understood  no JSON (stdout)"),
        ("news.of.tomorrow", {"what": "ever"}, ""),
    ],
)
def test_an_event_is_one_line(kind: str, data: dict[str, object], line: str) -> None:
    assert printed(event(1, kind, **data), replies=False) == (line + "\n" if line else "")


def test_a_turn_that_ended_normally_prints_nothing() -> None:
    assert printed(event(1, "turn.ended", phase="ended", metadata={"stop_reason": "end_turn"})) == ""


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-30", datetime(2026, 1, 30).astimezone()),
        ("2026-01-30T10:00+02:00", datetime(2026, 1, 30, 8, tzinfo=UTC)),
        ("90m", NOW - timedelta(minutes=90)),
        ("2h", NOW - timedelta(hours=2)),
        ("1w", NOW - timedelta(weeks=1)),
    ],
)
def test_a_time_is_parsed(text: str, moment: datetime) -> None:
    assert parse_time(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "soon", "2x", "2026-13-01", "999999999w"])
def test_an_invalid_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid time"):
        parse_time(text, NOW)


def test_a_hit_is_one_line_without_control_characters() -> None:
    hit = SearchHit(session_id="s", agent="mock", sequence=7, time=0, snippet="a [needle]\x1b in\nhay")
    line = format_hit(hit, colors=False)
    assert line.startswith("s:7  ")
    assert line.endswith("  mock  a [needle] in hay")
    assert "\x1b[1mneedle\x1b[0m" in format_hit(hit, colors=True)
