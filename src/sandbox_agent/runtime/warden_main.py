"""What the warden does: see warden, which starts it."""

import contextlib
import os
import signal
import sys
import time

from sandbox_agent.runtime.process_tree import signal_tree, tagged

__all__ = ["main"]

# A tree that forks while it is killed is looked for again, but not for ever; and a process that is just
# being executed shows no environment for a moment, so that finding nothing once proves nothing.
_SWEEPS = 10
_PAUSE = 0.05


def main() -> None:
    """Read group ids from stdin until it closes, then kill what is left."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_IGN)
    tag = sys.argv[1]
    groups: set[int] = set()
    sweeps = _SWEEPS
    for line in sys.stdin:
        if line[0] == "=":  # the server ends in peace: its agents have been waited for
            sweeps = 1
            continue
        (groups.add if line[0] == "+" else groups.discard)(int(line[1:]))
    for group in groups:
        signal_tree(group, tag, signal.SIGKILL)
    for sweep in range(sweeps):
        if sweep:
            time.sleep(_PAUSE)
        for pid in tagged(tag):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
