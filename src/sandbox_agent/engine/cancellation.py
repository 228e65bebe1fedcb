"""How long an agent may take to end a turn that was cancelled, before it is stopped."""

from __future__ import annotations

# Seconds, by agent. Goose ignores a cancellation while it waits for its model; else it ends a turn in 0.2 s.
_SECONDS = {"goose": 1.0}


def cancel_grace_of(agent: str, configured: float) -> float:
    """Return the seconds that an agent has to end a turn that was cancelled.

    Args:
        agent: the agent's id.
        configured: what the client or the server gives to all agents.
    """
    return min(configured, _SECONDS.get(agent, configured))
