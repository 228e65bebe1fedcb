"""The parent of one agent: starts it, and ends everything it has started, orphans after kill -9 included.

The warden forks the keepers. A keeper is a subreaper: a process of the agent whose parent has ended becomes
its child, whatever session, group and environment it has. So the keeper kills only its own children, whose
pids cannot be reused before it reaps them, again and again until it has none. Only then it can start another
agent: a fork costs more than a short command, and at any time all children of a keeper are of one agent.

It talks with the server over a socket of whole messages. The server sends ``!`` with a command, ``T``
(SIGTERM to the tree) and ``K`` (SIGKILL); the keeper sends that the agent was started, how it ended, and that
it is free because no process is left. It closes its end when it cannot start an agent, or cannot end one.
When the server's end is closed, the keeper kills the tree and ends.
"""

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Collection

_PR_SET_CHILD_SUBREAPER = 36
# Seconds after which a process that does not end although it was killed is left to the parent of the keeper.
_KILL_SECONDS = 5.0
_PAUSE = 0.002
# A kernel without CONFIG_PROC_CHILDREN does not list the children of a task.
_HAS_LISTS = os.path.exists(f"/proc/self/task/{os.getpid()}/children")  # noqa: PTH110 - imports less


def become_subreaper() -> bool:
    """Become the parent of descendants whose parent has ended; return whether the system has that (Linux)."""
    try:
        return ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    except (AttributeError, OSError):
        return False


def keep(control: socket.socket) -> None:
    """Start agents, one after the other; return when the server has closed its end and no process is left.

    Args:
        control: the socket to the server.
    """
    os.setsid()
    become_subreaper()
    wakeup, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, ignore)
    with contextlib.suppress(ConnectionError):
        while True:
            data, received, *_ = socket.recv_fds(control, 16, 4)
            if not data:
                return
            if data == b"!" and not _keep_one(control, wakeup, *received):
                return
            # Any other message was for the agent before.


def _keep_one(control: socket.socket, wakeup: int, command: int, *pipes: int) -> bool:
    """Start an agent, and return when it has ended: whether all that it has started has ended, too.

    Args:
        control: the socket to the server.
        wakeup: becomes readable when a child has ended.
        command: a file with the command as JSON: ``argv``, ``env``, ``cwd`` and ``user`` (its id,
            its group's, and those of all its groups; or nulls), ``members``, the files by which it
            becomes a member of its control group (see Cgroup), and ``lingers``: whether what it has started
            continues when it has ended itself.
        pipes: the agent's stdin, stdout and stderr: pipes, or a terminal.
    """
    with open(command, "rb") as file:
        request = json.load(file)
    members: list[int] = []
    is_terminal = os.isatty(pipes[0])
    try:
        # The result is kept: it must not be reaped by anything but _Tree.
        # Opened here: the agent may have another user.
        members += [os.open(path, os.O_WRONLY | os.O_CLOEXEC) for path in request["members"]]
        agent = subprocess.Popen(  # noqa: S603 - the server's command
            request["argv"],
            stdin=pipes[0],
            stdout=pipes[1],
            stderr=pipes[2],
            env=request["env"],
            cwd=request["cwd"],
            start_new_session=True,
            user=request["user"][0],
            group=request["user"][1],
            extra_groups=request["user"][2],
            preexec_fn=(lambda: _prepare(members, is_terminal=is_terminal))
            if members or is_terminal
            else None,  # which is faster
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        # Not its text: that has the command, and a message has a bound.
        _send(control, {"errno": getattr(error, "errno", None) or errno.EINVAL})
        return False
    finally:
        for fd in (*pipes, *members):
            os.close(fd)
    _send(control, {"pid": agent.pid, "keeper": os.getpid()})
    tree = _Tree(control, agent.pid, request["lingers"])
    while tree.reap():
        readable, _, _ = select.select([control, wakeup], [], [])
        if wakeup in readable:
            os.read(wakeup, 4096)
        if control in readable:
            with contextlib.suppress(ConnectionError):
                if control.recv(16) == b"T":
                    tree.terminate()
                    continue
            tree.kill()  # that is what the server says, or it is gone
    agent.returncode = 0  # _Tree has reaped it: without this, Popen would look for it
    return not _has_children()


def _prepare(members: list[int], *, is_terminal: bool) -> None:
    """Make this process a member of a control group, and its terminal the one that controls it."""
    for descriptor in members:
        os.write(descriptor, b"0")
    if is_terminal:
        control_terminal()


def control_terminal() -> None:
    """Make the terminal on stdin that of this session: its Ctrl+C becomes a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class _Tree:
    """The agent and its descendants."""

    def __init__(self, control: socket.socket, leader: int, lingers: bool) -> None:
        self._control = control
        self._leader = leader
        self._lingers = lingers
        self._ended = False

    def reap(self) -> bool:
        """Reap the children that have ended, and return whether there are others.

        With the leader, all the others end, unless they may linger.
        """
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
                if ended.si_pid != self._leader:
                    os.waitpid(ended.si_pid, 0)
                    continue
                if not self._lingers:
                    self._signal_group(signal.SIGKILL)
                _, status = os.waitpid(self._leader, 0)
                self._ended = True
                if not self._lingers:
                    kill_children(())
                is_free = not _has_children()
                lingers = self._lingers and not is_free
                code = os.waitstatus_to_exitcode(status)
                _send(self._control, {"code": code, "lingers": lingers, "free": is_free})
                if not lingers:
                    return False
            return True
        _send(self._control, {"free": True})
        return False

    def terminate(self) -> None:
        """Send SIGTERM to the tree, the group first."""
        if not self._ended:
            self._signal_group(signal.SIGTERM)
        # The group of a leader that has ended has no number any more that is certainly its own.
        _signal_descendants(os.getpid(), 0 if self._ended else self._leader, signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the leader; reap() ends the rest with it."""
        self._lingers = False
        if self._ended:
            kill_children(())
        else:
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, signum: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._leader, signum)


def ignore(_signum: int, _frame: object) -> None:
    """Handle a signal by doing nothing. Unlike SIG_IGN, a handler is not inherited by a command."""


def kill_children(others: Collection[int]) -> None:
    """Kill and reap the children of this process but ``others``, and theirs as they become its children."""
    deadline = time.monotonic() + _KILL_SECONDS
    if not _has_children():
        return  # without a look at /proc
    while (children := [pid for pid in children_of(os.getpid()) if pid not in others]) and (
        time.monotonic() < deadline
    ):
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)  # its pid is its own until it is reaped, below
        for pid in children:
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    time.sleep(_PAUSE)


def _signal_descendants(parent: int, group: int, signum: signal.Signals) -> None:
    """Signal the descendants outside the group, each by a descriptor, opened while its parent is there."""
    for pid in children_of(parent):
        try:
            handle = os.pidfd_open(pid)
        except OSError:
            continue
        try:
            if pid not in children_of(parent):
                continue  # the descriptor may be another process's
            if os.getpgid(pid) != group:
                signal.pidfd_send_signal(handle, signum)
            _signal_descendants(pid, group, signum)
        except (ProcessLookupError, PermissionError):
            continue
        finally:
            os.close(handle)


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    if not _HAS_LISTS:
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and _parent_of(name) == pid]  # noqa: PTH208
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208 - names suffice
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123 - short
                found += map(int, file.read().split())
    return found


def _parent_of(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123 - short
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:  # it has ended
        return None


def _send(control: socket.socket, message: dict[str, int | str]) -> None:
    with contextlib.suppress(OSError):  # the server is gone
        control.send(json.dumps(message).encode())
