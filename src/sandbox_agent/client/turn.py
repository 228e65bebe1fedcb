"""A prompt and the events of its turn, as an async iterator."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from sandbox_agent.client.journal import Journal
from sandbox_agent.client.outgoing import Outgoing
from sandbox_agent.client.viewer import Viewer
from sandbox_agent.wire.records import SessionEvent

if TYPE_CHECKING:
    from sandbox_agent.wire.acp import PromptResponse


class _Runner(Protocol):
    def next_request_id(self) -> int: ...

    def run(self, work: Coroutine[Any, Any, Any], *, name: str) -> Awaitable[Any]: ...


class Turn:
    """Iterates over a turn's events from the prompt to its response.

    Attributes:
        response: the prompt's response, once the iteration has ended.
    """

    def __init__(
        self,
        journal: Journal,
        send: Callable[[Outgoing], Coroutine[Any, Any, PromptResponse]],
        runner: _Runner,
    ) -> None:
        self.response: PromptResponse | None = None
        self._journal = journal
        self._send = send
        self._runner = runner
        self._outgoing: Outgoing | None = None
        self._viewer: Viewer | None = None
        self._sent: asyncio.Future[PromptResponse] | None = None
        self._answered = False
        self._ended = False

    def __aiter__(self) -> Turn:
        return self

    async def __anext__(self) -> SessionEvent:
        """Return the next event of the turn, once it is stored."""
        if self._answered and not self._ended:
            await self._end()
        if self._ended:
            raise StopAsyncIteration
        viewer = self._viewer or self._begin()
        try:
            event = await anext(viewer)
        except StopAsyncIteration:
            await self._end()
            raise
        answer = self._outgoing.answer_event if self._outgoing is not None else None
        if answer is not None and event.id == answer.id:
            self._answered = True
        return event

    def _begin(self) -> Viewer:
        viewer = self._viewer = self._journal.view(live=True)
        outgoing = self._outgoing = Outgoing(self._runner.next_request_id())
        self._sent = asyncio.ensure_future(self._runner.run(self._send(outgoing), name="prompt"))
        self._sent.add_done_callback(lambda _: viewer.close())
        return viewer

    async def _end(self) -> None:
        self._ended = True
        if self._sent is not None:
            self.response = await asyncio.shield(self._sent)

    async def aclose(self) -> None:
        """Stop the iteration; the turn continues."""
        self._ended = True
