"""The program of the warden.

The module warden starts it for a server's agents, ``providers/local.py`` for another program as the server:
then the leader of the group to end is an argument, and has a grace period to shut down.
"""

import contextlib
import os
import select
import signal
import sys
import time

from sandbox_agent.runtime.process_tree import open_tagged, signal_group, signal_handle, signal_tagged

# Look for survivors this many times: a tree may fork while it is killed, and a process that is being executed
# has no environment for a moment.
_SWEEPS = 10
_PAUSE = 0.05
# Seconds that a leader which is an argument has after SIGTERM.
_GRACE = 3.0
# Without pidfds (on macOS) a process is known by its pid alone.
_HAS_HANDLES = hasattr(os, "pidfd_open")


def main() -> None:
    """Read group ids from stdin until it closes, then kill the remaining processes."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    tag, *leaders = sys.argv[1:]
    groups = {pid: open_tagged(pid, tag) for pid in map(int, leaders)}
    sweeps = _SWEEPS
    for line in sys.stdin:
        if line[0] == "=":  # a normal shutdown: the server has already waited for its agents
            sweeps = 1
            continue
        group = int(line[1:])
        if (former := groups.pop(group, None)) is not None:
            os.close(former)
        if line[0] == "+":
            groups[group] = open_tagged(group, tag)
    for leader in map(int, leaders):
        _terminate(leader, groups[leader])
    for group, handle in groups.items():
        _kill_group(group, handle)
    for sweep in range(sweeps):
        if sweep:
            time.sleep(_PAUSE)
        signal_tagged(tag, signal.SIGKILL)


def _kill_group(group: int, handle: int | None) -> None:
    """Kill a group whose leader has not ended.

    After that, the id may be another group's; what is left of the group is found by the tag.
    """
    if handle is not None:
        # A leader that is stopped cannot end before the group is killed.
        if signal_handle(handle, signal.SIGSTOP) and not _has_ended(handle, 0):
            signal_group(group, signal.SIGKILL)
    elif not _HAS_HANDLES:
        signal_group(group, signal.SIGKILL)


def _terminate(pid: int, handle: int | None) -> None:
    if handle is not None:
        if signal_handle(handle, signal.SIGTERM):
            _has_ended(handle, _GRACE)
        return
    if _HAS_HANDLES:
        return
    deadline = time.monotonic() + _GRACE
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            time.sleep(_PAUSE)
            os.kill(pid, 0)


def _has_ended(handle: int, seconds: float) -> bool:
    """Wait at most so long for the end of the process of a pidfd, and return whether it has ended."""
    return bool(select.select([handle], [], [], seconds)[0])


if __name__ == "__main__":
    main()
