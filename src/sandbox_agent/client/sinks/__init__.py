"""Sinks into which ``sdk.sessions.mirror`` copies a session's events: the protocol, one file per sink."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Sequence
from types import TracebackType
from typing import Protocol, Self

from sandbox_agent.errors import PersistError
from sandbox_agent.wire.universal import AgentEvent, UniversalEvent


class EventSink(Protocol):
    """A target for mirrored events: any object with these two methods, which may be sync or async.

    Sync methods run in the event loop: a method that waits for a disk or a network should be async.
    """

    def last_sequence(self, session_id: str, /) -> int | Awaitable[int]:
        """Return the highest stored sequence of a session, or 0."""
        ...

    def insert_events(self, session_id: str, events: Sequence[AgentEvent], /) -> object | Awaitable[object]:
        """Store events, in the order of their sequences, all or none, before returning.

        An exception ends the mirror.
        """
        ...


class ClosableSink(ABC):
    """The base of sinks that hold a connection or a file."""

    @abstractmethod
    async def last_sequence(self, session_id: str, /) -> int:
        """Return the highest stored sequence of a session, or 0.

        Raises:
            PersistError: the store can't be read.
        """

    @abstractmethod
    async def insert_events(self, session_id: str, events: Sequence[UniversalEvent], /) -> None:
        """Store events in one step, all or none.

        Raises:
            PersistError: an event is missing between the stored events and these; a different event is
                stored under one of their sequences; or the store can't be written.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connection or file, unless it was passed in. Safe to call twice."""

    async def __aenter__(self) -> Self:
        """Return the sink."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the sink."""
        await self.close()


def gap_error(session_id: str, received: int, expected: int) -> PersistError:
    """Return the error of events that do not follow the stored ones."""
    return PersistError(
        f"session '{session_id}': event {received} came, {expected} is missing, nothing was stored",
        session_id=session_id,
    )


def other_event_error(session_id: str, sequence: int, target: str) -> PersistError:
    """Return the error of an event whose sequence is already used by a different event."""
    return PersistError(
        f"session '{session_id}': another event {sequence} is stored (the session was deleted and created "
        f"again, or belongs to another server): mirror it into another {target}",
        session_id=session_id,
    )
