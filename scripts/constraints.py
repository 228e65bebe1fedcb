"""Print uv.lock's versions as pip constraints, so that both installers give the same environment."""

from __future__ import annotations

import sys
import tomllib
from collections import defaultdict
from pathlib import Path
from typing import Any

__all__ = ["constraints"]


def constraints(lock: dict[str, Any]) -> list[str]:
    """Return ``name==version`` lines for a lock; what has several versions (by platform) is left open."""
    versions: defaultdict[str, set[str]] = defaultdict(set)
    for package in lock["package"]:
        if "registry" in package["source"]:
            versions[package["name"]].add(package["version"])
    return [f"{name}=={version}" for name, (version, *others) in sorted(versions.items()) if not others]


if __name__ == "__main__":
    print("\n".join(constraints(tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
