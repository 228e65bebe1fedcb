"""Processes that another process has started: they are known by their pid and the time of their start.

A pid alone may belong to another process by now.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

# Fields of /proc/<pid>/stat (proc(5)), counted from the state, which is the third field.
_STATE, _START = 0, 19
# Between two looks at a process without a pidfd.
_PAUSE_SECONDS = 0.05
_PS_SECONDS = 10


def start_time(pid: int) -> int | None:
    """Return when a process was started, in clock ticks since the system was; None if it is not there."""
    fields = _stat(pid)
    return None if fields is None else int(fields[_START])


def machine() -> dict[str, str]:
    """Return what pids and start times refer to: the boot of the system, and the namespace of pids."""
    boot, namespace = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - not a path
    return {"boot": boot, "pids": namespace}


def identity(pid: int) -> str | None:
    """Return what no other process has, before or after it; None if the process has ended, reaped or not."""
    if sys.platform == "linux":
        fields = _stat(pid)
        if fields is None or fields[_STATE] in (b"Z", b"X"):
            return None
        return " ".join([*machine().values(), fields[_START].decode()])
    done = subprocess.run(  # noqa: S603 - a number
        ["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        timeout=_PS_SECONDS,
        env={"LC_ALL": "C", "TZ": "UTC"},
    )
    state, _, started = done.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


class KnownProcess:
    """A process that was seen before. On Linux, signals reach it or nothing; elsewhere almost surely.

    Args:
        pid: its pid.
        known: its ``identity`` then.
    """

    def __init__(self, pid: int, known: str) -> None:
        self._pid = pid
        self._known = known
        self._handle: int | None = None
        with contextlib.suppress(AttributeError, OSError):  # not Linux, it has ended, or a kernel without
            self._handle = os.pidfd_open(pid)
        # Compared after the pidfd is open: from here on, the pidfd is that of the known process.
        self.runs: bool = self._is_known()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it runs.

        Raises:
            PermissionError: it is another user's.
        """
        if not self.runs:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._handle is not None:
                signal.pidfd_send_signal(self._handle, number)
            elif self._is_known():
                os.kill(self._pid, number)

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended; return whether it has."""
        deadline = time.monotonic() + seconds
        while self.runs:
            left = deadline - time.monotonic()
            if self._handle is not None:
                self.runs = not select.select([self._handle], [], [], max(0.0, left))[0]
            else:
                time.sleep(max(0.0, min(left, _PAUSE_SECONDS)))
                self.runs = self._is_known()
            if left <= 0:
                break
        return not self.runs

    def close(self) -> None:
        """Forget it."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _is_known(self) -> bool:
        return identity(self._pid) == self._known


def _stat(pid: int) -> list[bytes] | None:
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return fields if len(fields) > _START else None
