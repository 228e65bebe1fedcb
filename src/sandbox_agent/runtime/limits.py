"""Limits on what the processes of an agent use together, and how they are written on a command line."""

from __future__ import annotations

import re
from typing import NamedTuple

from sandbox_agent.runtime.tree_usage import TreeUsage

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SIZE = re.compile(r"(\d{1,18})\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)


class Limits(NamedTuple):
    """What the processes of one agent may use together; 0 is no limit.

    Attributes:
        memory_bytes: their resident memory.
        processes: how many there may be.
    """

    memory_bytes: int = 0
    processes: int = 0

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


def parse_size(text: str) -> int:
    """Return the bytes of a size such as "512M". The units are powers of 1024.

    Raises:
        ValueError: it is not a size.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"invalid size {text!r}: use a number with K, M, G or T, such as 512M")
    return int(found[1]) * _UNITS[found[2].lower()]


def format_size(size: int) -> str:
    """Return a size in MiB, or in bytes if it is less than one."""
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size} bytes"
