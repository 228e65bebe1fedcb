"""What all sessions that the server drives have in common."""

from __future__ import annotations

from dataclasses import dataclass

import anyio
from anyio.abc import TaskGroup

from sandbox_agent.persist.store import SessionStore
from sandbox_agent.server.agents.bridge import Bridge
from sandbox_agent.server.recorder import Recorder


@dataclass(slots=True)
class SessionContext:
    """What a session that the server drives works with.

    Attributes:
        tasks: where turns run.
        starts: limits how many agents are started again at once.
        cancel_grace: seconds that an agent has to end a turn that was cancelled.
        halted: the server is about to end: no turn is started.
    """

    recorder: Recorder
    store: SessionStore
    bridge: Bridge
    tasks: TaskGroup
    starts: anyio.CapacityLimiter
    cancel_grace: float
    halted: bool = False
