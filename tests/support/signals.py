"""Signal dispositions and the signal mask of the test session, whatever the caller of pytest had."""

from __future__ import annotations

import signal
from typing import Final

__all__ = ["restore_signals"]

# Python itself ignores these two, and a ``subprocess.Popen`` restores them in its child.
_IGNORED_BY_PYTHON: Final = {
    number for name in ("SIGPIPE", "SIGXFSZ") if (number := getattr(signal, name, None)) is not None
}


def restore_signals() -> None:
    """Restore each signal that this process inherited as ignored or blocked.

    A shell without job control starts ``command &`` with SIGINT ignored, nohup ignores SIGHUP. The children
    that tests start would inherit that, and a test that sends Ctrl-C would wait for nothing.
    """
    for number in signal.valid_signals() - _IGNORED_BY_PYTHON:
        if signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
