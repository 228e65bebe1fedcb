"""The responses that requests to an agent wait for, and their timers."""

from __future__ import annotations

import asyncio

from sandbox_agent.engine.correlate import Pending, Submitted
from sandbox_agent.errors import RequestTimeoutError


class _Response:
    __slots__ = ("future", "timer")

    def __init__(self, future: asyncio.Future[bytes]) -> None:
        self.future = future
        self.timer: asyncio.TimerHandle | None = None


class Responses:
    """The awaited responses of one agent.

    Args:
        agent: the agent's id, for errors.
        timeout: seconds after which a response is late.
    """

    def __init__(self, agent: str, timeout: float) -> None:
        self._agent = agent
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()  # kept: Python 3.11 makes a system call for it each time
        self._responses: dict[Pending, _Response] = {}

    def add(self, pending: Pending) -> asyncio.Future[bytes]:
        """Return the future response of a request."""
        response = self._responses[pending] = _Response(self._loop.create_future())
        return response.future

    def start_timer(self, submitted: Submitted) -> None:
        """Fail the response when it is late, if it is still awaited."""
        response = None if submitted.pending is None else self._responses.get(submitted.pending)
        if response is not None:
            response.timer = self._loop.call_later(self._timeout, self._expire, submitted)

    def remove(self, pending: Pending) -> asyncio.Future[bytes] | None:
        """Remove and return the future that waits for this response, if it still does."""
        response = self._responses.pop(pending, None)
        if response is None:
            return None
        if response.timer is not None:
            response.timer.cancel()
        return None if response.future.done() else response.future

    def timed_out(self, method: str | None) -> RequestTimeoutError:
        """Return the error of a request whose response is late."""
        return RequestTimeoutError(
            f"timeout: {self._agent} did not answer {method or 'the message'} within {self._timeout:g} s; "
            "it may still do so: its answer will be in the event stream"
        )

    def _expire(self, submitted: Submitted) -> None:
        if submitted.pending is not None and (future := self.remove(submitted.pending)) is not None:
            future.set_exception(self.timed_out(submitted.method))
