"""Turns that were accepted and never sent, or refused by an agent that has lost the session."""

from __future__ import annotations

import pytest

from sandbox_agent.engine.project import Projector
from sandbox_agent.wire.jsonrpc import dumps
from sandbox_agent.wire.universal import TurnEventData, UniversalEvent

PROMPT = dumps(
    {
        "id": "turn_a",
        "method": "session/prompt",
        "params": {"sessionId": "n", "prompt": [{"type": "text", "text": "hi"}]},
    }
)
LOST = dumps({"id": "turn_a", "error": {"code": -32603, "message": "Session not found: n"}})
DONE = dumps({"id": "turn_a", "result": {"stopReason": "end_turn"}})


def types(events: list[UniversalEvent]) -> list[str]:
    return [event.type for event in events]


def refused() -> Projector:
    """A turn of the server whose agent has lost the session, and the end of its process."""
    projector = Projector("s")
    projector.feed("client", PROMPT, 1, subject_id="turn_a")
    assert projector.feed("agent", LOST, 2) == []
    assert projector.turn_interrupted(3, reason="session_lost") == []
    assert projector.agent_exited(3, exit_code=0) == []
    assert projector.is_refused("turn_a")
    return Projector.restore(projector.snapshot())


def test_a_turn_goes_on_when_its_prompt_is_sent_again() -> None:
    projector = refused()
    assert projector.feed("client", PROMPT, 4, subject_id="turn_a") == []
    assert projector.open_turns == ["turn_a"]
    assert not projector.is_refused("turn_a")
    (ended,) = projector.feed("agent", DONE, 5)
    assert isinstance(ended.data, TurnEventData)
    assert (ended.data.turn_id, ended.data.metadata) == ("turn_a", {"stop_reason": "end_turn"})


def test_a_turn_that_is_refused_again_ends_with_the_refusal() -> None:
    projector = refused()
    projector.feed("client", PROMPT, 4, subject_id="turn_a")
    assert projector.feed("agent", LOST, 5) == []
    events = projector.turn_dropped(6, turn_id="turn_a", message="Session not found: n", code="-32603")
    assert types(events) == ["error", "turn.ended"]
    assert projector.open_turns == []


@pytest.mark.parametrize("reason", ["server_restarted", "session_ended", "cancelled"])
def test_a_refused_turn_ends_with_all_but_its_process(reason: str) -> None:
    projector = refused()
    events = (
        projector.session_ended(4, reason="terminated", terminated_by="daemon")
        if reason == "session_ended"
        else projector.turn_interrupted(4, reason=reason)
    )
    assert types(events)[0] == "turn.ended"
    assert projector.open_turns == []


def test_a_turn_of_a_client_ends_with_the_refusal_because_only_the_client_sends_it_again() -> None:
    projector = Projector("s")
    projector.feed("client", PROMPT, 1)
    assert types(projector.feed("agent", LOST, 2)) == ["error", "turn.ended"]


def test_a_turn_that_was_never_sent_ends_with_the_reason() -> None:
    projector = Projector("s")
    error, ended = projector.turn_dropped(1, turn_id="turn_a", message="no agent", code="stream_error")
    assert [error.type, ended.type] == ["error", "turn.ended"]
    assert (error.sequence, ended.sequence) == (1, 2)
    assert isinstance(ended.data, TurnEventData)
    assert ended.data.metadata == {
        "stop_reason": "error",
        "error": {"message": "no agent", "code": "stream_error"},
    }


def test_a_turn_that_was_cancelled_before_it_was_sent_is_no_error() -> None:
    (ended,) = Projector("s").turn_dropped(1, turn_id="turn_a")
    assert ended.type == "turn.ended"
    assert isinstance(ended.data, TurnEventData)
    assert ended.data.metadata == {"stop_reason": "cancelled", "cancelled": True}
