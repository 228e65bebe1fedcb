"""The steps of a restore; the caller performs each and stores its outcome in it before the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sandbox_agent.engine.restore.replay_check import Told
from sandbox_agent.engine.settings import AskOptions, Call, ReadReported
from sandbox_agent.wire.records import SessionEvent


class OpenSession(Call):
    """Ask the agent to open a session that it has had before; until its response it may retell the history.

    Attributes:
        opens: the agent's session.
        told: what the agent retold.
    """

    def __init__(self, method: str, params: Mapping[str, Any], *, opens: str) -> None:
        super().__init__(method, {**params, "sessionId": opens})
        self.opens = opens
        self.told: Told | None = None


class ReadNewest:
    """Set ``events`` to the newest ``limit`` events of the plan's history, oldest of them first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.events: Sequence[SessionEvent] = ()


Step = Call | AskOptions | ReadReported | ReadNewest
