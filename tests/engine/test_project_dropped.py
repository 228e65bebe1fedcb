"""Turns that were accepted and never sent."""

from __future__ import annotations

from sandbox_agent.engine.project import Projector
from sandbox_agent.wire.universal import TurnEventData


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
