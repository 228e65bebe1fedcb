"""Waits until the server is healthy, so that no request is sent before."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sandbox_agent.client.http import Http, describe
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.errors import HealthTimeoutError, SandboxAgentError, TokenInvalidError
from sandbox_agent.wire.jsonrpc import members

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

MIN_DELAY = 0.5
MAX_DELAY = 15.0
WARN_AFTER = 5.0
WARN_EVERY = 10.0
ENSURE_SERVER_AFTER = 3
# The timeout of one probe: a slower server counts as one failure.
PROBE_TIMEOUT = 10.0
# A probe at the end of the wait still has this long.
MIN_PROBE = 0.1

EnsureServer = Callable[[], Awaitable[object]]


async def wait_until_healthy(
    probe: Callable[[], Awaitable[Any]],
    *,
    where: str,
    timeout: float | None = None,
    ensure_server: EnsureServer | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Probe, with delays from 0.5 s doubling to 15 s, until the status is "ok".

    Args:
        probe: fetches the health document.
        where: the server's URL, for messages.
        timeout: how long to wait, in seconds; None waits forever.
        ensure_server: called after every three failures in a row.
        clock: returns the time in seconds.
        sleep: waits.

    Raises:
        HealthTimeoutError: the server was not healthy within ``timeout``.
        TokenInvalidError: the server is running and refuses the token.
    """
    began = clock()
    delay = MIN_DELAY
    warn_at = began + WARN_AFTER
    failures = 0
    while True:
        left = None if timeout is None else max(timeout - (clock() - began), MIN_PROBE)
        problem = await _probe_once(probe, left)
        if problem is None:
            return
        failures += 1
        if failures >= ENSURE_SERVER_AFTER and ensure_server is not None:
            failures = 0
            try:
                await ensure_server()
                delay = MIN_DELAY
            except Exception as error:
                # The provider's code: the wait continues until its timeout.
                logger.exception("ensure_server failed")
                problem = f"{problem}; ensure_server: {describe(error)}"
        now = clock()
        if now >= warn_at:
            logger.warning("%s is not healthy after %.0f s; still waiting (%s)", where, now - began, problem)
            warn_at = now + WARN_EVERY
        if timeout is not None and now - began + delay >= timeout:
            remaining = timeout - (now - began)
            if remaining <= 0:
                raise HealthTimeoutError(
                    f"{where} was not healthy within {timeout:g} s ({problem}): is the server running?"
                )
            await sleep(remaining)
        else:
            await sleep(delay)
        delay = min(delay * 2, MAX_DELAY)


async def _probe_once(probe: Callable[[], Awaitable[Any]], seconds: float | None) -> str | None:
    """Return the problem, or None if the server is healthy."""
    try:
        async with asyncio.timeout(seconds):
            health: object = await probe()
    except TokenInvalidError:
        raise
    except TimeoutError:
        return "no response"
    except SandboxAgentError as error:
        return describe(error)
    return None if members(health).get("status") == "ok" else f"unexpected response {health!r}"


class HealthCheck:
    """Delays requests until the server is healthy; checks again after a loss.

    Attributes:
        enabled: whether ``wait_ready`` waits for the server at all.
    """

    def __init__(
        self,
        http: Http,
        tasks: TaskOwner,
        *,
        enabled: bool,
        timeout: float | None,
        ensure_server: EnsureServer | None = None,
    ) -> None:
        self._http = http
        self._tasks = tasks
        self.enabled = enabled
        self._timeout = timeout
        self._ensure_server = ensure_server
        self._waiting: asyncio.Future[None] | None = None
        self._suspect = False

    async def probe(self) -> Any:
        """Fetch the health document once."""
        return await self._http.json("GET", "/v1/health", read_timeout=PROBE_TIMEOUT)

    def start(self) -> None:
        """Start to wait, unless a wait is in progress."""
        if self.enabled and (self._waiting is None or self._waiting.done()):
            wait = wait_until_healthy(
                self.probe,
                where=f"sandbox-agent at {self._http.base_url}",
                timeout=self._timeout,
                ensure_server=self._ensure_server,
            )
            self._waiting = self._tasks.run(wait, name="health")
        self._suspect = False

    def mark_suspect(self) -> None:
        """Make the next request wait until the server is healthy again."""
        self._suspect = True

    async def wait_ready(self) -> None:
        """Return once the server is healthy.

        Raises:
            HealthTimeoutError: the server was not healthy in time; the next call waits again.
            TokenInvalidError: the server refuses the token; the next call checks again.
        """
        self._tasks.check()
        if self._suspect:
            self.start()
        if self._waiting is None:
            return
        waiting = self._waiting
        await asyncio.wait({waiting})
        error = waiting.exception()
        if error is not None:
            self._suspect = True
            raise error
