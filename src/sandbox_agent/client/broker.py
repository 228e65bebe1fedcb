"""A session's open requests of one kind: delivered to listeners, answered, cancelled."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from sandbox_agent.client.tasks import TaskOwner, await_result, call_listener
from sandbox_agent.errors import SandboxAgentError

logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# Sends the result of a request to the agent.
Respond = Callable[[object], Coroutine[Any, Any, None]]


class AgentRequest(Protocol):
    """A request of the agent to the user."""

    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=AgentRequest)


@dataclass(slots=True)
class Pending(Generic[R]):
    """A request that waits for an answer.

    Attributes:
        request: the request.
        respond: sends the answer.
        delivered: whether listeners and policies may see it: the events before it are stored.
    """

    request: R
    respond: Respond
    delivered: bool = False


class RequestBroker(Generic[R]):
    """Holds one session's requests of one kind until they are answered.

    Args:
        session_id: the session's local id.
        tasks: runs listeners and answers.
        kind: what the requests are, in messages.
        cancelled: returns the result that cancels a request.

    Attributes:
        failure: the wrong value that a callback of the user has returned since the last prompt, as an error
            for the caller of that prompt.
    """

    def __init__(
        self, session_id: str, tasks: TaskOwner, kind: str, cancelled: Callable[[R], dict[str, Any]]
    ) -> None:
        self._session_id = session_id
        self._tasks = tasks
        self._kind = kind
        self._cancelled = cancelled
        self._pending: dict[str, Pending[R]] = {}
        self.failure: Exception | None = None
        self._listeners: dict[object, Callable[[R], Awaitable[object] | object]] = {}

    def note_failure(self, request: R, failure: Exception) -> None:
        """Keep the error of a callback, which the prompt raises that waits for the callback."""
        if request.id in self._pending:
            self.failure = failure
        else:  # its turn has ended, and another prompt must not fail for it
            logger.warning("a callback for %s %s was wrong: %s", self._kind, request.id, failure)

    def listen(self, listener: Callable[[R], Awaitable[object] | object]) -> Callable[[], None]:
        """Call the listener with requests, also those already open; return a function to unregister it."""
        key = object()
        self._listeners[key] = listener
        for pending in list(self._pending.values()):
            if pending.delivered:
                self._notify(listener, pending.request)

        def unregister() -> None:
            self._listeners.pop(key, None)

        return unregister

    @property
    def open_requests(self) -> list[R]:
        """The requests that wait for an answer, oldest first."""
        return [pending.request for pending in self._pending.values()]

    def add(self, request: R, respond: Respond) -> Pending[R]:
        """Add a request; it can be answered from now on, and ``open`` delivers it."""
        pending = self._pending[request.id] = Pending(request, respond)
        return pending

    async def open(self, pending: Pending[R], *, must_ask: bool = False) -> None:
        """Deliver a request to the listeners, or answer it."""
        raise NotImplementedError

    def forget(self, pending: Pending[R]) -> None:
        """Drop a request: another process answers it."""
        self._pending.pop(pending.request.id, None)

    def _deliver(self, pending: Pending[R]) -> bool:
        """Return whether the request is still open; new listeners receive it from now on."""
        pending.delivered = True
        return pending.request.id in self._pending

    def _notify_all(self, request: R) -> None:
        for listener in list(self._listeners.values()):
            self._notify(listener, request)

    def _notify(self, listener: Callable[[R], Awaitable[object] | object], request: R) -> None:
        # If the listener fails, the request stays open for other listeners.
        result = call_listener(listener, request, f"a {self._kind} listener of session {self._session_id}")
        if result is not None and self._tasks.running:
            self._tasks.spawn(await_result(result), name=f"{self._kind} listener of {self._session_id}")

    async def cancel_all(self) -> None:
        """Answer all open requests with "cancelled"."""
        for pending in list(self._pending.values()):
            try:
                await self._answer(pending, self._cancelled(pending.request))
            except SandboxAgentError as error:
                logger.info("%s %s could not be cancelled: %s", self._kind, pending.request.id, error)

    def forget_all(self) -> None:
        """Drop all open requests: their agent is gone."""
        self._pending.clear()

    def _find(self, request_id: str) -> Pending[R]:
        pending = self._pending.get(request_id)
        if pending is None:
            raise SandboxAgentError(
                f"{self._kind} '{request_id}' is not open: it was answered, cancelled, or its agent is gone"
            )
        return pending

    def _send(self, pending: Pending[R], result: object) -> Awaitable[None]:
        self._tasks.check()
        # A task, not a coroutine: a listener need not await or return it.
        self._pending.pop(pending.request.id, None)
        return self._tasks.run(pending.respond(result), name=f"answer {pending.request.id}")

    async def _answer(self, pending: Pending[R], result: object) -> None:
        self._pending.pop(pending.request.id, None)
        await pending.respond(result)
