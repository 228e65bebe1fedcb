"""What the processes of an agent use: memory and processor time, those of its tools included."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection
from typing import NamedTuple

from sandbox_agent.runtime.warden import KEEPS

# Fields of /proc/<pid>/stat (proc(5)), counted from the state, which is the third.
_PARENT = 1
_TIMES = slice(11, 15)  # of the process, and of its children that were waited for
_PAGES = 21


class TreeUsage(NamedTuple):
    """What a process and its descendants use.

    Attributes:
        processes: How many there are.
        memory_bytes: Their resident memory; what they share counts for each of them.
        cpu_seconds: The processor time of those that run, and of their children that have ended.
    """

    processes: int
    memory_bytes: int
    cpu_seconds: float


class _Process(NamedTuple):
    parent: int
    memory_bytes: int
    cpu_seconds: float


def read_usage(pids: Collection[int]) -> dict[int, TreeUsage]:
    """Return what the trees of these agents use; one that has ended, or is not visible, is left out.

    Reads all of ``/proc`` once, which takes milliseconds: call it in a thread. Only on Linux.

    Args:
        pids: The leaders of the agents' trees.
    """
    processes = _read_processes()
    children: defaultdict[int, list[int]] = defaultdict(list)
    for pid, process in processes.items():
        children[process.parent].append(pid)
    found: dict[int, TreeUsage] = {}
    for leader in pids:
        if leader not in processes:
            continue
        # What left the leader's tree is a child of its keeper.
        tree = _descendants(processes[leader].parent if KEEPS else leader, children)
        tree = tree if KEEPS else [leader, *tree]
        found[leader] = TreeUsage(
            len(tree),
            sum(processes[pid].memory_bytes for pid in tree),
            sum(processes[pid].cpu_seconds for pid in tree),
        )
    return found


def _descendants(pid: int, children: defaultdict[int, list[int]]) -> list[int]:
    found = list(children[pid])
    for child in found:
        found += children[child]
    return found


def _read_processes() -> dict[int, _Process]:
    try:
        names = os.listdir("/proc")  # noqa: PTH208 - many entries; names suffice
    except OSError:
        return {}
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    processes: dict[int, _Process] = {}
    for name in names:
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123 - many files
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:
                continue
            seconds = sum(map(int, fields[_TIMES])) / tick
            processes[int(name)] = _Process(int(fields[_PARENT]), int(fields[_PAGES]) * page, seconds)
    return processes
