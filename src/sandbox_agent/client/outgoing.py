"""Requests that were sent, or will be: stored once, sent until received, awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sandbox_agent.client.router import ClientSession
from sandbox_agent.errors import ConnectionLostError
from sandbox_agent.wire.records import SessionEvent


class NotSentError(ConnectionLostError):
    """The request did not reach the agent, so it can be sent again."""


@dataclass(slots=True, eq=False)
class Outgoing:
    """A request that is stored once, however often it is sent.

    Attributes:
        id: the JSON-RPC id, unique over the client's connections.
        event: the request's event, once stored.
        answer_event: the response's event, once received.
        retried: whether this is the second request, in a session that was restored.
        cancelled: whether it is a prompt whose turn was cancelled.
    """

    id: int
    event: SessionEvent | None = None
    answer_event: SessionEvent | None = None
    retried: bool = False
    cancelled: bool = False

    def retry(self, request_id: int) -> None:
        """Become another request with the same content."""
        self.id, self.event, self.retried = request_id, None, True


def _new_future() -> asyncio.Future[bytes]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class PendingRequest:
    """A request that waits for its response.

    Attributes:
        outgoing: the request.
        method: the request's method.
        body: the envelope as it is sent.
        session: the session whose journal stores the response.
        opens: the agent session that the request opens again.
        on_result: called with the result before anything that the agent sends later is handled.
        posted: set when the request's POST has ended.
        future: the response envelope; cancelled if the caller no longer waits for it.
        ended: set when the request is no longer pending.
    """

    outgoing: Outgoing
    method: str
    session: ClientSession | None
    opens: str | None = None
    on_result: Callable[[Any], None] | None = None
    body: bytes = b""
    posted: asyncio.Event = field(default_factory=asyncio.Event)
    future: asyncio.Future[bytes] = field(default_factory=_new_future)
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def fail(self, error: BaseException) -> None:
        """Raise the error in the waiting caller, unless the response was received."""
        self.ended.set()
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # marks it as retrieved: the caller may be gone
