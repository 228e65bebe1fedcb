"""Finding a process's descendants: its group, and whoever left the group but carries its tag."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

__all__ = ["TAG_VARIABLE", "signal_tree", "tagged"]

# Agents' tools start shells in sessions of their own; the environment is what they all inherit.
TAG_VARIABLE = "SANDBOX_AGENT_PROCESS_TAG"

_PROC = Path("/proc")


def tagged(tag: str) -> list[int]:
    """Return the pids whose environment carries the tag, or a tag that begins with it.

    Linux reads ``/proc``; elsewhere nothing is found and the process group is the tree.
    """
    needle = f"{TAG_VARIABLE}={tag}".encode()
    own = str(os.getpid())
    try:
        entries = os.listdir(_PROC)  # noqa: PTH208 - a scan of many, names are enough
    except OSError:
        return []
    return [int(pid) for pid in entries if pid.isdigit() and pid != own and _carries(pid, needle)]


def _carries(pid: str, needle: bytes) -> bool:
    try:
        environ = (_PROC / pid / "environ").read_bytes()
    except OSError:
        return False
    return environ.startswith(needle) or b"\0" + needle in environ


def signal_tree(group: int, tag: str, signum: signal.Signals) -> None:
    """Send a signal to a process group and to the processes outside it that carry the tag.

    Args:
        group: the leader's pid, which names the group even when the leader is gone.
        tag: the tag in the environment.
        signum: the signal.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signum)
    for pid in tagged(tag):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(pid) != group:
                os.kill(pid, signum)
