"""Length of the loops in tests: short in ``make test``, full in ``make test-soak``, longer in ``make soak``.

Such a test has the marker ``loops``, with which the group soak finds it.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["SOAK", "repeats"]

# The environment variable of that name: 0 is make test, 1 is make test-soak.
SOAK: Final = int(os.environ.get("SOAK") or 0)


def repeats(quick: int, full: int) -> int:
    """Return ``quick`` in ``make test``, else ``full`` times SOAK."""
    return full * SOAK or quick
