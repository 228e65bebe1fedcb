"""Check that this source tree is the release of a tag, and print the release's notes.

    python scripts/release.py v0.2.0 > notes.md

Run by `.github/workflows/release.yml` before anything is built or published.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


class NotReadyError(Exception):
    """What is missing before the tag can be released, and how to add it."""


def release_notes(root: Path, tag: str) -> str:
    """Return the notes of a tag's release.

    Args:
        root: The source tree.
        tag: "v" and the version in pyproject.toml.

    Raises:
        NotReadyError: The tag names another version, or the changelog is not written.
    """
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    if tag != f"v{version}":
        raise NotReadyError(
            f"the tag is {tag} and pyproject.toml has version {version}: the tag has to be v{version}"
        )
    fragments = sorted(path.name for path in (root / "newsfragments").glob("*.md"))
    if fragments:
        raise NotReadyError(
            f"newsfragments/ still has {len(fragments)} changes, such as {fragments[0]}: run "
            f"'towncrier build --version {version}', commit, and move the tag"
        )
    heading = re.compile(rf"^## {re.escape(version)} .*$", re.MULTILINE)
    changelog = (root / "CHANGELOG.md").read_text("utf-8")
    found = heading.search(changelog)
    if found is None:
        raise NotReadyError(f"CHANGELOG.md has no heading '## {version} (date)': run towncrier, and commit")
    return re.split(r"^## ", changelog[found.end() :], maxsplit=1, flags=re.MULTILINE)[0].strip() + "\n"


def main() -> None:
    """Print the notes, or the error."""
    if len(sys.argv) != 2:
        sys.exit("usage: release.py TAG")
    try:
        sys.stdout.write(release_notes(ROOT, sys.argv[1]))
    except NotReadyError as error:
        sys.exit(f"not released: {error}")


if __name__ == "__main__":
    main()
