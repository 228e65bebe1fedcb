"""The pages that users read, and the snippets in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["PAGES", "ROOT", "Snippet", "snippets", "text_of"]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^```(?P<info>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
NOT_RUN = "not-run"


class Snippet(NamedTuple):
    """A fenced block: its language, what else its fence says, and the line of the page it begins at."""

    page: Path
    line: int
    language: str
    flags: frozenset[str]
    code: str

    @property
    def name(self) -> str:
        """Page and line."""
        return f"{self.page.name}:{self.line}"


def snippets(page: Path) -> list[Snippet]:
    """Return the page's fenced blocks, in their order."""
    text = page.read_text(encoding="utf-8")
    found: list[Snippet] = []
    for match in _FENCE.finditer(text):
        language, *flags = match["info"].split() or [""]
        line = text.count("\n", 0, match.start()) + 2
        found.append(Snippet(page, line, language, frozenset(flags), match["code"]))
    return found


def text_of(name: str) -> str:
    """Return a page's text."""
    return (ROOT / name).read_text(encoding="utf-8")
