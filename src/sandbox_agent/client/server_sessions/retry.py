"""Decides how long a call to the server is retried after losses, and waits between the tries."""

from __future__ import annotations

import asyncio
import logging
import time

import httpx2

from sandbox_agent.client.feed import RECONNECT_MAX_DELAY, RECONNECT_MIN_DELAY, UNREACHABLE_FOR
from sandbox_agent.client.health import HealthCheck
from sandbox_agent.client.http import describe
from sandbox_agent.errors import ConnectionLostError, SandboxAgentError

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# Sent by a proxy whose server is away, or by a server whose store fails: a later try may succeed.
RETRIED_STATUSES = frozenset({502, 503, 504})


class RetryPolicy:
    """Decides after every loss whether to try again, and waits before it.

    A client with a health check waits as long as that does (``health_timeout``). While the server is
    healthy, losses are retried for UNREACHABLE_FOR without progress. A client without a health check gives
    up at once if the connection is refused, unless the server has responded before.
    """

    def __init__(self, health: HealthCheck, what: str) -> None:
        self._health = health
        self._what = what
        self._delay = RECONNECT_MIN_DELAY
        self._lost_since: float | None = None
        self._responded = False

    async def wait_ready(self) -> None:
        """Wait until the server is healthy.

        Raises:
            HealthTimeoutError: the server was not healthy in time.
        """
        await self._health.wait_ready()

    def mark_responded(self) -> None:
        """Record that the server responded."""
        self._responded = True

    def mark_progress(self) -> None:
        """Record that new data was received: the retry time starts again."""
        self._responded = True
        self._lost_since = None
        self._delay = RECONNECT_MIN_DELAY

    async def wait(self, loss: Exception | str) -> None:
        """Wait before the next try.

        Raises:
            ConnectionLostError: the server is gone.
            HealthTimeoutError: the server was not healthy in time.
            SandboxAgentError: the loss itself, if it is such an error and has lasted too long.
        """
        text = describe(loss) if isinstance(loss, Exception) else loss
        root = loss.__cause__ or loss if isinstance(loss, Exception) else None
        refused = isinstance(root, (httpx2.ConnectError, httpx2.ConnectTimeout))
        now = time.monotonic()
        expired = self._lost_since is not None and now - self._lost_since > UNREACHABLE_FOR
        if self._lost_since is None:
            self._lost_since = now
        if expired or (refused and not self._health.enabled and not self._responded):
            if isinstance(loss, SandboxAgentError):
                raise loss
            raise ConnectionLostError(f"{self._what}: the server is gone ({text})")
        logger.info("%s: %s: trying again", self._what, text)
        await asyncio.sleep(self._delay)
        self._delay = min(self._delay * 2, RECONNECT_MAX_DELAY)
        if refused:
            self._health.mark_suspect()
        before = time.monotonic()
        await self._health.wait_ready()
        # The health check has a timeout of its own.
        self._lost_since += time.monotonic() - before
