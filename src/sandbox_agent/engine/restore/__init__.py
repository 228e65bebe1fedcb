"""How a session goes on in another session of an agent's: what is asked, what is told, what is past."""

from __future__ import annotations

from sandbox_agent.engine.restore.frame import CLOSING, OPENING, is_replay_title
from sandbox_agent.engine.restore.ladder import AskOptions, Call, Ladder, Outcome, Plan, native_methods
from sandbox_agent.engine.restore.load_phase import PRESENT_UPDATES, Retelling
from sandbox_agent.engine.restore.replay_check import Told
from sandbox_agent.engine.restore.steps import ReadNewest, Refusal
from sandbox_agent.engine.restore.text import Replay, build_replay
from sandbox_agent.engine.restore.window import EVENTS_PER_ENTRY

__all__ = [
    "CLOSING",
    "EVENTS_PER_ENTRY",
    "OPENING",
    "PRESENT_UPDATES",
    "AskOptions",
    "Call",
    "Ladder",
    "Outcome",
    "Plan",
    "ReadNewest",
    "Refusal",
    "Replay",
    "Retelling",
    "Told",
    "build_replay",
    "is_replay_title",
    "native_methods",
]
