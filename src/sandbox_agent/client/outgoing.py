"""A request on its way: stored once, sent until it is heard, waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sandbox_agent.client.ports import ClientSession
from sandbox_agent.errors import ConnectionLostError
from sandbox_agent.wire.records import SessionEvent

__all__ = ["NotSentError", "Outgoing", "PendingRequest"]


class NotSentError(ConnectionLostError):
    """The request did not reach the agent, so it may be sent again."""


class Outgoing:
    """A request that is stored once, however often it is sent.

    Attributes:
        id: its JSON-RPC id, unique over the client's connections.
        event: its event, once stored.
        answer_event: the event of its answer, once that came.
    """

    def __init__(self, request_id: int) -> None:
        self.id = request_id
        self.event: SessionEvent | None = None
        self.answer_event: SessionEvent | None = None


class PendingRequest:
    """A request whose answer is owed.

    Attributes:
        outgoing: the request.
        method: its method.
        session: into whose journal the answer goes.
        opens: the agent session that it opens again.
        on_result: called with the result before anything that the agent sends after it is handled.
        post_open: whether its POST has not ended yet.
        future: the answer's envelope.
    """

    def __init__(
        self,
        outgoing: Outgoing,
        method: str,
        session: ClientSession | None,
        *,
        opens: str | None = None,
        on_result: Callable[[Any], None] | None = None,
    ) -> None:
        self.outgoing = outgoing
        self.method = method
        self.session = session
        self.opens = opens
        self.on_result = on_result
        self.post_open = True
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def fail(self, error: BaseException) -> None:
        """Hand the error to who waits; nothing happens where the answer came."""
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # marks it as seen: the caller may have gone
