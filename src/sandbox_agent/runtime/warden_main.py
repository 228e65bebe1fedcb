"""The warden's program: ends the orphans of a server that was killed (kill -9), and starts its agents.

The module warden starts it for a server's agents, ``providers/server_process.py`` for another program as the
server: then the leader of the group to end is an argument, and has a grace period to shut down.
"""

import contextlib
import errno
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator

from sandbox_agent.runtime.keeper import become_subreaper, ignore, keep, kill_children
from sandbox_agent.runtime.privacy import hide_memory
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
    hide_memory()  # of the keepers, too: they are forks, and each has the environment of its agent
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, ignore)
    tag, *leaders = sys.argv[1:]
    keepers = _Keepers(int(leaders.pop(0)[1:])) if leaders and leaders[0].startswith("@") else None
    groups = {pid: open_tagged(pid, tag) for pid in map(int, leaders)}
    sweeps = _SWEEPS
    for line in _lines(keepers):
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


class _Keepers:
    """The keepers of the agents. The server sends a socket for each over that of the descriptor."""

    def __init__(self, descriptor: int) -> None:
        become_subreaper()
        self._commands = socket.socket(fileno=descriptor)
        self._pids: set[int] = set()
        self._wakeup, waker = os.pipe()
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, ignore)
        self.descriptors = [descriptor, self._wakeup]

    def handle(self, descriptor: int) -> None:
        """Start a keeper, or reap those that have ended."""
        if descriptor == self._wakeup:
            os.read(self._wakeup, 4096)
            self._reap()
            return
        data, received, *_ = socket.recv_fds(self._commands, 1, 1)
        if not data:
            self.descriptors.remove(descriptor)  # the server has closed it, or is gone
            return
        if not received:
            return  # there was no descriptor left for it: the server sees that its end was closed
        control = received[0]
        try:
            pid = os.fork()
        except OSError as error:  # no room for a process
            with socket.socket(fileno=control) as refused, contextlib.suppress(OSError):
                refused.send(json.dumps({"errno": error.errno or errno.EAGAIN}).encode())
            return
        if pid == 0:
            try:
                os.close(0)
                os.open(os.devnull, os.O_RDONLY)
                self._commands.close()
                keep(socket.socket(fileno=control))
            finally:
                os._exit(0)
        self._pids.add(pid)
        os.close(control)

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while pid := os.waitpid(-1, os.WNOHANG)[0]:
                self._pids.discard(pid)
        kill_children(self._pids)  # of a keeper that was killed


def _lines(keepers: _Keepers | None) -> Iterator[str]:
    """Yield the lines of stdin until it closes, and let the keepers be started meanwhile."""
    rest = b""
    while True:
        descriptors = [0, *(keepers.descriptors if keepers else ())]
        for descriptor in select.select(descriptors, [], [])[0]:
            if descriptor and keepers:
                keepers.handle(descriptor)
                continue
            data = os.read(0, 65_536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from (line.decode() for line in lines)


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
