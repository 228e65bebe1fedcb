"""Restores as users see them."""

from __future__ import annotations

import io

import pytest

from sandbox_agent.cli.event_printer import EventPrinter
from sandbox_agent.cli.output import Screen
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.records import RESTORED_METHOD, SessionEvent, SessionRestored


@pytest.mark.parametrize(
    ("restored", "expected"),
    [
        (
            SessionRestored(session_id="s", replayed=3, left_out=2, failed={"mode": "no such mode"}),
            (
                "restored  in a new agent session by replay: 3 events, 2 older ones left out\n"
                "not restored  mode: no such mode\n"
            ),
        ),
        (
            SessionRestored(session_id="s", method="session/resume"),
            "restored  by the agent's session/resume\n",
        ),
        (
            SessionRestored(session_id="s", method="session/load", replayed=3, verified=False),
            "restored  by the agent's session/load, which lacks some of it; that by replay: 3 events\n",
        ),
        (
            SessionRestored(session_id="s", replayed=1, agent="codex", from_agent="claude"),
            "restored  in a new agent session by replay: 1 events\nagent  codex, no longer claude\n",
        ),
    ],
    ids=["replay", "resume", "load", "handed over"],
)
def test_a_restore_is_printed_with_its_method_and_what_is_missing(
    restored: SessionRestored, expected: str
) -> None:
    stream = io.StringIO()
    payload = dumps({"jsonrpc": "2.0", "method": RESTORED_METHOD, "params": restored.params()})
    EventPrinter(Screen(stream, stream)).print_event(SessionEvent("e", 1, "s", 1, "c", "client", payload))
    assert stream.getvalue() == expected


@pytest.mark.parametrize(
    "update",
    [
        {"sessionUpdate": "session_info_update", "title": "a\nnot restored  b"},
        {"sessionUpdate": "current_mode_update", "currentModeId": "a\nnot restored  b"},
        {"sessionUpdate": "tool_call", "toolCallId": "1", "title": "a\nnot restored  b", "status": "pending"},
    ],
)
def test_what_an_agent_names_stays_in_its_line(update: dict[str, str]) -> None:
    stream = io.StringIO()
    params = {"sessionId": "s", "update": update}
    payload = dumps({"jsonrpc": "2.0", "method": "session/update", "params": params})
    EventPrinter(Screen(stream, stream)).print_event(SessionEvent("e", 1, "s", 1, "c", "agent", payload))
    assert stream.getvalue().count("\n") == 1
    assert "a not restored b" in stream.getvalue()
