"""Whether this machine lets tests create control groups."""

from __future__ import annotations

import pytest

from sandbox_agent.cgroups import CgroupError, find_parents

__all__ = ["WHY_NO_CGROUPS", "needs_cgroups"]


def _why_not() -> str | None:
    try:
        find_parents(["memory", "pids", "cpu"])
    except CgroupError as error:
        return str(error)
    return None


WHY_NO_CGROUPS = _why_not()
needs_cgroups = pytest.mark.skipif(WHY_NO_CGROUPS is not None, reason=f"no control groups: {WHY_NO_CGROUPS}")
