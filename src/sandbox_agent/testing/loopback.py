"""A small HTTP server on loopback, in the event loop of the program that uses it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Awaitable, Callable, Generator
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
import uvicorn
from anyio.abc import TaskGroup

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request

_STOP_SECONDS = 1


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Leave the signals to the program."""
        yield


class LoopbackServer:
    """Serves an application on a free port of 127.0.0.1 while it is entered with ``async with``.

    Attributes:
        url: Its base URL.
        stopped: Set when the server stops. A response that waits has to end then.
    """

    url: str
    stopped: anyio.Event

    def __init__(self, app: Starlette) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=_STOP_SECONDS,
        )
        self._server = _Server(config)
        self._tasks: TaskGroup | None = None
        self._socket: socket.socket | None = None

    async def __aenter__(self) -> Self:
        self.stopped = anyio.Event()
        listener = self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._serve, listener)
        return self

    async def _serve(self, listener: socket.socket) -> None:
        # Without its own shutdown, uvicorn leaves connections open. It is bounded by _STOP_SECONDS.
        with anyio.CancelScope(shield=True):
            await self._server.serve([listener])

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stopped.set()
        self._server.should_exit = True
        assert self._tasks is not None
        assert self._socket is not None
        try:
            await self._tasks.__aexit__(None, None, None)
        finally:
            self._socket.close()

    async def wait_disconnected(self, request: Request, seconds: float = inf) -> bool:
        """Wait until the client disconnects or the server stops; return whether that was within the time."""
        over = False

        async def wait(event: Callable[[], Awaitable[object]]) -> None:
            nonlocal over
            await event()
            over = True
            tasks.cancel_scope.cancel()

        async def disconnected() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        with anyio.move_on_after(seconds):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait, self.stopped.wait)
                tasks.start_soon(wait, disconnected)
        return over
