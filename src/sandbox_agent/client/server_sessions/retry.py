"""How long a call to the server goes on after losses, and what it waits for meanwhile."""

from __future__ import annotations

import asyncio
import logging
import time

import httpx2

from sandbox_agent.client.feed import RECONNECT_MAX_DELAY, RECONNECT_MIN_DELAY, UNREACHABLE_FOR
from sandbox_agent.client.health import HealthGate
from sandbox_agent.client.http import describe
from sandbox_agent.errors import ConnectionLostError, SandboxAgentError

__all__ = ["RETRIED_STATUSES", "Patience"]

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# Said by a proxy whose server is away, or by a server whose store refuses: a later try may succeed.
RETRIED_STATUSES = frozenset({502, 503, 504})


class Patience:
    """Decides after every loss whether to try again, and waits before it.

    A client that waits for its server's health waits as long as that does (``health_timeout``). Losses
    while the server is healthy are borne for UNREACHABLE_FOR without any progress between them. A client
    that does not wait for health gives up at once where nobody listens, unless somebody did before.
    """

    def __init__(self, gate: HealthGate, what: str) -> None:
        self._gate = gate
        self._what = what
        self._delay = RECONNECT_MIN_DELAY
        self._lost_since: float | None = None
        self._met = False

    async def begin(self) -> None:
        """Wait until the server was healthy.

        Raises:
            HealthTimeoutError: it was not in time.
        """
        await self._gate.ready()

    def meet(self) -> None:
        """Say that the server answered."""
        self._met = True

    def progress(self) -> None:
        """Say that something new came: patience begins anew."""
        self._met = True
        self._lost_since = None
        self._delay = RECONNECT_MIN_DELAY

    async def bear(self, loss: Exception | str) -> None:
        """Wait before the next try.

        Raises:
            ConnectionLostError: the server can't be reached any more.
            HealthTimeoutError: it did not become healthy in time.
            SandboxAgentError: the loss itself, where it is one and has lasted too long.
        """
        refused = isinstance(_root(loss), (httpx2.ConnectError, httpx2.ConnectTimeout))
        now = time.monotonic()
        if self._lost_since is None:
            self._lost_since = now
        elif now - self._lost_since > UNREACHABLE_FOR:
            raise self._given_up(loss)
        if refused and not self._gate.waits and not self._met:
            raise self._given_up(loss)
        logger.info("%s: %s: trying again", self._what, _words(loss))
        await asyncio.sleep(self._delay)
        self._delay = min(self._delay * 2, RECONNECT_MAX_DELAY)
        if refused:
            self._gate.suspect()
        before = time.monotonic()
        await self._gate.ready()
        # The wait for its health is bounded by itself.
        self._lost_since += time.monotonic() - before

    def _given_up(self, loss: Exception | str) -> SandboxAgentError:
        if isinstance(loss, SandboxAgentError):
            return loss
        return ConnectionLostError(f"{self._what}: the server is gone ({_words(loss)})")


def _root(loss: Exception | str) -> BaseException | str:
    return loss.__cause__ or loss if isinstance(loss, Exception) else loss


def _words(loss: Exception | str) -> str:
    return describe(loss) if isinstance(loss, Exception) else loss
