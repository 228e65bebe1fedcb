"""Limits on what the processes of an agent use together, and how they are written on a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sandbox_agent.cgroups import Cgroup, create_cgroup, find_parents
from sandbox_agent.runtime.tree_usage import TreeUsage

# Node.js has about ten, and native agents some dozens.
_THREADS_PER_PROCESS = 64


class Limits(NamedTuple):
    """What the processes of one agent may use together; 0 is no limit.

    Attributes:
        memory_bytes: their memory: what their control group counts, else their resident memory.
        processes: how many there may be.
    """

    memory_bytes: int = 0
    processes: int = 0

    def find_parents(self) -> list[str]:
        """Return the control groups in which those of agents are created.

        Raises:
            CgroupError: None can be created.
        """
        limited = {"memory": self.memory_bytes, "pids": self.processes}
        parents = find_parents([controller for controller, limit in limited.items() if limit])
        return sorted({str(parent) for parent in parents.values()})

    def create_group(self, name: str) -> LimitedGroup:
        """Create a control group in which the kernel enforces them.

        The kernel counts threads, not processes. So the group has room for the threads of as many processes:
        that stops a fork bomb, and ``excess`` finds what has more processes.

        Raises:
            CgroupError: it can't be created.
        """
        tasks = self.processes * _THREADS_PER_PROCESS
        group = create_cgroup(name, memory_bytes=self.memory_bytes, tasks=tasks)
        return LimitedGroup(group.folders, self.memory_bytes)

    def excess(self, usage: TreeUsage) -> str | None:
        """Return which limit is exceeded, in words; None if none is."""
        if 0 < self.memory_bytes < usage.memory_bytes:
            return (
                f"its processes used {format_size(usage.memory_bytes)} of memory, more than the "
                f"{format_size(self.memory_bytes)} of --agent-memory"
            )
        if 0 < self.processes < usage.processes:
            return f"it had {usage.processes} processes, more than the {self.processes} of --agent-pids"
        return None


class LimitedGroup(Cgroup):
    """The control group of one agent.

    Args:
        folders: its folders.
        memory_bytes: the limit of its memory.
    """

    def __init__(self, folders: Sequence[Path], memory_bytes: int) -> None:
        super().__init__(folders)
        self._memory_bytes = memory_bytes
        self._survived = 0

    @property
    def excess(self) -> str | None:
        """Which limit the kernel has enforced by a kill since ``survive``, in words; None if none."""
        if self.memory_kills == self._survived:
            return None
        return f"its processes used more than the {format_size(self._memory_bytes)} of --agent-memory"

    def survive(self) -> None:
        """Note that the agent has survived: what the kernel has killed was only a process that it started."""
        self._survived = self.memory_kills


def format_size(size: int) -> str:
    """Return a size in MiB, or in bytes if it is less than one."""
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size} bytes"
