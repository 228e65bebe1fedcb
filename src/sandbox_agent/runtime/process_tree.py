"""Finds a process's descendants: its group, and processes outside it that inherited its tag."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

# Tools of agents start shells in new sessions, outside the group. All of them inherit the environment.
TAG_VARIABLE = "SANDBOX_AGENT_PROCESS_TAG"

_PROC = Path("/proc")


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
    try:
        environ = (_PROC / pid / "environ").read_bytes()
    except OSError:
        return False
    return environ.startswith(needle) or b"\0" + needle in environ


def signal_tree(group: int, tag: str, signum: signal.Signals) -> None:
    """Send a signal to a process group and to the processes outside it that have the tag.

    The group is the leader's pid, even after the leader has exited.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signum)
    for pid in find_tagged(tag):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) != group:
                os.kill(pid, signum)
