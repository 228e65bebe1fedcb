"""Running programs as an ordinary user runs them, also when the tests are root's."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["unprivileged"]

# PR_CAPBSET_DROP: a program that root starts afterwards has none of root's capabilities.
_DROP = """
import ctypes, os, sys
for capability in range(64):
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""


def unprivileged(*command: str) -> Sequence[str]:
    """Return a command that executes another one without capabilities, in the same process."""
    return [sys.executable, "-S", "-c", _DROP, *command]
