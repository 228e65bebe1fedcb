"""What the test proxies have in common: a port on loopback that is served while one is inside."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

import anyio
from anyio.abc import ByteStream, SocketAttribute, TaskGroup

__all__ = ["Relay"]


class Relay(ABC):
    """Listens while it is entered; leaving it cuts everything.

    Attributes:
        port: where clients connect, on 127.0.0.1.
    """

    def __init__(self) -> None:
        self.port = 0
        # What is closed in the end.
        self._opened = AsyncExitStack()
        self._tasks: TaskGroup | None = None

    async def __aenter__(self) -> Self:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        self._opened.push_async_callback(listener.aclose)
        self.port = listener.extra(SocketAttribute.local_port)
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(listener.serve, self._handle)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._tasks is not None
        self._tasks.cancel_scope.cancel()
        try:
            await self._tasks.__aexit__(exc_type, exc, traceback)
        finally:
            with anyio.CancelScope(shield=True):
                await self._opened.aclose()

    @abstractmethod
    async def _handle(self, client: ByteStream) -> None:
        """Serve a connection."""
