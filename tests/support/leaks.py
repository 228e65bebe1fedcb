"""A test that leaks a pipe, a process, a file or a task fails itself, instead of a later test.

Python reports a leak when the object is garbage collected, so garbage is collected after each test. This is
cheap because the objects that exist before the first test of a module are frozen: the collector skips them
until the last test has run.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import traceback
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import Any, Final

import pytest

__all__ = ["checked_loop", "pytest_collection", "pytest_collection_finish", "pytest_runtest_teardown"]

# The task in which anyio's plugin runs tests and async fixtures: it ends with the loop.
_RUNNER_TASK: Final = "TestRunner._run_tests_and_fixtures"
_found: list[str] = []


class _CheckedTask(asyncio.Task[Any]):
    """Records a leak when it is cancelled from outside its loop, as pending tasks are on close."""

    def cancel(self, msg: Any | None = None) -> bool:
        pending = not self.done() and not self.cancelling() and not _is_owned(self)
        if pending and not self.get_loop().is_running() and _name(self) != _RUNNER_TASK:
            _found.append(f"a pending task: {self!r}")
        return super().cancel(msg)


def _name(task: asyncio.Task[Any]) -> str:
    coroutine = task.get_coro()
    return getattr(coroutine, "__qualname__", repr(coroutine))


def _is_owned(task: asyncio.Task[Any]) -> bool:
    """Whether a task that was cancelled, but has not run since, may still wait for this one and end it."""
    others = asyncio.all_tasks(task.get_loop()) - {task}
    return any(other.cancelling() and not other.done() and _name(other) != _RUNNER_TASK for other in others)


class _CheckedLoop(asyncio.SelectorEventLoop):
    """Records the errors that tasks report after the loop was closed; pytest sees the earlier ones."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if self.is_closed():
            error = context.get("exception")
            _found.append(f"{context['message']}: {error!r}" if error else str(context["message"]))
        else:
            super().call_exception_handler(context)


def checked_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop that reports the tasks that a test leaves behind."""
    loop = _CheckedLoop()

    def make_task(
        loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, Any], **options: Any
    ) -> asyncio.Task[Any]:
        return _CheckedTask(coroutine, loop=loop, **options)

    loop.set_task_factory(make_task)  # pyright: ignore[reportArgumentType] - typeshed wants its own alias
    return loop


@contextmanager
def _record_unraisable_errors() -> Generator[None]:
    def record(error: sys.UnraisableHookArgs) -> None:
        text = "".join(traceback.format_exception(error.exc_type, error.exc_value, error.exc_traceback))
        _found.append(f"{error.err_msg or 'an error'} in {error.object!r}\n{text}")

    previous, sys.unraisablehook = sys.unraisablehook, record
    try:
        yield
    finally:
        sys.unraisablehook = previous


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without collecting garbage: among so many objects, that takes longer than the rest."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None]:
    """Fail the test if it leaked. Runs after its fixtures, once their values are no longer referenced."""
    yield
    with _record_unraisable_errors():
        if isinstance(item, pytest.Function):
            item.funcargs.clear()
        for name in ("last_exc", "last_value", "last_traceback"):
            if hasattr(sys, name):  # pytest keeps the frames of a failure here for debuggers
                delattr(sys, name)
        if nextitem is None:
            gc.unfreeze()
        gc.collect()
        if nextitem is not None and nextitem.path != item.path:
            gc.freeze()
    if _found:
        leaks = "\n".join(_found)
        _found.clear()
        pytest.fail(f"the test leaked:\n{leaks}", pytrace=False)
