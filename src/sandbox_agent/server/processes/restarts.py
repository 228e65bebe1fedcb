"""When a process that has ended is started again."""

from __future__ import annotations

from sandbox_agent.wire.processes import ProcessRestartRequest


class Restarts:
    """The restarts of one process.

    Args:
        policy: when it is restarted.

    Attributes:
        count: how often it was restarted.
    """

    def __init__(self, policy: ProcessRestartRequest) -> None:
        self._policy = policy
        self._delay_ms = self._first_delay_ms
        self.count: int = 0

    @property
    def _first_delay_ms(self) -> int:
        return min(self._policy.delay_ms, self._policy.max_delay_ms)

    def next_delay(self, *, success: bool, ran_seconds: float) -> float | None:
        """Return after how many seconds the process is started again; None if it is not.

        Args:
            success: whether its exit code was 0.
            ran_seconds: how long it has run; 0 if it could not be started.
        """
        policy = self._policy
        if policy.policy == "never" or (policy.policy == "on_failure" and success):
            return None
        if policy.max_restarts is not None and self.count >= policy.max_restarts:
            return None
        if ran_seconds * 1000 > policy.max_delay_ms:
            self._delay_ms = self._first_delay_ms
        delay_ms = self._delay_ms
        self._delay_ms = min(delay_ms * 2, policy.max_delay_ms)
        self.count += 1
        return delay_ms / 1000
