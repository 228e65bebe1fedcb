"""Agents that are known to ignore a cancellation have less time than others."""

from __future__ import annotations

import pytest

from sandbox_agent.engine.cancellation import cancel_grace_of


@pytest.mark.parametrize(
    ("agent", "configured", "seconds"),
    [("claude", 10.0, 10.0), ("goose", 10.0, 1.0), ("goose", 0.2, 0.2), ("", 3.0, 3.0)],
)
def test_an_agent_that_ignores_cancellations_has_less_time(
    agent: str, configured: float, seconds: float
) -> None:
    assert cancel_grace_of(agent, configured) == seconds
