"""The end of a process with the program that started it."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import stat
import threading

logger: logging.Logger = logging.getLogger("sandbox_agent.server")

# Set by ``local()``: the descriptor of a pipe that closes when the program that started this process ends.
_LIFELINE_VARIABLE = "SANDBOX_AGENT_LIFELINE"
# Seconds that the shutdown may take when that program has ended: nothing else would kill a server that hangs.
_LIFELINE_GRACE = 4


def watch_lifeline() -> None:
    """End this process with the program that started it. Agents inherit neither the variable nor the pipe."""
    value = os.environ.pop(_LIFELINE_VARIABLE, "")
    with contextlib.suppress(OSError, ValueError, OverflowError):  # the pipe did not come with the variable
        lifeline = int(value)
        os.set_inheritable(lifeline, False)
        if stat.S_ISFIFO(os.fstat(lifeline).st_mode):
            threading.Thread(target=_end_with, args=(lifeline,), name="lifeline", daemon=True).start()


def _end_with(lifeline: int) -> None:
    while os.read(lifeline, 1):
        pass
    # In a thread of C, whatever hangs. SIGALRM would not end the first process of a jail.
    faulthandler.dump_traceback_later(_LIFELINE_GRACE, exit=True)
    logger.info("the program that started this server has ended")
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
