"""Objects that are opened by ``await`` or by ``async with``."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

from sandbox_agent.event_loop import running_loop

T = TypeVar("T", bound=AbstractAsyncContextManager[Any])


class AwaitableContext(Generic[T]):
    """``await`` returns the object; ``async with`` also closes it at the end."""

    def __init__(self, open_object: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._open = open_object
        self._object: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        """Open the object."""
        running_loop()  # its error comes before a sandbox is created
        return self._open().__await__()

    async def __aenter__(self) -> T:
        """Open and enter the object."""
        running_loop()
        self._object = await self._open()
        return await self._object.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Exit the object."""
        if self._object is not None:
            await self._object.__aexit__(kind, error, traceback)
