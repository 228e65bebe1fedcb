"""The one owner of a client's background tasks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from sandbox_agent.errors import SandboxAgentError

__all__ = ["DISPOSED", "OTHER_LOOP", "TaskOwner"]

T = TypeVar("T")
logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# How long stop() waits for cancelled tasks: they hold no lock and only close sockets.
STOP_TIMEOUT = 5.0
DISPOSED = "this SandboxAgent is disposed: connect a new one"
OTHER_LOOP = "this SandboxAgent was made in another event loop: connect one in this loop"


class TaskOwner:
    """Hosts a task group in a task of its own.

    A task group has to be left by the task that entered it; an SDK object is made in one task and
    disposed in any other. So one task enters, waits to be told, cancels the others and leaves.
    """

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._children: set[asyncio.Task[Any]] = set()
        self._stopper: asyncio.Task[Any] | None = None

    async def start(self) -> None:
        """Begin; ``spawn`` works once this returned."""
        ready = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(ready), name="sandbox-agent")
        await ready.wait()

    @property
    def running(self) -> bool:
        """Whether ``spawn`` is possible."""
        return self._group is not None and not self._stopping.is_set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop in which it was started."""
        return self._loop

    def check(self) -> None:
        """Return if the caller may use it.

        Raises:
            SandboxAgentError: it has stopped, or belongs to another event loop.
        """
        if not self.running:
            raise SandboxAgentError(DISPOSED)
        if self._loop is not asyncio.get_running_loop():
            raise SandboxAgentError(OTHER_LOOP)

    async def _run(self, ready: asyncio.Event) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                ready.set()
                await self._stopping.wait()
                for task in self._children - {self._stopper}:
                    task.cancel()
        finally:
            self._stopping.set()
            self._group = None

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T | None]:
        """Run it until it ends or the owner stops; an error is logged and gives None.

        Raises:
            SandboxAgentError: the owner has stopped.
        """
        if self._group is None or self._stopping.is_set():
            work.close()
            raise SandboxAgentError(DISPOSED)
        task = self._group.create_task(_guarded(work, name), name=name)
        self._children.add(task)
        task.add_done_callback(self._children.discard)
        # A task that is cancelled before its first step never touches its coroutine.
        task.add_done_callback(lambda _: work.close())
        return task

    def run(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Future[T]:
        """Run it now, whether anyone awaits the future or not; its error goes to who awaits.

        Raises:
            SandboxAgentError: the owner has stopped, now or while it runs.
        """
        if not self.running:
            work.close()
            raise SandboxAgentError(DISPOSED)
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = self.spawn(_into(future, work, name), name=name)
        task.add_done_callback(lambda _: work.close())
        task.add_done_callback(lambda _: _give_up(future))
        return future

    @property
    def is_inside(self) -> bool:
        """Whether the caller is one of its tasks (a listener that disposes the client)."""
        return asyncio.current_task() in self._children

    async def stop(self) -> None:
        """Cancel everything and wait for it, at most STOP_TIMEOUT; a caller of its own goes on."""
        if self.is_inside:
            self._stopper = asyncio.current_task()
        self._stopping.set()
        waited = self._children - {self._stopper} if self._stopper is not None else {self._task}
        tasks = [task for task in waited if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT)


async def _guarded(work: Coroutine[Any, Any, T], name: str) -> T | None:
    try:
        return await work
    except SandboxAgentError as error:
        logger.warning("%s: %s", name, error)
        return None
    except Exception:
        # The boundary of a background task: one that fails must not take its siblings along.
        logger.exception("background task %r failed", name)
        return None


def _give_up(future: asyncio.Future[Any]) -> None:
    # The work was cancelled; who awaits its outcome was not.
    if not future.done():
        future.set_exception(SandboxAgentError(DISPOSED))
        future.exception()


async def _into(future: asyncio.Future[T], work: Coroutine[Any, Any, T], name: str) -> None:
    try:
        result = await work
    except Exception as error:  # noqa: BLE001 - it is handed over, not swallowed
        logger.debug("%s failed: %s", name, error)
        if not future.done():
            future.set_exception(error)
            future.exception()  # seen: who doesn't await does not want to know
    else:
        if not future.done():
            future.set_result(result)
