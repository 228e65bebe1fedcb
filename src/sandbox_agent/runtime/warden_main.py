"""The program of the warden.

The module warden starts it for a server's agents, ``providers/local.py`` for another program as the server:
then the leader of the group to end is an argument, and has a grace period to shut down.
"""

import contextlib
import os
import signal
import sys
import time

from sandbox_agent.runtime.process_tree import find_tagged, signal_tree

# Look for survivors this many times: a tree may fork while it is killed, and a process that is being executed
# has no environment for a moment.
_SWEEPS = 10
_PAUSE = 0.05
# Seconds that a leader which is an argument has after SIGTERM.
_GRACE = 3.0


def main() -> None:
    """Read group ids from stdin until it closes, then kill the remaining processes."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    tag, *leaders = sys.argv[1:]
    groups: set[int] = set()
    sweeps = _SWEEPS
    for line in sys.stdin:
        if line[0] == "=":  # a normal shutdown: the server has already waited for its agents
            sweeps = 1
            continue
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for leader in map(int, leaders):
        _terminate(leader)
        groups.add(leader)
    for group in groups:
        signal_tree(group, tag, signal.SIGKILL)
    for sweep in range(sweeps):
        if sweep:
            time.sleep(_PAUSE)
        for pid in find_tagged(tag):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _terminate(pid: int) -> None:
    deadline = time.monotonic() + _GRACE
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGTERM)
        while time.monotonic() < deadline:
            time.sleep(_PAUSE)
            os.kill(pid, 0)


if __name__ == "__main__":
    main()
