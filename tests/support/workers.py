"""How many processes run the tests."""

from __future__ import annotations

import os
from typing import Final

__all__ = ["worker_count"]

# About half of a test's time is waiting: for a process to start, a server to answer.
_PER_CORE: Final = 2


def worker_count() -> int:
    """Return how many workers ``-n auto`` starts.

    ``TEST_REDIS_URL`` names one database, which tests empty: then the tests run one after the other.
    """
    if os.environ.get("TEST_REDIS_URL"):
        return 1
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    return _PER_CORE * cores
