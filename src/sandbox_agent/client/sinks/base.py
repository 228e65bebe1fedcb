"""What a mirror asks of the place that it fills."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Protocol, Self

from sandbox_agent.wire.universal import UniversalEvent

__all__ = ["ClosedSink", "EventSink"]


class EventSink(Protocol):
    """Any object with these two methods; each may be a plain function or a coroutine function.

    A plain one runs in the event loop: one that waits for a disk or a network should be a coroutine.
    """

    def last_sequence(self, session_id: str, /) -> int | Awaitable[int]:
        """Return the highest sequence that is stored of a session, 0 where there is none."""
        ...

    def insert_events(
        self, session_id: str, events: Sequence[UniversalEvent], /
    ) -> object | Awaitable[object]:
        """Store events, in the order of their sequences, all of them or none, before it returns.

        What it raises ends the mirror.
        """
        ...


class ClosedSink(ABC):
    """What the sinks have in common that hold something open."""

    @abstractmethod
    async def close(self) -> None:
        """Close what was opened. Safe to call twice."""

    async def __aenter__(self) -> Self:
        """Return the sink."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close it."""
        await self.close()
