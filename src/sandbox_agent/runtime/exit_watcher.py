"""Reports a child's exit to the event loop immediately."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import threading
from collections.abc import Callable


def watch_exit(child: subprocess.Popen[bytes], on_exit: Callable[[int], None]) -> None:
    """Reap a child when it exits and call ``on_exit`` in the running event loop.

    Args:
        child: The child. Nothing else may wait for it.
        on_exit: Called with the return code as in ``Popen.returncode``: the exit code, or the negative
            number of a signal.
    """
    loop = asyncio.get_running_loop()
    try:
        handle = os.pidfd_open(child.pid)
    except (AttributeError, OSError):  # not on Linux, or no descriptor left
        _watch_in_thread(loop, child, on_exit)
        return

    def reap() -> None:
        loop.remove_reader(handle)
        os.close(handle)
        on_exit(child.wait())

    loop.add_reader(handle, reap)


def _watch_in_thread(
    loop: asyncio.AbstractEventLoop, child: subprocess.Popen[bytes], on_exit: Callable[[int], None]
) -> None:
    def wait() -> None:
        code = child.wait()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(on_exit, code)

    threading.Thread(target=wait, name="sandbox-agent-exit", daemon=True).start()
