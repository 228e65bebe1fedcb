"""Finds a process's descendants: its group, and processes outside it that inherited its tag."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

# Tools of agents start shells in new sessions, outside the group. All of them inherit the environment.
TAG_VARIABLE = "SANDBOX_AGENT_PROCESS_TAG"

# The warden imports this, and pathlib would be a fifth of its time to start.
_PROC = "/proc"
# How long a program may take to have its environment once it is started.
_EXEC_SECONDS = 0.05
_EXEC_PAUSE_MS = 1


def find_tagged(tag: str) -> list[int]:
    """Return the pids of the processes whose environment has the tag, or a tag that starts with it.

    Uses ``/proc`` of Linux. On other systems the result is empty, and the tree is the process group.
    """
    needle = f"{TAG_VARIABLE}={tag}".encode()
    own = str(os.getpid())
    try:
        entries = os.listdir(_PROC)  # noqa: PTH208 - many entries; names suffice
    except OSError:
        return []
    return [int(pid) for pid in entries if pid.isdigit() and pid != own and _has_tag(pid, needle)]


def _has_tag(pid: str, needle: bytes) -> bool:
    environ = _environ(pid)
    return environ.startswith(needle) or b"\0" + needle in environ


def _environ(pid: str) -> bytes:
    try:
        with open(f"{_PROC}/{pid}/environ", "rb") as file:  # noqa: PTH123 - as above
            return file.read()
    except OSError:
        return b""


def signal_tagged(tag: str, signum: signal.Signals) -> bool:
    """Send a signal to the processes that have the tag; return whether there was one.

    A process is signaled through a descriptor of its own, and only if it still has the tag once that is open:
    its pid may belong to another process by then.
    """
    found = find_tagged(tag)
    for pid in found:
        if (handle := open_tagged(pid, tag)) is not None:
            try:
                signal_handle(handle, signum)
            finally:
                os.close(handle)
    return bool(found)


def open_tagged(pid: int, tag: str) -> int | None:
    """Return a pidfd of the process if it has the tag, else None. Only on Linux."""
    try:
        handle = os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
    # execve(2) closes descriptors, which says that a program was started, before its environment is there.
    deadline, poll = time.monotonic() + _EXEC_SECONDS, select.poll()
    poll.register(handle, select.POLLIN)
    while not _environ(str(pid)) and time.monotonic() < deadline:
        if poll.poll(_EXEC_PAUSE_MS):
            break  # it has ended
    if _has_tag(str(pid), f"{TAG_VARIABLE}={tag}".encode()):
        return handle
    os.close(handle)
    return None


def signal_handle(handle: int, signum: signal.Signals) -> bool:
    """Send a signal to the process of a pidfd; return whether it was there."""
    try:
        signal.pidfd_send_signal(handle, signum)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def signal_group(leader: int, signum: signal.Signals) -> None:
    """Send a signal to a process group whose leader is not reaped: afterwards its id may be another's."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signum)
