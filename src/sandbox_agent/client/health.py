"""Waits until the server is healthy, so that no request is sent before."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sandbox_agent.client.http import Http, describe
from sandbox_agent.client.tasks import TaskOwner
from sandbox_agent.errors import (
    HealthTimeoutError,
    SandboxAgentError,
    SandboxDestroyedError,
    TokenInvalidError,
)
from sandbox_agent.wire.jsonrpc import members

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# How long a client waits for a healthy server unless the caller sets ``health_timeout``.
DEFAULT_TIMEOUT = 120.0
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
    where: Callable[[], str],
    timeout: float | None = None,
    ensure_server: EnsureServer | None = None,
    was_healthy: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> None:
    """Probe, with delays from 0.5 s doubling to 15 s, until the status is "ok".

    A warning says after 5 s, and then every 10 s, what is waited for.

    Args:
        probe: fetches the health document.
        where: returns the server and its URL, for messages.
        timeout: how long to wait, in seconds; None waits forever.
        ensure_server: called after every three failures in a row, and once if the token is refused. The next
            probe follows at once.
        was_healthy: the server was healthy before, so it is gone, not slow to start: the first failure calls
            ``ensure_server``.
        clock: returns the time in seconds.
        sleep: waits.

    Raises:
        HealthTimeoutError: the server was not healthy within ``timeout``.
        TokenInvalidError: the server is running and refuses the token.
        SandboxDestroyedError: ``ensure_server`` found that the sandbox no longer exists.
    """
    began = clock()
    delay = MIN_DELAY
    failures = ENSURE_SERVER_AFTER - 1 if was_healthy else 0
    problem = "no response yet"
    is_renewed = False
    limit = "" if timeout is None else f", for at most {timeout:g} s"

    def warn() -> None:
        nonlocal timer
        waited = clock() - began
        logger.warning("waiting for %s%s: not healthy after %.0f s (%s)", where(), limit, waited, problem)
        timer = loop.call_later(WARN_EVERY, warn)

    loop = asyncio.get_running_loop()
    timer = loop.call_later(WARN_AFTER, warn)
    try:
        while True:
            left = None if timeout is None else max(timeout - (clock() - began), MIN_PROBE)
            try:
                found = await _probe_once(probe, left)
            except TokenInvalidError as error:
                if ensure_server is None or is_renewed:
                    raise
                # A sandbox that was restarted may have another token.
                is_renewed, failures, found = True, ENSURE_SERVER_AFTER - 1, describe(error)
            if found is None:
                return
            problem = found
            failures += 1
            if failures >= ENSURE_SERVER_AFTER and ensure_server is not None:
                failures = 0
                try:
                    async with asyncio.timeout(left):
                        await ensure_server()
                except SandboxDestroyedError:
                    raise
                except Exception as error:
                    # The provider's code: the wait continues until its timeout.
                    logger.exception("ensure_server failed")
                    problem = f"{problem}; ensure_server: {describe(error)}"
                else:
                    delay = MIN_DELAY
                    if timeout is None or clock() - began < timeout:
                        continue
            remaining = delay if timeout is None else min(delay, timeout - (clock() - began))
            if remaining <= 0:
                raise HealthTimeoutError(
                    f"{where()} was not healthy within {timeout:g} s ({problem}): is the server running?"
                )
            await sleep(remaining)
            delay = min(delay * 2, MAX_DELAY)
    finally:
        timer.cancel()


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
        ensure_server: lets the provider start the server and renews its address; None without a provider.
        enabled: whether ``wait_ready`` waits for the server at all.
    """

    def __init__(
        self,
        http: Http,
        tasks: TaskOwner,
        *,
        enabled: bool,
        timeout: float | None,
    ) -> None:
        self.ensure_server: EnsureServer | None = None
        self._http = http
        self._tasks = tasks
        self.enabled = enabled
        self._timeout = timeout
        self._waiting: asyncio.Future[None] | None = None
        self._suspect = False
        self._was_healthy = False

    async def probe(self) -> Any:
        """Fetch the health document once."""
        self._tasks.check_caller()
        return await self._http.json("GET", "/v1/health", read_timeout=PROBE_TIMEOUT)

    def start(self) -> None:
        """Start to wait, unless a wait is in progress."""
        if self.enabled and (self._waiting is None or self._waiting.done()):
            self._waiting = self._tasks.run(self._wait(), name="health")
        self._suspect = False

    async def _wait(self) -> None:
        await wait_until_healthy(
            self.probe,
            where=lambda: f"sandbox-agent at {self._http.base_url}",
            timeout=self._timeout,
            ensure_server=self.ensure_server,
            was_healthy=self._was_healthy,
        )
        self._was_healthy = True

    def mark_suspect(self) -> None:
        """Make the next request wait until the server is healthy again."""
        self._suspect = True

    def recover(self) -> None:
        """Check now and not with the next request, which the server may have to be started for."""
        self._suspect = True
        if self.ensure_server is not None and self._tasks.running:
            self.start()

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
