"""The owner of a client's background tasks."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from sandbox_agent.errors import SandboxAgentError

T = TypeVar("T")
logger: logging.Logger = logging.getLogger("sandbox_agent.client")

# How long stop() waits for cancelled tasks: they hold no lock and only close sockets.
STOP_TIMEOUT = 5.0
DISPOSED = "this SandboxAgent is disposed: connect a new one"
FORKED = "this SandboxAgent was created before this process was forked: connect a new one in this process"
OTHER_LOOP = "this SandboxAgent belongs to another event loop: use it there, or connect one in this loop"
LOOP_ENDED = (
    "this SandboxAgent belongs to an event loop that has ended, such as that of an earlier asyncio.run: "
    "connect one in each asyncio.run, or use sandbox_agent.sync, which needs no event loop"
)


class TaskOwner:
    """Runs a task group in a task of its own.

    The task that enters a task group must also leave it, but a client may be created in one task and
    disposed in another. So one task enters the group, waits for ``stop``, cancels the others and leaves.

    Attributes:
        loop: the event loop in which the owner was started, or None.
    """

    def __init__(self) -> None:
        self._group: asyncio.TaskGroup | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._children: set[asyncio.Task[Any]] = set()
        self._stopper: asyncio.Task[Any] | None = None
        self._was_stopped = False
        self._pid = os.getpid()

    async def start(self) -> None:
        """Start the owner; ``spawn`` works once this has returned."""
        ready = asyncio.Event()
        self.loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._run(ready), name="sandbox-agent")
        await ready.wait()

    @property
    def running(self) -> bool:
        """Whether ``spawn`` works."""
        return self._group is not None and not self._stopping.is_set() and not self.is_forked

    @property
    def is_forked(self) -> bool:
        """Whether this process is a fork of the one that created the owner."""
        return self._pid != os.getpid()

    @property
    def is_inside(self) -> bool:
        """Whether the caller is one of the owner's tasks (a listener that disposes the client)."""
        return asyncio.current_task() in self._children

    def check(self) -> None:
        """Check that the caller may use the client.

        Raises:
            SandboxAgentError: the client is disposed, or belongs to another event loop, thread or process.
        """
        self.check_caller()
        if not self.running:
            raise SandboxAgentError(DISPOSED)

    def check_caller(self) -> None:
        """Check that the caller is in the process and the event loop of a client that is in use.

        Raises:
            SandboxAgentError: it is not, or the loop has ended.
        """
        self.check_process()
        if self.loop is not None and self.loop.is_closed() and not self._was_stopped:
            raise SandboxAgentError(LOOP_ENDED)
        if self.running and self.loop is not _running_loop():
            raise SandboxAgentError(OTHER_LOOP)

    def check_process(self) -> None:
        """Check that this process is not a fork.

        Raises:
            SandboxAgentError: it is: neither the client's connections nor its store's work here.
        """
        if self.is_forked:
            raise SandboxAgentError(FORKED)

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
        """Run a coroutine until it ends or the owner stops; an error is logged and results in None.

        Raises:
            SandboxAgentError: the owner has stopped.
        """
        if self._group is None or self._stopping.is_set():
            work.close()
            raise SandboxAgentError(DISPOSED)
        task = self._group.create_task(_log_errors(work, name), name=name)
        self._children.add(task)
        task.add_done_callback(self._children.discard)
        # A task that is cancelled before its first step never touches its coroutine.
        task.add_done_callback(lambda _: work.close())
        return task

    def run(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Future[T]:
        """Run a coroutine now, even if the caller does not await the future with its outcome.

        Raises:
            SandboxAgentError: the owner has stopped, now or before the coroutine ended, or the caller is in
                another event loop, thread or process.
        """
        try:
            self.check()
        except SandboxAgentError:
            work.close()
            raise
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        task = self.spawn(_set_outcome(future, work, name), name=name)
        task.add_done_callback(lambda _: work.close())
        task.add_done_callback(lambda _: _fail_unfinished(future))
        return future

    async def stop(self) -> None:
        """Cancel all tasks except the caller's and wait for them, at most STOP_TIMEOUT."""
        if self.is_inside:
            self._stopper = asyncio.current_task()
        self._was_stopped = True
        self._stopping.set()
        waited = self._children - {self._stopper} if self._stopper is not None else {self._task}
        tasks = [task for task in waited if task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_TIMEOUT)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def call_listener(listener: Callable[[T], object], argument: T, what: str) -> Awaitable[object] | None:
    """Call a listener of the user; return its result if it is to be awaited. Exceptions are logged."""
    try:
        result = listener(argument)
    except Exception:
        # The boundary to the user's code: an exception of a listener must not stop the caller.
        logger.exception("%s failed", what)
        return None
    return result if inspect.isawaitable(result) else None


async def await_result(awaitable: Awaitable[object]) -> None:
    """Await any awaitable, as a coroutine that ``spawn`` accepts."""
    await awaitable


async def _log_errors(work: Coroutine[Any, Any, T], name: str) -> T | None:
    try:
        return await work
    except SandboxAgentError as error:
        logger.warning("%s: %s", name, error)
        return None
    except Exception:
        # The boundary of a background task: a failure must not cancel the other tasks of the group.
        logger.exception("background task %r failed", name)
        return None


async def _set_outcome(future: asyncio.Future[T], work: Coroutine[Any, Any, T], name: str) -> None:
    try:
        result = await work
    except Exception as error:  # noqa: BLE001 - it is handed over, not swallowed
        logger.debug("%s failed: %s", name, error)
        if not future.done():
            future.set_exception(error)
            future.exception()  # retrieved: a caller that does not await the future ignores its error
    else:
        if not future.done():
            future.set_result(result)


def _fail_unfinished(future: asyncio.Future[Any]) -> None:
    # The work was cancelled, the caller that awaits its outcome was not.
    if not future.done():
        future.set_exception(SandboxAgentError(DISPOSED))
        future.exception()
