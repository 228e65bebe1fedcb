"""Small programs that behave as agents do at their worst, and whether they are still there."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["alive", "gone", "parent_of", "program"]

_PRELUDE = "import os, signal, subprocess, sys, time\n"
# The kernel takes a moment to end a process after it was sent SIGKILL; a machine under load a longer one.
GONE_SECONDS = 5.0


def program(body: str) -> list[str]:
    """Return the command of a Python program that starts fast."""
    return [sys.executable, "-S", "-E", "-c", _PRELUDE + body]


def alive(pid: int) -> bool:
    """Return whether a process runs; a zombie that its parent did not reap has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def gone(pids: Iterable[int]) -> bool:
    """Wait until none of the processes is left; False when some stay."""
    deadline = time.monotonic() + GONE_SECONDS
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            readable, _, _ = select.select([handle], [], [], max(0.0, deadline - time.monotonic()))
        finally:
            os.close(handle)
        if not readable and alive(pid):
            return False
    return True


def parent_of(pid: int) -> int:
    """Return the pid of a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
