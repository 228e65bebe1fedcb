"""Path globs of permission rules.

The standard library's fnmatch matches the segments; it has no ``**``. wcmatch and pathspec do, but compile a
whole pattern to one backtracking expression: with wcmatch 12, a pattern of 40 times ``**/a*`` does not end,
and would block the event loop. Here the time is bounded by the length of the pattern times that of the path.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from fnmatch import translate
from functools import lru_cache

_ANY_DEPTH = "**"


def absolute(path: str, directory: str | None) -> str:
    """Return a path as an absolute one without ``.``, ``..`` and repeated slashes."""
    # normpath keeps two leading slashes, which have a meaning of their own in POSIX
    return posixpath.normpath("/" + posixpath.join(directory or "/", path).lstrip("/"))


def glob_matches(pattern: str, path: str, directory: str | None) -> bool:
    """Return whether an absolute, normalized path matches a glob.

    ``**`` matches any number of folders, also zero (``/work/**`` matches ``/work``); ``*`` and ``?`` match
    characters of one name. A pattern that starts with neither ``/`` nor ``**`` is relative to the directory.
    """
    if not pattern.startswith(("/", _ANY_DEPTH)):
        pattern = posixpath.join(directory or "/", pattern)
    return _match(_segments(pattern), _segments(path))


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment not in {"", "."}]


def _match(pattern: Sequence[str], names: Sequence[str]) -> bool:
    # The prefixes of the path that match the pattern so far; without backtracking, the time is bounded.
    reached = [True] + [False] * len(names)
    for part in pattern:
        if part == _ANY_DEPTH:
            for position in range(1, len(reached)):
                reached[position] = reached[position] or reached[position - 1]
        else:
            matches = _compiled(part).match
            reached = [False] + [
                reached[position] and matches(name) is not None for position, name in enumerate(names)
            ]
    return reached[-1]


@lru_cache(maxsize=512)
def _compiled(part: str) -> re.Pattern[str]:
    return re.compile(translate(part))
