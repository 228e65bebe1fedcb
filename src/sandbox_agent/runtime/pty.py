"""Pseudoterminals: what a child has in place of pipes when it runs in a terminal."""

from __future__ import annotations

import os
import termios
from typing import NamedTuple


class TerminalSize(NamedTuple):
    """The size of a terminal, in characters."""

    cols: int
    rows: int


def open_terminal(size: TerminalSize) -> list[tuple[int, int]]:
    """Open a pseudoterminal; return descriptors as those of the pipes of stdin, stdout and stderr.

    The child's three are the terminal itself. Ours read its output and write its input; that of stderr is at
    its end, because a terminal has one output.

    Raises:
        OSError: the system has no terminal, or no descriptor, left.
    """
    opened: list[int] = []
    try:
        ours, theirs = os.openpty()
        opened += (ours, theirs)
        termios.tcsetwinsize(theirs, (size.rows, size.cols))
        opened += (os.dup(ours), os.dup(theirs), os.dup(theirs))
        nothing, end = os.pipe()
        os.close(end)
    except BaseException:
        for fd in opened:
            os.close(fd)
        raise
    return [(opened[1], opened[2]), (ours, opened[3]), (nothing, opened[4])]


def set_size(fd: int, size: TerminalSize) -> None:
    """Change the size of a terminal. The programs in it get SIGWINCH."""
    termios.tcsetwinsize(fd, (size.rows, size.cols))
