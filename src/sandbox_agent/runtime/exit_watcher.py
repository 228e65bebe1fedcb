"""A child's exit, told to the event loop at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from collections.abc import Callable

__all__ = ["watch_exit"]


def watch_exit(child: subprocess.Popen[bytes], tell: Callable[[int], None]) -> None:
    """Reap a child when it exits and call ``tell`` with its return code, in the running event loop.

    Args:
        child: who; nobody else may wait for it.
        tell: takes what Popen.returncode gives: the exit code, or a signal's number, negative.
    """
    loop = asyncio.get_running_loop()
    try:
        handle = os.pidfd_open(child.pid)
    except (AttributeError, OSError):  # not on Linux, or no descriptor left
        _watch_in_thread(loop, child, tell)
        return

    def exited() -> None:
        loop.remove_reader(handle)
        os.close(handle)
        tell(child.wait())

    loop.add_reader(handle, exited)


def _watch_in_thread(
    loop: asyncio.AbstractEventLoop, child: subprocess.Popen[bytes], tell: Callable[[int], None]
) -> None:
    def wait() -> None:
        code = child.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
            loop.call_soon_threadsafe(tell, code)

    threading.Thread(target=wait, name="sandbox-agent-exit", daemon=True).start()
