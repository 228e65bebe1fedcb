"""Keeps secrets of this process from other processes of its user, such as the agents.

Uses only the standard library: the warden imports it, too.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Iterator

# With this variable, debuggers of the same user can attach, and agents can read the server's memory.
DEBUG_VARIABLE = "SANDBOX_AGENT_ALLOW_DEBUGGER"
_PR_SET_DUMPABLE = 4
# Fields of /proc/self/stat (proc(5)), counted from the state, which is the third.
_ARGUMENTS = (45, 46)
_VARIABLES = (47, 48)


def hide_memory() -> None:
    """Keep other processes of this user from reading the memory and the environment of this one.

    They can no longer attach to it or open ``/proc/<pid>/environ``, ``mem`` and ``fd``; processes with
    CAP_SYS_PTRACE, such as those of root outside a container, still can. Forks inherit it, other programs
    do not. Only on Linux.
    """
    if sys.platform == "linux" and not os.environ.get(DEBUG_VARIABLE):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def hide_argument(secret: str) -> None:
    """Overwrite a secret in this process's command line, which every user can see. Only on Linux.

    ``sys.argv`` and the parsed options stay as they are.
    """
    if secret:
        _overwrite(_ARGUMENTS, lambda text: _find_all(text, os.fsencode(secret)))


def hide_url(url: str) -> None:
    """Overwrite the URL of a database, which may have a password, in this process's command line."""
    if "://" in url:
        hide_argument(url)


def take_variable(name: str) -> str | None:
    """Return a variable and remove it, also from ``/proc/self/environ`` where the system has that."""
    value = os.environ.pop(name, None)
    if value is not None:
        _overwrite(_VARIABLES, lambda text: _find_value(text, name))
    return value


def _find_all(text: bytes, secret: bytes) -> Iterator[slice]:
    at = text.find(secret)
    while at >= 0:
        yield slice(at, at + len(secret))
        at = text.find(secret, at + len(secret))


def _find_value(text: bytes, name: str) -> Iterator[slice]:
    at = 0
    for entry in text.split(b"\0"):
        if entry.startswith(os.fsencode(f"{name}=")):
            yield slice(at + len(name) + 1, at + len(entry))
        at += len(entry) + 1


def _overwrite(fields: tuple[int, int], find: Callable[[bytes], Iterable[slice]]) -> None:
    """Overwrite parts of the memory in which the kernel shows the arguments or the variables."""
    try:
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 - imported by the warden, which is small
            values = file.read().rpartition(b")")[2].split()
        begin, end = (int(values[field]) for field in fields)
    except (OSError, IndexError):
        return
    if 0 < begin < end:
        for part in find(ctypes.string_at(begin, end - begin)):
            ctypes.memset(begin + part.start, ord("*"), part.stop - part.start)
