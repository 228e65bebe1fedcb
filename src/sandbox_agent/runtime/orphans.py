"""Ends the agents that an earlier server left, if it was killed together with its warden and all keepers.

Each server locks a file of its own in a folder: the lock of a server that was killed is free. The file has
the tag of the server's processes, and the pid and start time of each agent. A later server ends the processes
that have the tag, and the groups of the agents whose pid still has that start time: a pid alone may belong to
another process by now. Only on Linux; elsewhere nothing is recorded.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import select
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sandbox_agent.cgroups import PREFIX, remove_cgroups
from sandbox_agent.runtime.process_identity import machine, start_time
from sandbox_agent.runtime.process_tree import (
    find_tagged,
    open_tagged,
    signal_group,
    signal_handle,
    signal_tagged,
)
from sandbox_agent.wire.jsonrpc import elements, members

logger: logging.Logger = logging.getLogger("sandbox_agent.runtime")

_SUFFIX = ".agents"
# A tree may fork while it is killed, and a killed process takes a moment to end.
_SWEEPS = 10
_PAUSE = 0.05
# Lines of agents that have ended are removed when there are so many.
_SPARE_LINES = 256


class RunFile:
    """A server's file. Create one with ``create``."""

    def __init__(self, path: Path, descriptor: int, header: bytes) -> None:
        self._path = path
        self._descriptor = descriptor
        self._header = header
        self._agents: dict[int, bytes] = {}
        self._lines = 0

    @classmethod
    def create(cls, folder: Path, tag: str, cgroups: Sequence[str] = ()) -> RunFile:
        """Create and lock the file of a server.

        Args:
            folder: the folder of all servers' files, which exists.
            tag: the start of the tags of its processes.
            cgroups: the control groups in which it creates those of its agents.

        Raises:
            OSError: it can't be created.
        """
        path, draft = folder / f"{tag}{_SUFFIX}", folder / f"{tag}.new"
        own = os.getpid()
        fields = {
            "tag": tag,
            "server": own,
            "start": start_time(own),
            "cgroups": list(cgroups),
            **machine(),
        }
        header = json.dumps(fields).encode() + b"\n"
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, header)
            draft.rename(path)  # locked before another server can find it
        except BaseException:
            os.close(descriptor)
            raise
        return cls(path, descriptor, header)

    def add(self, pid: int, tag: str) -> None:
        """Record an agent that was started just now, unless it has ended already."""
        handle = open_tagged(pid, tag)
        if handle is None:
            return
        start = start_time(pid)
        os.close(handle)
        if start is None:
            return
        line = self._agents[pid] = json.dumps({"pid": pid, "start": start}).encode() + b"\n"
        self._lines += 1
        with contextlib.suppress(OSError):  # a full disk
            os.write(self._descriptor, line)

    def remove(self, pid: int) -> None:
        """Forget an agent that has ended."""
        self._agents.pop(pid, None)
        if self._lines > 2 * len(self._agents) + _SPARE_LINES:
            content = self._header + b"".join(self._agents.values())
            self._lines = len(self._agents)
            with contextlib.suppress(OSError):
                os.pwrite(self._descriptor, content, 0)
                os.ftruncate(self._descriptor, len(content))
                os.lseek(self._descriptor, 0, os.SEEK_END)

    def close(self) -> None:
        """Remove the file: no agent is left."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = -1


def end_orphans(folder: Path) -> int:
    """End the agents of servers that were killed; return how many processes were left.

    Takes as long as killed processes need to end, at most a second for each server: call it in a thread.
    """
    count = 0
    for path in folder.glob(f"*{_SUFFIX}"):
        try:
            descriptor = os.open(path, os.O_RDWR)
        except OSError as error:
            logger.info("%s can't be read: %s", path.name, error.strerror)
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lines = _read_lines(descriptor)
            if not _is_running(lines):
                count += _end_agents(lines)
                path.unlink(missing_ok=True)
        except OSError:
            continue  # its server runs
        finally:
            os.close(descriptor)
    return count


def _read_lines(descriptor: int) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []
    with open(descriptor, "rb", closefd=False) as file:
        for line in file:
            with contextlib.suppress(ValueError):  # cut off
                lines.append(members(json.loads(line)))
    return lines


def _is_running(lines: list[dict[str, Any]]) -> bool:
    """Return whether the server is there, on a file system that does not keep its lock."""
    server = lines[0] if lines and _is_of_this_machine(lines[0]) else {}
    pid = server.get("server")
    return isinstance(pid, int) and start_time(pid) == server.get("start") is not None


def _is_of_this_machine(header: dict[str, Any]) -> bool:
    return all(header.get(name) == value for name, value in machine().items())


def _end_agents(lines: list[dict[str, Any]]) -> int:
    if not lines or not _is_of_this_machine(lines[0]):
        return 0  # the system was started again since, or it was another container
    tag = str(lines[0].get("tag") or "")
    if len(tag) < 32:
        return 0
    found = set(find_tagged(tag))
    for agent in lines[1:]:
        if _kill_group(agent.get("pid"), agent.get("start")):
            found.add(agent["pid"])
    for _ in range(_SWEEPS):
        if not signal_tagged(tag, signal.SIGKILL):
            break
        time.sleep(_PAUSE)
    parents = [parent for parent in elements(lines[0].get("cgroups")) if isinstance(parent, str)]
    remove_cgroups(parents, f"{PREFIX}{tag}-")
    return len(found)


def _kill_group(pid: object, start: object) -> bool:
    """Kill the group of an agent if its leader is the process that was recorded; return whether it was."""
    if not isinstance(pid, int) or pid <= 1:
        return False
    try:
        handle = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if start is None or start_time(pid) != start:
            return False
        # A leader that is stopped cannot end before its group is killed, so the id is its own.
        if signal_handle(handle, signal.SIGSTOP) and not select.select([handle], [], [], 0)[0]:
            signal_group(pid, signal.SIGKILL)
            return True
        return False
    finally:
        os.close(handle)
