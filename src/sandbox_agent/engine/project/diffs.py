"""Unified diffs in time that is proportional to the size of the file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Above this many pairs of lines, the changed region is one hunk: difflib's time grows with the product.
_MAX_PAIRS = 250_000
_CONTEXT = 3


def unified_diff(old: str | None, new: str) -> str:
    """Return the hunks from ``old`` (None if the file does not exist) to ``new``, without a file header."""
    before = _lines(old or "")
    after = _lines(new)
    if len(before) * len(after) <= _MAX_PAIRS:
        lines = list(difflib.unified_diff(before, after, n=_CONTEXT))[2:]
        return _text(lines)
    start = 0
    limit = min(len(before), len(after))
    while start < limit and before[start] == after[start]:
        start += 1
    end = 0
    while end < limit - start and before[-1 - end] == after[-1 - end]:
        end += 1
    if start == len(before) == len(after):
        return ""
    lead = before[max(start - _CONTEXT, 0) : start]
    trail = before[len(before) - end :][:_CONTEXT]
    removed = before[start : len(before) - end]
    added = after[start : len(after) - end]
    first = start - len(lead)
    sizes = [len(lead) + len(part) + len(trail) for part in (removed, added)]
    header = f"@@ -{first + 1},{sizes[0]} +{first + 1},{sizes[1]} @@\n"
    return _text(
        [
            header,
            *(f" {line}" for line in lead),
            *(f"-{line}" for line in removed),
            *(f"+{line}" for line in added),
            *(f" {line}" for line in trail),
        ]
    )


def _lines(text: str) -> list[str]:
    # str.splitlines also splits at characters that are not line ends in a diff (U+2028, form feed).
    *whole, last = text.split("\n")
    return [f"{line}\n" for line in whole] + ([last] if last else [])


def _text(lines: Iterable[str]) -> str:
    return "".join(
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n" for line in lines
    )
