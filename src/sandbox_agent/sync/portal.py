"""The thread with the event loop in which the SDK works for programs without async."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

# How long the calls that are left may take to end with the program.
END_SECONDS = 5.0


class Portal:
    """A thread with an event loop, which ends with the program. Its methods are for other threads."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name="sandbox_agent.sync", daemon=True)
        self._thread.start()
        atexit.register(self._end)

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    @property
    def is_usable(self) -> bool:
        """Whether it belongs to this process, and not to its parent."""
        return self._pid == os.getpid() and self._thread.is_alive()

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine and return its result.

        A KeyboardInterrupt cancels the coroutine, and is raised when it has ended.

        Raises:
            RuntimeError: This is the thread of the loop, or a process that was forked from the one in which
                the client was made.
        """
        if threading.get_ident() == self._thread.ident:
            raise RuntimeError(
                "sandbox_agent.sync can't be called from a coroutine or a callback that runs in its own "
                "event loop: use the async SDK there"
            )
        if not self.is_usable:
            raise RuntimeError(
                "this client belongs to another process, or to a program that ends: connect again in this "
                "process, after the fork"
            )
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        tasks: list[asyncio.Task[None]] = []
        self._loop.call_soon_threadsafe(lambda: tasks.append(self._loop.create_task(_run(work, future))))
        try:
            return future.result()
        except BaseException:
            if not future.done():
                self._loop.call_soon_threadsafe(lambda: tasks[0].cancel())
                with contextlib.suppress(BaseException):
                    future.result()
            raise

    def _end(self) -> None:
        """End what still runs: clients that were not closed."""
        if not self.is_usable:
            return
        with contextlib.suppress(RuntimeError, TimeoutError):
            asyncio.run_coroutine_threadsafe(self._cancel_all(), self._loop).result(END_SECONDS)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(END_SECONDS)
        if not self._thread.is_alive():
            self._loop.close()

    async def _cancel_all(self) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._loop.shutdown_asyncgens()


async def _run(work: Callable[[], Awaitable[T]], future: concurrent.futures.Future[T]) -> None:
    try:
        result = await work()
    except asyncio.CancelledError:
        future.cancel()
        future.set_running_or_notify_cancel()
        raise
    except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
        future.set_exception(error)
    else:
        future.set_result(result)


_lock = threading.Lock()
_portal: Portal | None = None


def portal() -> Portal:
    """Return the portal of this process; start it if there is none."""
    global _portal
    with _lock:
        if _portal is None or not _portal.is_usable:
            _portal = Portal()
        return _portal


def in_thread(
    function: Callable[..., Any], wrap: Callable[[Any], Any]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return a coroutine function that calls a program's function, which may use the SDK and wait for long.

    Each call has a thread of its own: the threads of the event loop are few, and the program would wait for
    them at its end.
    """

    async def call(*arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def work() -> None:
            try:
                result = function(*[wrap(argument) for argument in arguments])
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is waited for
                failure = RuntimeError(str(error)) if isinstance(error, StopIteration) else error
                settle(lambda: future.set_exception(failure))
            else:
                settle(lambda: future.set_result(result))

        def settle(put: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the program ends
                loop.call_soon_threadsafe(lambda: future.done() or put())

        threading.Thread(target=work, name="sandbox_agent.sync callback", daemon=True).start()
        return await future

    call.__wrapped__ = function  # pyright: ignore[reportFunctionMemberAccess] - as functools.wraps does
    return call
