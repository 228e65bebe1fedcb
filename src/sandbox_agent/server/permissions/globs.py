"""Path globs of permission rules: matched segment by segment, in time that the pattern's length bounds."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from fnmatch import translate
from functools import lru_cache

__all__ = ["absolute", "glob_matches"]

_ANY_DEPTH = "**"


def absolute(path: str, directory: str | None) -> str:
    """Return a path without ``.``, ``..`` and doubled slashes; a relative one begins in ``directory``."""
    # normpath leaves two leading slashes alone: POSIX lets them mean something else
    return posixpath.normpath("/" + posixpath.join(directory or "/", path).lstrip("/"))


def glob_matches(pattern: str, path: str, directory: str | None) -> bool:
    """Whether an absolute, normalised path matches a glob.

    ``**`` stands for any number of folders, none included (``/work/**`` matches ``/work`` too), ``*`` and
    ``?`` for characters of one name. A pattern that begins with neither ``/`` nor ``**`` is relative to
    the directory.
    """
    if not pattern.startswith(("/", _ANY_DEPTH)):
        pattern = posixpath.join(directory or "/", pattern)
    return _match(_segments(pattern), _segments(path))


def _segments(path: str) -> list[str]:
    return [segment for segment in path.split("/") if segment not in {"", "."}]


def _match(pattern: Sequence[str], names: Sequence[str]) -> bool:
    # Which prefixes of the path the pattern so far matches: no backtracking, so no blow-up.
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
