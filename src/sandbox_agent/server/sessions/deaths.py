"""Stops the restarts of an agent that dies again and again."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from sandbox_agent.errors import StreamError
from sandbox_agent.server import metrics

# After so many deaths within so many seconds an agent is not started again until one of them is older.
MAX_DEATHS = 3
WITHIN_SECONDS = 60.0


class Deaths:
    """When a session's agent has ended by itself, most recently.

    Args:
        clock: returns seconds on a monotonic clock.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque(maxlen=MAX_DEATHS)

    def add(self) -> None:
        """Note that the agent has ended by itself now."""
        self._times.append(self._clock())

    def check(self, agent: str) -> None:
        """Refuse to start the agent if it has died too often.

        Raises:
            StreamError: the message says when it can be started again.
        """
        if len(self._times) < MAX_DEATHS:
            return
        remaining = self._times[0] + WITHIN_SECONDS - self._clock()
        if remaining > 0:
            metrics.CRASH_LOOPS.add(agent)
            raise StreamError(
                f"stream error: {agent} ended by itself {MAX_DEATHS} times within {WITHIN_SECONDS:g} s and "
                f"is not started again for {remaining:.0f} s: the events before this one say how it ended",
                agent=agent,
            )
