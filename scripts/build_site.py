"""Build the documentation as a site. A warning is an error, such as one about a dead link."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

__all__ = ["copy_pages"]

ROOT: Final = Path(__file__).parents[1]
# Flags after a fence's language are for tests/docs; zensical would not see a code block there.
_FENCE_FLAGS: Final = re.compile(r"^(```\w+) .*$", re.MULTILINE)


def copy_pages(target: Path) -> None:
    """Copy ``docs`` to a folder, with fences as zensical reads them."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(ROOT / "docs", target)
    for page in target.rglob("*.md"):
        page.write_text(_FENCE_FLAGS.sub(r"\1", page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    copy_pages(ROOT / "build/docs")
    sys.exit(subprocess.call([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], cwd=ROOT))
