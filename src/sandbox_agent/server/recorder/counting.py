"""Counts the turns that the recorder has stored."""

from __future__ import annotations

import math

from sandbox_agent.persist.store import Changes
from sandbox_agent.server import metrics
from sandbox_agent.server.recorder.session_metadata import TOKENS, read_usage

# A larger number is no count, and may be no float.
_MOST_TOKENS = 2**63 - 1


def count_turns(changes: Changes) -> None:
    """Count the turns that end in what was stored, with their time, tokens and cost."""
    for turn in changes.turns:
        if turn.ended_at is None:
            continue
        agent = next((row.agent for row in changes.sessions if row.key == turn.key), metrics.OTHER)
        metrics.TURNS.add(agent, turn.state)
        if turn.started_at is not None:
            metrics.TURN_SECONDS.observe((turn.ended_at - turn.started_at) / 1000, agent)
        usage = read_usage(turn.usage)
        if usage is None:
            continue
        for name in TOKENS.values():
            if (count := getattr(usage, name)) and 0 < count <= _MOST_TOKENS:
                metrics.TOKENS.add(agent, name.removesuffix("_tokens"), amount=count)
        for currency, amount in (usage.cost or {}).items():
            if math.isfinite(amount):
                metrics.COST.add(agent, currency_label(currency), amount=amount)


def currency_label(name: str) -> str:
    """Return a currency as agents should report it, an ISO 4217 code."""
    return name if len(name) == 3 and name.isascii() and name.isalpha() else metrics.OTHER
