"""An opening client: something to await or to enter."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Opening"]

T = TypeVar("T", bound=AbstractAsyncContextManager[Any])


class Opening(Generic[T]):
    """``await opening`` gives the object; ``async with opening`` gives it and leaves it at the end."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._make = make
        self._made: T | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        """Make it."""
        return self._make().__await__()

    async def __aenter__(self) -> T:
        """Make it and enter it."""
        self._made = await self._make()
        await self._made.__aenter__()
        return self._made

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave it."""
        if self._made is not None:
            await self._made.__aexit__(kind, error, traceback)
