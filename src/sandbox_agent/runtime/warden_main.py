"""The program of the warden. The module warden starts it."""

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


def main() -> None:
    """Read group ids from stdin until it closes, then kill the remaining processes."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    tag = sys.argv[1]
    groups: set[int] = set()
    sweeps = _SWEEPS
    for line in sys.stdin:
        if line[0] == "=":  # a normal shutdown: the server has already waited for its agents
            sweeps = 1
            continue
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        signal_tree(group, tag, signal.SIGKILL)
    for sweep in range(sweeps):
        if sweep:
            time.sleep(_PAUSE)
        for pid in find_tagged(tag):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
