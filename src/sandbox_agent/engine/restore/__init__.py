"""How a session is restored in another agent session: the requests, the replay, and what is retold."""

from __future__ import annotations

from sandbox_agent.engine.restore.frame import CLOSING, OPENING, is_replay_title
from sandbox_agent.engine.restore.ladder import Ladder, Outcome, Plan, native_methods
from sandbox_agent.engine.restore.load_phase import PRESENT_UPDATES, Retelling
from sandbox_agent.engine.restore.replay_check import Told
from sandbox_agent.engine.restore.steps import OpenSession, ReadNewest
from sandbox_agent.engine.restore.text import Replay, build_replay
from sandbox_agent.engine.restore.window import EVENTS_PER_ENTRY

__all__ = [
    "CLOSING",
    "EVENTS_PER_ENTRY",
    "OPENING",
    "PRESENT_UPDATES",
    "Ladder",
    "OpenSession",
    "Outcome",
    "Plan",
    "ReadNewest",
    "Replay",
    "Retelling",
    "Told",
    "build_replay",
    "is_replay_title",
    "native_methods",
]
